package client

import (
	"context"

	"github.com/postbus/postbus/wire"
)

// stream is what lives on a connection under a number of its own and is opened again
// on the next: a Subscription or a Consumer. Client.mu is held when its methods are
// called, but for Drain and those of receiver.
type stream interface {
	receiver

	// ask sends what opens the stream on the present connection.
	ask()

	// confirm takes the broker's word that it is open.
	confirm(cn *connection, seq uint64)

	// disconnect says that the connection is lost; goodbye is what the broker said, if
	// it did.
	disconnect(goodbye *wire.Goodbye)

	// end says that nothing more comes, for the reason err.
	end(err error)

	// startDrain begins to end it in order, and reports whether it does end: one that
	// is not open does not.
	startDrain() bool

	Drain(ctx context.Context) error
}

// state is what the broker has been asked about a stream.
//
//	opening --> open --> draining --> ended
//	    |         |         |           ^
//	    +---------+---------+> closing -+
type state uint8

const (
	opening  state = iota // SUBSCRIBE or CONSUME
	open                  // SUBSCRIBED
	draining              // UNSUBSCRIBE with drain
	closing               // UNSUBSCRIBE
	ended
)

// freeNumber returns a number that nothing has on the connection; mu is held.
func (c *Client) freeNumber() uint32 {
	for {
		c.lastSub++
		if c.lastSub != 0 && c.streams[c.lastSub] == nil && c.peekOf(c.lastSub) == nil {
			return c.lastSub
		}
	}
}
