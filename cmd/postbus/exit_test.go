package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/client"
)

func TestExitCode(t *testing.T) {
	refused := func(err error) error {
		return &client.RefusedError{Count: 3, Topic: "t", First: fmt.Errorf("%w: in words", err)}
	}
	connect := func(errno unix.Errno) error { return os.NewSyscallError("connect", errno) }
	for name, test := range map[string]struct {
		err  error
		want int
	}{
		"none":                    {nil, exitOK},
		"unknown":                 {errors.New("x"), exitFailed},
		"usage":                   {usagef("x"), exitUsage},
		"bad topic":               {refused(client.ErrBadTopic), exitUsage},
		"no broker":               {fmt.Errorf("%w: x: %w", client.ErrNoBroker, connect(unix.ENOENT)), exitNoBroker},
		"broker went":             {fmt.Errorf("%w: %w", client.ErrDisconnected, client.ErrShutdown), exitNoBroker},
		"lost":                    {fmt.Errorf("%w: 3", errLost), exitLost},
		"too slow":                {fmt.Errorf("%w: %w", client.ErrDisconnected, client.ErrSlow), exitLost},
		"limit":                   {fmt.Errorf("%w: connections", client.ErrLimit), exitTryAgain},
		"not allowed to publish":  {refused(client.ErrNotAllowed), exitNotAllowed},
		"not allowed to connect":  {fmt.Errorf("%w: x: %w", client.ErrNoBroker, connect(unix.EACCES)), exitNotAllowed},
		"not allowed to serve":    {&fs.PathError{Op: "mkdir", Path: "/x", Err: unix.EACCES}, exitNotAllowed},
		"nobody":                  {refused(client.ErrNoSubscriber), exitNobody},
		"too large":               {refused(client.ErrTooLarge), exitFailed},
		"time-out":                {timeIsUp("not done within 1s"), exitTimeout},
		"time-out of sub":         {fmt.Errorf("0 of 1: %w", errTimeout), exitTimeout},
		"idle":                    {fmt.Errorf("0 of 1: %w", errIdle), exitTimeout},
		"interrupted":             {fmt.Errorf("0 of 1: %w", errInterrupted), exitFailed},
		"time-out while dialling": {fmt.Errorf("%w: %w", client.ErrNoBroker, timeIsUp("x")), exitTimeout},
		"broker does not answer":  {fmt.Errorf("%w: %w", client.ErrNoBroker, context.DeadlineExceeded), exitNoBroker},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("%s: exit code %d, want %d", name, got, test.want)
		}
		if got := exitCode(&runError{test.err}); test.err != nil && got != test.want {
			t.Errorf("%s, from a command: exit code %d, want %d", name, got, test.want)
		}
	}
}

// TestExitCodesExplained holds the help to name every code that can come.
func TestExitCodesExplained(t *testing.T) {
	explained := make(map[int]bool)
	for _, m := range exitMeanings {
		explained[m.code] = true
	}
	for _, e := range exitCodes {
		if !explained[e.code] {
			t.Errorf("exit code %d is not explained", e.code)
		}
	}
}
