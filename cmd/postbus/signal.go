package main

import (
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// sameSignal is how long a further signal is taken for the first one: timeout(1)
// and a shell's job control signal the process and then its group.
const sameSignal = 500 * time.Millisecond

// onSignal calls do at the first of the signals and gives them their usual effect
// back soon after, so that a later one ends the process. The function it returns ends this.
func onSignal(do func(), signals ...os.Signal) (end func()) {
	came := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(came, signals...)
	go func() {
		select {
		case <-came:
			do()
			select {
			case <-time.After(sameSignal):
				signal.Stop(came)
			case <-done:
			}
		case <-done:
		}
	}()
	return func() {
		signal.Stop(came)
		close(done)
	}
}

// keepOnBrokenPipe has a write to a standard output that nobody reads any more fail
// with EPIPE; else Go ends the process with SIGPIPE (os/signal).
func keepOnBrokenPipe() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
}
