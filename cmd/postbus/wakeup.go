package main

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// wakeup ends a wait for a file descriptor. Standard input and output may be of
// any kind, and read(2) or write(2) on them, once begun, cannot be called off;
// so one waits in poll(2) first, with an eventfd(2) beside.
type wakeup struct {
	fd int
}

func newWakeup() (*wakeup, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &wakeup{fd}, nil
}

// wake ends the wait under way and all later ones.
func (w *wakeup) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.Write(w.fd, one[:]) // fails only when it holds 2^64-2 wake-ups already
}

// wait waits until one of events, an error or a hang-up is there on fd, and returns
// true, or until wake, and returns false.
func (w *wakeup) wait(fd int, events int16) (bool, error) {
	ready, woken, err := w.poll(fd, events, -1)
	return ready && !woken, err
}

// poll is poll(2) of fd and w, for so many milliseconds, -1 meaning for ever.
func (w *wakeup) poll(fd int, events int16, timeout int) (ready, woken bool, err error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(w.fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, timeout)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false, false, fmt.Errorf("wait for file descriptor %d: poll: %w", fd, err)
		}
		return fds[0].Revents != 0, fds[1].Revents != 0, nil
	}
}

// close frees it; nobody may be waiting.
func (w *wakeup) close() { unix.Close(w.fd) }
