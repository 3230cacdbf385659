package client

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/postbus/postbus/wire"
)

// Defaults and fixed limits.
const (
	defaultReconnectMin = 10 * time.Millisecond
	defaultReconnectMax = 2 * time.Second
	defaultReconnectFor = time.Minute // outlasts a restart of the broker by an operator
	defaultCredit       = 1 << 20     // bytes: some thousand small messages, one of the largest by default

	// dialTimeout bounds Dial where its context has no deadline, and each attempt
	// to reconnect.
	dialTimeout = 5 * time.Second

	// retryMin and retryMax bound the back-off while a broker is there but does not
	// take the connection yet: a full backlog, or one that is just starting.
	retryMin = 2 * time.Millisecond
	retryMax = 100 * time.Millisecond

	// closeTimeout is how long Close tries to write what is still pending.
	closeTimeout = 500 * time.Millisecond

	// lingerTimeout is how long a connection is still read after a write to it failed.
	lingerTimeout = time.Second

	maxName = 64 // bytes, PROTOCOL.md
)

// Options adjusts Dial and NewClient. Each zero field means the default its comment
// gives.
type Options struct {
	// Address is where the broker is: unixpacket:PATH, unix:PATH, or the path of a
	// bus directory. "" means $POSTBUS_ADDRESS, and where that is not set the user's
	// own bus, then the system's.
	Address string

	// Name is what the broker calls this client in its log, 64 bytes at most. ""
	// means the name of the program.
	Name string

	// Autostart starts a broker of the user's own when no address was named and
	// none answers. It leaves by itself when it is no longer used. The environment
	// variable POSTBUS_AUTOSTART=0 forbids it.
	Autostart bool

	// AutostartCommand is the program, looked up in PATH, and the arguments that
	// start it. It runs detached from this process, with /dev/null for its input
	// and outputs. Empty means postbus serve --autostart.
	AutostartCommand []string

	// NoReconnect ends the client when its connection is lost.
	NoReconnect bool

	// ReconnectMin and ReconnectMax bound the pauses between attempts to reconnect;
	// each is about twice the one before, with jitter. 0 means 10 ms and 2 s.
	ReconnectMin, ReconnectMax time.Duration

	// ReconnectFor is how long a lost connection is tried again before the client
	// ends. 0 means 60 s; a negative value never gives up.
	ReconnectFor time.Duration

	// Window is how much may be published and not yet answered by the broker, in
	// bytes as sent; then Publish waits. 0 or a negative value, and one above the
	// broker's own limit, mean that limit.
	Window int

	// Logger gets what happens to the connection, and refused messages that nobody
	// waited for. Nil means silence.
	Logger hclog.Logger
}

// withDefaults returns a copy that has no zero fields where those mean something else.
func (o *Options) withDefaults() (Options, error) {
	var opts Options
	if o != nil {
		opts = *o
	}
	if len(opts.Name) > maxName {
		return opts, fmt.Errorf("%w: Name has %d bytes, the limit is %d", ErrBadOption, len(opts.Name), maxName)
	}
	if opts.Name == "" {
		opts.Name = filepath.Base(os.Args[0])
		opts.Name = opts.Name[:min(len(opts.Name), maxName)]
	}
	opts.AutostartCommand = slices.Clone(opts.AutostartCommand)
	if len(opts.AutostartCommand) == 0 {
		opts.AutostartCommand = []string{"postbus", "serve", "--autostart"}
	}
	if opts.ReconnectMin <= 0 {
		opts.ReconnectMin = defaultReconnectMin
	}
	if opts.ReconnectMax <= 0 {
		opts.ReconnectMax = defaultReconnectMax
	}
	opts.ReconnectMax = max(opts.ReconnectMin, opts.ReconnectMax)
	if opts.ReconnectFor == 0 {
		opts.ReconnectFor = defaultReconnectFor
	}
	if opts.Logger == nil {
		opts.Logger = hclog.NewNullLogger()
	}
	opts.Logger = opts.Logger.Named("client")
	return opts, nil
}

// PublishOptions adjusts one message.
type PublishOptions struct {
	// Headers go to the subscribers with the message: 16 KiB encoded at most.
	Headers map[string]string

	// RequireSubscriber has the broker refuse the message, with ErrNoSubscriber,
	// when nobody is subscribed to its topic.
	RequireSubscriber bool
}

// Policy says what the broker does when it may buffer no more for a subscription.
type Policy = wire.Policy

// The policies. The zero Policy means DropOld.
const (
	DropOld    = wire.DropOld    // the oldest buffered message goes
	DropNew    = wire.DropNew    // the arriving message goes
	Latest     = wire.Latest     // of each topic only the newest is buffered; then as DropOld
	Block      = wire.Block      // whoever publishes to it waits
	Disconnect = wire.Disconnect // the connection ends; the client makes it again and tells the gap
)

