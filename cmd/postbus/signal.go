package main

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// onSignal calls do at the first of the signals and gives them their usual effect
// back, so that a second one ends the process. The function it returns ends this.
func onSignal(do func(), signals ...os.Signal) (end func()) {
	came := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(came, signals...)
	go func() {
		select {
		case <-came:
			signal.Stop(came)
			do()
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
