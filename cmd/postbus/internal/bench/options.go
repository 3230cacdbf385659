package bench

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/postbus/postbus/wire"
)

// Mode is what a bench measures.
type Mode string

// The modes.
const (
	Throughput Mode = "throughput" // deliveries a second, publishers streaming
	RoundTrip  Mode = "latency"    // there and back, one message in flight
	Steady     Mode = "rate"       // one-way latency at a steady rate
	Idle       Mode = "idle"       // broker memory of connections that do nothing

	// Of queues; Options.Queue and what comes with it choose among them.
	Queueing Mode = "queue"         // pushes and then takes a second
	OneByOne Mode = "one-at-a-time" // how long a push takes that waits for its ack
	Backlog  Mode = "backlog"       // what a push and a take cost, and a message weighs, where many wait
)

// Network is a socket type.
type Network string

// The networks. Both means one after the other.
const (
	Stream Network = "stream" // SOCK_STREAM
	Packet Network = "packet" // SOCK_SEQPACKET
	Both   Network = "both"
)

// Options adjusts Run. Each zero field means the default its comment gives.
type Options struct {
	Mode    Mode    // Throughput; Steady when Rate is given
	Network Network // Stream

	Publishers  int // 1
	Subscribers int // 1; for Idle 2,000
	Topics      int // 1: how many topics the messages go to in turn
	Size        int // bytes of a body, 128; at least 16

	// Rate is how many messages a second all publishers send together. 0 means
	// as fast as they can, for Steady 20,000.
	Rate int

	// A run ends after Messages of each publisher (or round trips) or, when that
	// is 0, after Duration, 2 s unless set.
	Messages int
	Duration time.Duration

	Runs      int         // 5
	Policy    wire.Policy // of the subscriptions; Block, so that nothing is lost
	Relay     bool        // run a bare relay in turn with the broker
	Suite     bool        // the whole list instead, of which only sizes, Runs, Duration and Messages can be set
	Address   string      // an existing broker, as wire.ParseAddress takes it; "": one of our own for each run
	Endpoints string      // "raw" or "client"; "raw"
	WriteSize int         // bytes a publisher hands over at once, 64 KiB
	ReadSize  int         // bytes the relay reads at once; 128 KiB, as the broker does

	// Queue is the level of a queue that is measured instead. Pushers push, each at most
	// Messages (1,000,000 together; in level kernel 22,000) and for at most Duration,
	// then Consumers take it all; in level kernel, which has not room for more, and
	// with Backlogs, 20 times.
	Queue      QueueLevel
	Pushers    int    // 1
	Consumers  int    // as many as Pushers
	Prefetch   int    // messages that a consumer has in flight, 1,000
	AckBatch   int    // messages that a consumer acknowledges at once at most; no limit
	OneAtATime bool   // each push waits for the ack of the one before
	Backlogs   []int  // push and take with that many messages in the queue, a scenario each
	Compare    Server // what to run in turn
	backlog    int    // of this scenario

	// CPUProfile names a file for a CPU profile of our own broker, of the last run. Of
	// queues there are several, its name with .push and .take, and .N of the rounds.
	CPUProfile string

	// Progress is told what is going on, a line at a time, each overwriting the
	// last. nil: nobody.
	Progress io.Writer
}

// Defaults and limits.
const (
	defaultSize      = 128
	defaultRate      = 20_000
	defaultDuration  = 2 * time.Second
	defaultRuns      = 5
	defaultIdle      = 2000
	defaultWriteSize = 64 << 10
	defaultReadSize  = 128 << 10 // as the broker reads

	// MinSize is the smallest body in bytes: a counter and a time are in it.
	MinSize = 16

	maxTopics = 100_000
	maxRuns   = 1000

	// grace is how long a run may take beyond its duration before it is given up:
	// starting 64 processes on a busy machine takes seconds.
	grace = 60 * time.Second

	// maxProcesses is the most subscriber processes; above it each has several
	// connections, on fewer processes (see processes).
	maxProcesses = 64
	manyInEach   = 125
)

// UsageError says that the options do not make sense.
type UsageError struct{ Text string }

// Error returns the text.
func (e *UsageError) Error() string { return e.Text }

func usage(format string, args ...any) error {
	return &UsageError{Text: fmt.Sprintf(format, args...)}
}