// SubscribeOptions adjusts one subscription. Each zero field means the default its
// comment gives.
type SubscribeOptions struct {
	// Filters are further filters of the same subscription, 63 at most. A message
	// that matches several comes once.
	Filters []string

	// Policy says what happens when the program is slower than the publishers and
	// the buffers are full. 0 means DropOld.
	Policy Policy

	// BufferMessages and BufferBytes bound what the broker buffers for the
	// subscription. 0 means the broker's defaults, 65,536 messages and 8 MiB.
	BufferMessages, BufferBytes int

	// Credit is how much waits in this process until Next takes it, in bytes as
	// sent; one message may go beyond. 0 means 1 MiB; a negative value means no
	// limit, so that nothing is ever buffered in the broker for lack of reading.
	Credit int

	// NoLocal leaves out what this client publishes itself.
	NoLocal bool
}

// Level says what the messages of a queue survive.
type Level = wire.Level

// The levels, the weakest first.
const (
	LevelNone         = wire.LevelNone         // of a receipt: no queue took the message
	LevelMemory       = wire.LevelMemory       // nothing: they are in the broker's memory
	LevelKernel       = wire.LevelKernel       // the broker's end, kill -9 too; not a reboot
	LevelDiskInterval = wire.LevelDiskInterval // that, and a loss of power but for the last moments
	LevelDisk         = wire.LevelDisk         // a loss of power
)

// QueueOptions is what a queue is declared with. Each zero field means the default its
// comment gives.
type QueueOptions struct {
	// Level is where messages are kept: "memory", "kernel" or "disk". "" means memory.
	Level string

	// Bind are filters: what is published to a topic that matches one of them is
	// pushed to the queue too.
	Bind []string

	// MaxMessages and MaxBytes bound what the queue holds; bytes are those of bodies
	// and headers. 0 means 1,000,000 messages, and 256 MiB in memory, 1 GiB on disk,
	// what the kernel gives in the kernel.
	MaxMessages int
	MaxBytes    int64

	// WhenFull is what becomes of a push to a full queue: "reject" (its error is
	// ErrQueueFull), "block" (it waits) or "drop-old" (the oldest messages go). ""
	// means reject.
	WhenFull string

	// Lease is how long a delivered message is its consumer's alone; then it is
	// delivered again. 0 means 30 s.
	Lease time.Duration

	// MaxTries is how often a message is delivered before it becomes a dead letter.
	// 0 means 10; a negative number means no limit.
	MaxTries int

	// DeadLetter names the queue that takes this one's dead letters. "" means that
	// they are set aside in the queue itself.
	DeadLetter string

	// TTL is how long a message waits that does not say itself; then it is dropped.
	// 0 means for ever.
	TTL time.Duration

	// Dedup is how long the ids of messages are remembered. 0 means 2 minutes; a
	// negative value means not at all.
	Dedup time.Duration

	// SyncInterval, for level disk, has the broker acknowledge pushes before the disk
	// has them and sync that often. 0 means that it syncs first.
	SyncInterval time.Duration
}

// PushOptions adjusts one message pushed to a queue.
type PushOptions struct {
	// Headers go with the message: 16 KiB encoded at most.
	Headers map[string]string

	// ID makes it safe to push again what may have arrived: a second message with the
	// same id is acknowledged and dropped, as long as the queue remembers the first
	// (QueueOptions.Dedup). 128 bytes at most.
	ID string

	// Key keeps the order of those who share it: only one message of a key is in
	// flight at a time. 256 bytes at most.
	Key string

	// Priority is 0 to 9; messages with a higher one come first.
	Priority int

	// Delay and At, of which one may be given, say when the message is to be
	// delivered at the earliest.
	Delay time.Duration
	At    time.Time

	// TTL is how long it waits to be delivered; then it is dropped. 0 means the
	// queue's.
	TTL time.Duration
}

// ConsumeOptions adjusts one consumer. Each zero field means the default its comment
// gives.
type ConsumeOptions struct {
	// Prefetch is how many messages this consumer has leases on at most, those that
	// wait in this process until Next takes them included. 0 means 64; 65,535 is the
	// most.
	Prefetch int

	// Lease is how long a delivery is this consumer's alone. 0 means the queue's.
	Lease time.Duration

	// ExtendLeases extends the leases of deliveries that Next has given out, as long
	// as they are not settled. Those that still wait in this process are not extended,
	// so that others get them when this one is too slow.
	ExtendLeases bool
}

// PeekOptions says which messages of a queue are looked at.
type PeekOptions struct {
	// State is "ready", "delayed", "leased" or "dead"; "" means all but the dead
	// letters.
	State string

	// From is the seq to begin at.
	From uint64

	// Limit is how many there are at most. 0 means all.
	Limit int
}
