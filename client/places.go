package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/postbus/postbus/wire"
)

// A place is a bus that a broker may serve.
type place struct {
	addresses []wire.Address // of the same broker, the preferred one first
	own       bool           // the user's own, by default: its broker must be the user's, or root's
}

// places returns where to look for a broker, in order, and whether that was named.
func (o *Options) places() (places []place, named bool, err error) {
	name := o.Address
	if name == "" {
		name = os.Getenv("POSTBUS_ADDRESS")
	}
	if name == "" {
		return []place{
			{addresses: wire.DirAddresses(wire.UserDir()), own: true},
			{addresses: wire.DirAddresses(wire.SystemDir)},
		}, false, nil
	}
	addresses, err := wire.ParseAddress(name)
	if err != nil {
		return nil, true, fmt.Errorf("%w: %w", ErrBadOption, err)
	}
	return []place{{addresses: addresses}}, true, nil
}

// attemptError says why nobody answered at one address, so that another may do.
type attemptError struct {
	address wire.Address
	err     error
	again   bool // the same address may do in a moment
}

func (e *attemptError) Error() string { return fmt.Sprintf("%s: %s%s", e.address, e.err, e.hint()) }

func (e *attemptError) Unwrap() error { return e.err }

// hint explains what the errno alone does not.
func (e *attemptError) hint() string {
	switch {
	case errors.Is(e.err, syscall.ECONNREFUSED):
		return " (the socket is there, but nobody serves it)"
	case errors.Is(e.err, syscall.EPROTOTYPE):
		other := "unix"
		if e.address.Network == other {
			other = "unixpacket"
		}
		return fmt.Sprintf(" (this is a socket of the other type: use %s:%s)", other, e.address.Path)
	case errors.Is(e.err, syscall.EAGAIN):
		return " (too many connections wait to be accepted)"
	case errors.Is(e.err, fs.ErrPermission):
		return fmt.Sprintf(" (the modes of the socket and its directory do not let uid %d in)", os.Getuid())
	}
	return ""
}

// searchError lists why nobody answered anywhere.
type searchError struct {
	attempts []error
	remedy   string
}

// sentinel is ErrNotAllowed where something is that this user may not use: then that is
// what needs mending.
func (e *searchError) sentinel() error {
	if slices.ContainsFunc(e.attempts, func(err error) bool { return errors.Is(err, fs.ErrPermission) }) {
		return ErrNotAllowed
	}
	return ErrNoBroker
}

func (e *searchError) Error() string {
	texts := make([]string, len(e.attempts))
	for i, err := range e.attempts {
		texts[i] = err.Error()
	}
	text := fmt.Sprintf("%v: %s", e.sentinel(), strings.Join(texts, "; "))
	if e.remedy != "" {
		text += "; " + e.remedy
	}
	return text
}

func (e *searchError) Unwrap() []error { return append([]error{e.sentinel()}, e.attempts...) }
