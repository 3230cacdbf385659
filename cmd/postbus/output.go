package main

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// outputBatch is when output is written even though more is coming, in bytes:
	// what a pipe holds.
	outputBatch = 64 << 10

	// outputKept is the largest buffer kept for the next batch, in bytes.
	outputKept = 1 << 20
)

// errOutputClosed says that nobody reads standard output any more.
var errOutputClosed = errors.New("standard output was closed")

// output gathers what is to be printed. It never writes a part of a message
// before the whole was added, so that the lines of two processes that write to one
// file do not mix below the size of a batch.
type output struct {
	file *os.File
	buf  []byte
}

// full reports whether it is time to flush though more is coming.
func (o *output) full() bool { return len(o.buf) >= outputBatch }

// flush writes what was added.
func (o *output) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	_, err := o.file.Write(o.buf)
	o.buf = o.buf[:0]
	if cap(o.buf) > outputKept {
		o.buf = nil
	}
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return errOutputClosed
	}
	if err != nil {
		return fmt.Errorf("write to standard output: %w", err)
	}
	return nil
}

// watchClosed calls onClosed when the reader of the pipe, socket or terminal fd
// goes away. The function it returns ends the watch.
func watchClosed(fd int, onClosed func()) (end func(), err error) {
	stop, err := newWakeup()
	if err != nil {
		return nil, err
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		// With no event asked for, poll(2) tells of POLLERR (nobody reads the pipe)
		// and POLLHUP (the socket's or terminal's other end is closed), of no other.
		if closed, err := stop.wait(fd, 0); closed && err == nil {
			onClosed()
		}
	})
	return func() {
		stop.wake()
		watch.Wait()
		stop.close()
	}, nil
}
