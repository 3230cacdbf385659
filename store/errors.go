package store

import (
	"errors"
	"fmt"
)

// Of any call.
var (
	ErrClosed  = errors.New("store: closed")
	ErrDamaged = errors.New("store: damaged") // what is kept is not what was written
	ErrLost    = errors.New("store: lost")    // somebody removed messages behind the store; see LostError
)

// Of Open and Delete.
var (
	ErrBadName    = errors.New("store: bad name")    // not a name for a queue's files
	ErrInUse      = errors.New("store: in use")      // another process has it open
	ErrNotAllowed = errors.New("store: not allowed") // EACCES, EPERM: another user's, or another mode
)

// Of Append and Read.
var (
	ErrBadEntry = errors.New("store: bad entry") // a Kind or Seq the contract does not allow
	ErrFull     = errors.New("store: full")      // goes away when messages are removed
	ErrNoSpace  = errors.New("store: no space")  // the host has none left: disk, or kernel queues
	ErrTooLarge = errors.New("store: too large") // would not fit an empty store either
	ErrNotFound = errors.New("store: no such message")
)

// failure is an error in words for a person: the thing, the limit, the remedy. Both
// its kind, one of the sentinels above, and its cause, mostly a unix.Errno, answer
// errors.Is.
type failure struct {
	kind  error
	cause error // or nil
	text  string
}

// fail returns an error of kind with cause inside; the text names thing, limit and remedy.
func fail(kind, cause error, format string, args ...any) error {
	return &failure{kind: kind, cause: cause, text: fmt.Sprintf(format, args...)}
}

func (f *failure) Error() string {
	if f.cause == nil {
		return "store: " + f.text
	}
	return "store: " + f.text + ": " + f.cause.Error()
}

func (f *failure) Unwrap() []error {
	if f.cause == nil {
		return []error{f.kind}
	}
	return []error{f.kind, f.cause}
}

// LostError tells that messages are gone without a Remove: somebody removed kernel
// queues (ipcrm, logind's RemoveIPC), or the host was started again. The store has
// made itself whole and goes on; the call that returns a LostError has done its work
// as far as it could, so the n of Append stands. errors.Is(err, ErrLost) holds, and
// that for the errno that told of it.
type LostError struct {
	Name     string   // of the queue
	Messages int      // how many were lost; -1 where nobody can know
	Seqs     []uint64 // which, in order, where the store knew
	Why      string   // what happened, for a person
	Errno    error    // what the kernel said, or nil
}

func (e *LostError) Error() string {
	text := fmt.Sprintf("store: queue %s lost %d messages: %s", e.Name, e.Messages, e.Why)
	switch {
	case e.Messages == 1:
		text = fmt.Sprintf("store: queue %s lost 1 message: %s", e.Name, e.Why)
	case e.Messages < 0:
		text = fmt.Sprintf("store: queue %s lost its messages, it is not known how many: %s", e.Name, e.Why)
	}
	if e.Errno != nil {
		text += ": " + e.Errno.Error()
	}
	return text
}

func (e *LostError) Unwrap() []error {
	if e.Errno == nil {
		return []error{ErrLost}
	}
	return []error{ErrLost, e.Errno}
}
