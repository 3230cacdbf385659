package broker

import "errors"

// Returned by Serve and ServeDir.
var (
	// ErrClosed says that Shutdown or Close was called.
	ErrClosed = errors.New("broker: closed")
	// ErrIdle says that no client was there for Options.IdleExit.
	ErrIdle = errors.New("broker: no client for the idle time")
)

// ErrInUse is returned by OpenDir when a live broker serves the directory.
var ErrInUse = errors.New("broker: the bus directory is in use by a live broker")

// ErrBadOption is returned by New for options that cannot be: the text says which,
// and what is possible.
var ErrBadOption = errors.New("broker: bad option")
