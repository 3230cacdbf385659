package broker

import (
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/postbus/postbus/wire"
)

// Options adjusts New. Each zero field means the default its comment gives; a
// negative number means no limit, a negative duration that it never happens.
type Options struct {
	// MaxMessage is the largest body, in bytes. 0 means 1 MiB; at most 64 MiB.
	MaxMessage int

	// Window is how many bytes of PUBLISH frames a connection may have without a
	// verdict. 0 means 2 MiB; at least 64 KiB.
	Window int

	// BufferMessages and BufferBytes bound what the broker buffers for a
	// subscription that does not say. 0 means 65,536 messages and 8 MiB.
	BufferMessages int
	BufferBytes    int

	// MaxConnectionBytes and MaxUserBytes bound what the broker keeps for one
	// connection and for all connections of one uid: subscriptions and what they
	// buffer, frames not complete, answers not read, in bytes. 0 means 64 MiB and
	// 512 MiB; each is at least four of the largest messages.
	MaxConnectionBytes int
	MaxUserBytes       int

	// MaxConnections bounds the connections, MaxUserConnections those of one uid.
	// 0 means 10,000 and 8,000.
	MaxConnections     int
	MaxUserConnections int

	// MaxSubscriptions bounds the subscriptions of one connection. 0 means 4,096.
	MaxSubscriptions int

	// StateDir is where the queues of level kernel and disk are kept; it is made if it
	// is not there. "" means that there are none.
	StateDir string

	// MaxQueues bounds the queues. 0 means 1,024.
	MaxQueues int

	// MaxQueueMemory bounds what all queues of level memory hold together, in bytes. 0
	// means 1 GiB.
	MaxQueueMemory int64

	// HelloTimeout is how long a connection may take until its HELLO, FrameTimeout
	// how long a frame may stay incomplete, and StallTimeout how long a client may
	// read nothing of what waits for it (one with a subscription of policy block
	// is let wait: that is what it asked for). 0 means 10 s, 30 s and 60 s.
	HelloTimeout time.Duration
	FrameTimeout time.Duration
	StallTimeout time.Duration

	// DrainTimeout is how long an orderly stop gives clients to read what is
	// buffered for them. 0 means 5 s.
	DrainTimeout time.Duration

	// IdleExit makes Serve return ErrIdle when no client has been connected for
	// that long. 0 means never.
	IdleExit time.Duration

	// Logger gets what happens at start, at stop and when a client did wrong.
	// nil means silence.
	Logger hclog.Logger

	// Version is told to clients. "" means "postbus".
	Version string
}

const (
	defaultWindow   = 2 << 20
	smallestWindow  = 64 << 10
	defaultMessages = 65536
	defaultBytes    = 8 << 20
	unlimited       = int(^uint(0) >> 1)
	forever         = time.Duration(1<<63 - 1)
)

// withDefaults returns a copy with every zero and negative field made definite.
func (o *Options) withDefaults() (Options, error) {
	var c Options
	if o != nil {
		c = *o
	}
	size := func(v *int, def int) {
		if *v == 0 {
			*v = def
		} else if *v < 0 {
			*v = unlimited
		}
	}
	size(&c.MaxMessage, wire.DefaultMaxMessage)
	size(&c.Window, defaultWindow)
	size(&c.BufferMessages, defaultMessages)
	size(&c.BufferBytes, defaultBytes)
	size(&c.MaxConnectionBytes, 64<<20)
	size(&c.MaxUserBytes, 512<<20)
	size(&c.MaxConnections, 10000)
	size(&c.MaxUserConnections, 8000)
	size(&c.MaxSubscriptions, 4096)
	size(&c.MaxQueues, 1024)
	if c.MaxQueueMemory == 0 {
		c.MaxQueueMemory = 1 << 30
	} else if c.MaxQueueMemory < 0 {
		c.MaxQueueMemory = math.MaxInt64
	}
	span := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		} else if *v < 0 {
			*v = forever
		}
	}
	span(&c.HelloTimeout, 10*time.Second)
	span(&c.FrameTimeout, 30*time.Second)
	span(&c.StallTimeout, 60*time.Second)
	span(&c.DrainTimeout, 5*time.Second)
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Version == "" {
		c.Version = "postbus"
	}
	if c.MaxMessage > wire.LargestMaxMessage {
		return c, fmt.Errorf("%w: a message limit of %d bytes is above the largest possible, %d", ErrBadOption, c.MaxMessage, wire.LargestMaxMessage)
	}
	if c.Window < smallestWindow {
		return c, fmt.Errorf("%w: a window of %d bytes is below the smallest possible, %d", ErrBadOption, c.Window, smallestWindow)
	}
	c.Window = min(c.Window, 1<<30)
	c.MaxConnectionBytes = max(c.MaxConnectionBytes, 4*wire.FrameLimit(c.MaxMessage))
	c.MaxUserBytes = max(c.MaxUserBytes, 4*wire.FrameLimit(c.MaxMessage))
	return c, nil
}
