package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/store"
)

// The exit codes. Scripts depend on them: a number never changes its meaning.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2
	exitDamaged    = 65  // EX_DATAERR of sysexits.h
	exitNoQueue    = 66  // EX_NOINPUT
	exitNoBroker   = 69  // EX_UNAVAILABLE
	exitNotWritten = 73  // EX_CANTCREAT
	exitLost       = 74  // EX_IOERR
	exitTryAgain   = 75  // EX_TEMPFAIL
	exitNotAllowed = 77  // EX_NOPERM
	exitConflict   = 78  // EX_CONFIG
	exitNobody     = 100 // outside sysexits.h, which has no word for it
	exitTimeout    = 124 // as timeout(1)
)

// exitMeanings is what `postbus help exit-codes` shows.
var exitMeanings = []struct {
	code int
	when string
}{
	{exitOK, "all that was asked for was done"},
	{exitFailed, "it failed, and no other code says how"},
	{exitUsage, "wrong usage: an unknown command, flag or value, a bad topic or filter"},
	{exitDamaged, "queue check, salvage: what is kept is not what was written"},
	{exitNoQueue, "there is no such queue"},
	{exitNoBroker, "no broker answers there, or it went away and did not come back"},
	{exitNotWritten, "pull: standard output could not be written; what was not written went back to the queue"},
	{exitLost, "messages were lost: sub --strict met a gap, or was too slow for --policy disconnect"},
	{exitTryAgain, "a limit of the broker's is reached, or the queue is full or drained: try again later"},
	{exitNotAllowed, "not allowed: by the socket's mode, or by the broker"},
	{exitConflict, "queue create: the queue is there, with other settings"},
	{exitNobody, "pub --require-sub: nobody is subscribed"},
	{exitTimeout, "the time given by --timeout or --idle is over and what was asked for is not done"},
}

// errLost says that messages this command should have had are gone.
var errLost = errors.New("messages were lost")

// errNotWritten says that messages went back to their queue because they could not be
// written.
var errNotWritten = errors.New("not written")

// errNoQueue says that there is no such queue where no broker was asked.
var errNoQueue = errors.New("no such queue")

// errTimeIsUp is what every timeIsUp is.
var errTimeIsUp = errors.New("time is up")

// timeIsUp is the cause of a context that ended with the time its user gave, in
// words. Deadlines that others set, such as the client for its dialling, are none.
type timeIsUp string

func (t timeIsUp) Error() string        { return string(t) }
func (t timeIsUp) Is(target error) bool { return target == errTimeIsUp }

// withTimeout is context.WithTimeout, for ever when the time is 0, and with a cause.
func withTimeout(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, timeout, timeIsUp(fmt.Sprintf("not done within %v", timeout)))
}

// exitCodes maps errors to codes; the first that errors.Is finds counts. Not
// allowed comes before no broker: of the addresses tried one may be missing and
// another forbidden, and the forbidden one is where the broker is.
var exitCodes = []struct {
	err  error
	code int
}{
	{errUsage, exitUsage},
	{client.ErrBadTopic, exitUsage},
	{client.ErrBadFilter, exitUsage},
	{client.ErrBadOption, exitUsage},
	{errLost, exitLost},
	{client.ErrSlow, exitLost},
	{store.ErrDamaged, exitDamaged},
	{errNoQueue, exitNoQueue},
	{store.ErrNotAllowed, exitNotAllowed},
	{errNotWritten, exitNotWritten},
	{errOutputClosed, exitNotWritten},
	{errTimeIsUp, exitTimeout},
	{client.ErrLimit, exitTryAgain},
	{client.ErrQueueFull, exitTryAgain},
	{client.ErrDraining, exitTryAgain},
	{client.ErrNotFound, exitNoQueue},
	{client.ErrConflict, exitConflict},
	{client.ErrNoSubscriber, exitNobody},
	{client.ErrNotAllowed, exitNotAllowed},
	{fs.ErrPermission, exitNotAllowed},
	{client.ErrNoBroker, exitNoBroker},
	{client.ErrDisconnected, exitNoBroker},
	{client.ErrShutdown, exitNoBroker},
}

// exitCode returns the exit code that tells of err.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	for _, e := range exitCodes {
		if errors.Is(err, e.err) {
			return e.code
		}
	}
	return exitFailed
}

// errUsage is what every usage error is.
var errUsage = errors.New("usage")

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string        { return e.err.Error() }
func (e *usageError) Unwrap() error        { return e.err }
func (e *usageError) Is(target error) bool { return target == errUsage }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// newExitCodes returns the help topic about exit codes.
func newExitCodes() *cobra.Command {
	var text strings.Builder
	text.WriteString("postbus ends with one of these exit codes:\n\n")
	for _, m := range exitMeanings {
		fmt.Fprintf(&text, "  %3d  %s\n", m.code, m.when)
	}
	text.WriteString(`
A command that a signal ends has the usual 128 + signal, but for sub and
pull: SIGINT and SIGTERM are their normal end, so 0; or 1 when -n asked for more
than came.`)
	return &cobra.Command{Use: "exit-codes", Short: "What each exit code means", Long: text.String()}
}