// withDefaults returns the options with the zero fields filled in.
func (o Options) withDefaults() Options {
	if o.Mode == "" {
		o.Mode = o.defaultMode()
	}
	if o.Mode == Steady && o.Rate == 0 {
		o.Rate = defaultRate
	}
	subscribers := 1
	if o.Mode == Idle {
		subscribers = defaultIdle
	}
	if o.Queue != "" {
		o.Pushers = orDefault(o.Pushers, 1)
		o.Consumers = orDefault(o.Consumers, o.Pushers)
		o.Prefetch = orDefault(o.Prefetch, defaultPrefetch)
		o.AckBatch = orDefault(o.AckBatch, wire.MaxPrefetch)
	}
	o.Network = orDefault(o.Network, Stream)
	o.Publishers = orDefault(o.Publishers, 1)
	o.Subscribers = orDefault(o.Subscribers, subscribers)
	o.Topics = orDefault(o.Topics, 1)
	o.Size = orDefault(o.Size, defaultSize)
	o.Duration = orDefault(o.Duration, defaultDuration)
	o.Runs = orDefault(o.Runs, defaultRuns)
	o.Policy = orDefault(o.Policy, wire.Block)
	o.Endpoints = orDefault(o.Endpoints, rawEndpoints)
	o.WriteSize = orDefault(o.WriteSize, defaultWriteSize)
	o.ReadSize = orDefault(o.ReadSize, defaultReadSize)
	return o
}

// defaultMode is the mode that the other options speak of.
func (o *Options) defaultMode() Mode {
	switch {
	case o.Queue != "" && o.OneAtATime:
		return OneByOne
	case o.Queue != "" && len(o.Backlogs) > 0:
		return Backlog
	case o.Queue != "":
		return Queueing
	case o.Rate > 0:
		return Steady
	}
	return Throughput
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

const (
	rawEndpoints    = "raw"
	clientEndpoints = "client"
)

// check reports the first option that makes no sense. It wants the defaults
// filled in.
func (o *Options) check() error {
	if o.Duration < 0 {
		return usage("a duration of %v: it must be above 0", o.Duration)
	}
	if o.Queue != "" {
		return o.checkQueue()
	}
	switch o.Mode {
	case Throughput, RoundTrip, Steady, Idle:
	default:
		return usage("mode %q is unknown: use throughput, latency, rate or idle", o.Mode)
	}
	switch o.Network {
	case Stream, Packet, Both:
	default:
		return usage("network %q is unknown: use stream, packet or both", o.Network)
	}
	if o.Endpoints != rawEndpoints && o.Endpoints != clientEndpoints {
		return usage("endpoints %q are unknown: use raw or client", o.Endpoints)
	}
	err := checkBounds([]bound{
		{"publishers", o.Publishers, 1, maxProcesses},
		{"subscribers", o.Subscribers, 1, 100_000},
		{"topics", o.Topics, 1, maxTopics},
		{"bytes of a message", o.Size, MinSize, wire.LargestMaxMessage},
		{"messages a second", o.Rate, 0, 1_000_000_000},
		{"messages", o.Messages, 0, 1 << 40},
		{"runs", o.Runs, 1, maxRuns},
		{"bytes of a write", o.WriteSize, 1, 64 << 20},
		{"bytes of a read", o.ReadSize, wire.DefaultMaxPacket, 64 << 20},
	})
	return cmp.Or(err, o.checkTogether())
}

// bound is what a number may be.
type bound struct {
	name            string
	value, min, max int
}

// checkBounds reports the first number out of its bounds.
func checkBounds(bounds []bound) error {
	for _, n := range bounds {
		if n.value < n.min || n.value > n.max {
			return usage("%d %s: use %d to %d", n.value, n.name, n.min, n.max)
		}
	}
	return nil
}

// checkTogether reports options that exclude each other.
func (o *Options) checkTogether() error {
	switch {
	case o.Pushers+o.Consumers+o.Prefetch+o.AckBatch+len(o.Backlogs) > 0 || o.OneAtATime || o.Compare != Postbus:
		return usage("pushers, consumers and what concerns them are for a bench of queues: name the level of a queue")
	case o.Relay && o.Endpoints == clientEndpoints:
		return usage("the relay has no client library to talk to: compare with raw endpoints")
	case o.Mode == Idle && o.Relay:
		return usage("mode idle has no relay to compare with")
	case o.Mode == RoundTrip && (o.Publishers != 1 || o.Subscribers != 1):
		return usage("mode latency is between two clients: leave publishers and subscribers at 1")
	case o.Mode == RoundTrip && o.Rate != 0:
		return usage("mode latency has one message in flight and no rate: use mode rate")
	case o.CPUProfile != "" && o.Address != "":
		return usage("a CPU profile needs a broker of our own: leave the address out")
	case o.Suite && o.Address != "":
		return usage("the suite measures brokers of its own: leave the address out")
	case o.Policy == wire.Disconnect:
		return usage("policy disconnect ends a subscriber that is slow, and with it the run: use another")
	case o.Relay && o.Policy != wire.Block:
		return usage("a relay waits for its slowest reader: compare it with policy block")
	}
	return nil
}
