package wire

import (
	"fmt"
	"math"
	"unicode/utf8"
)

// QueueTopic is what the topic of a push to a queue by its name begins with; the
// queue's name follows.
const QueueTopic = "@queue/"

// FeatureQueues is the name, in HELLO and WELCOME, of all that this file has.
const FeatureQueues = "queues"

// Bounds of what a queue is told.
const (
	MaxQueueName = 64  // bytes
	MaxID        = 128 // bytes of PublishOptions.ID
	MaxKey       = 256 // bytes of PublishOptions.Key
	MaxReason    = 256 // bytes of Settle.Reason
	MaxPriority  = 9
	MaxPrefetch  = 65535
	MaxPeek      = 1000 // messages a QUEUE frame may ask for
)

// Queue is the body of a QUEUE frame: what a client asks of a queue.
type Queue struct {
	Token    uint64         `msgpack:"token"`              // comes back in the answer
	Op       string         `msgpack:"op"`                 // one of the Ops
	Queue    string         `msgpack:"queue,omitempty"`    // its name; list has none
	Settings *QueueSettings `msgpack:"settings,omitempty"` // of declare
	Sub      uint32         `msgpack:"sub,omitempty"`      // of peek: what TARGET names
	State    string         `msgpack:"state,omitempty"`    // of peek and purge: which messages
	From     uint64         `msgpack:"from,omitempty"`     // of peek: the first number
	Limit    int            `msgpack:"limit,omitempty"`    // of peek and requeue: how many at most
}

// What Queue.Op asks for.
const (
	OpDeclare = "declare" // make the queue, if it is not there with the same settings
	OpDelete  = "delete"  // remove it with everything in it
	OpList    = "list"    // all queues
	OpInfo    = "info"    // this one
	OpPeek    = "peek"    // messages, which stay where they are
	OpPurge   = "purge"   // remove messages that nobody has a lease on
	OpPause   = "pause"   // no deliveries
	OpResume  = "resume"  // ends pause and drain
	OpDrain   = "drain"   // takes no pushes; the answer comes when it is empty
	OpRequeue = "requeue" // dead letters back to where they were
)

// What a message of a queue is, as Queue.State and MessageInfo.State have it.
const (
	StateReady   = "ready"
	StateDelayed = "delayed"
	StateLeased  = "leased"
	StateDead    = "dead"
)

// What Queue.Settings.WhenFull may be.
const (
	WhenFullReject  = "reject"   // the push is answered with CodeFull (the default)
	WhenFullBlock   = "block"    // the answer waits until there is room
	WhenFullDropOld = "drop-old" // the oldest waiting messages go
)

// QueueSettings are what a queue is declared with. A zero field asks for the default.
type QueueSettings struct {
	Level       string   `msgpack:"level,omitempty"`        // memory, kernel or disk
	Bind        []string `msgpack:"bind,omitempty"`         // filters: messages published to them are pushed too
	MaxMessages int64    `msgpack:"max_messages,omitempty"` // most it holds
	MaxBytes    int64    `msgpack:"max_bytes,omitempty"`    // most their bodies and headers take
	WhenFull    string   `msgpack:"when_full,omitempty"`
	LeaseMS     int64    `msgpack:"lease_ms,omitempty"`    // how long a delivered message is its consumer's
	MaxTries    int64    `msgpack:"max_tries,omitempty"`   // deliveries before it is a dead letter; -1: no limit
	DeadLetter  string   `msgpack:"dead_letter,omitempty"` // the queue that takes dead letters; "": they are set aside in this one
	TTLMS       int64    `msgpack:"ttl_ms,omitempty"`      // of messages that do not say; 0: for ever
	DedupMS     int64    `msgpack:"dedup_ms,omitempty"`    // how long ids are remembered; -1: not
	SyncMS      int64    `msgpack:"sync_ms,omitempty"`     // level disk: acknowledge before the disk has it, and sync that often; 0: sync first
}

// QueueInfo is what is to be known of a queue.
type QueueInfo struct {
	Name     string        `msgpack:"name"`
	Settings QueueSettings `msgpack:"settings"` // all definite
	Owner    uint32        `msgpack:"owner"`    // the uid that declared it
	Paused   bool          `msgpack:"paused"`
	Draining bool          `msgpack:"draining"`
	Trouble  string        `msgpack:"trouble,omitempty"` // why it does not take pushes now

	Ready     int64 `msgpack:"ready"`     // messages that wait for a consumer
	Delayed   int64 `msgpack:"delayed"`   // whose time has not come
	Leased    int64 `msgpack:"leased"`    // in flight
	Dead      int64 `msgpack:"dead"`      // dead letters
	Bytes     int64 `msgpack:"bytes"`     // of all of these
	Consumers int64 `msgpack:"consumers"` // open now
	OldestMS  int64 `msgpack:"oldest_ms"` // age of the oldest that is ready
	StoreUsed int64 `msgpack:"store_used"`
	StoreFree int64 `msgpack:"store_free"` // -1: the store has no limit of its own

	// Since the broker started.
	Pushed      uint64 `msgpack:"pushed"`
	Delivered   uint64 `msgpack:"delivered"`
	Redelivered uint64 `msgpack:"redelivered"`
	Acked       uint64 `msgpack:"acked"`
	Nacked      uint64 `msgpack:"nacked"`
	Expired     uint64 `msgpack:"expired"`    // gone by their TTL
	Dropped     uint64 `msgpack:"dropped"`    // gone by drop-old
	Duplicates  uint64 `msgpack:"duplicates"` // acknowledged and not kept, for their id was known
	Lost        uint64 `msgpack:"lost"`       // gone behind the broker's back
}

// Queued is the body of a QUEUED frame, the answer to QUEUE.
type Queued struct {
	Token  uint64      `msgpack:"token"`
	Count  int64       `msgpack:"count"`            // messages concerned: sent, purged, requeued
	Queues []QueueInfo `msgpack:"queues,omitempty"` // of declare, list, info
	More   bool        `msgpack:"more,omitempty"`   // another QUEUED with this token follows
	Next   uint64      `msgpack:"next,omitempty"`   // of peek: where to go on; 0: there is no more
}

// Consume is the body of a CONSUME frame; it is answered as SUBSCRIBE is.
type Consume struct {
	Sub      uint32 `msgpack:"sub"`                // the client's number, among those of its subscriptions
	Queue    string `msgpack:"queue"`              // its name
	Prefetch int    `msgpack:"prefetch,omitempty"` // most messages in flight; 0: DefaultPrefetch
	LeaseMS  int64  `msgpack:"lease_ms,omitempty"` // 0: the queue's
}

// DefaultPrefetch is how many messages a consumer that does not say has in flight at most.
const DefaultPrefetch = 64

// Verb is what SETTLE does with messages in flight.
type Verb uint8

// The verbs. The numbers are for ever; new ones are only added.
const (
	VerbAck    Verb = 1 // done: they are gone for good
	VerbNack   Verb = 2 // not done: deliver them again, after Arg ms
	VerbReject Verb = 3 // never: to the dead letters, with the reason
	VerbExtend Verb = 4 // not yet: the lease ends Arg ms from now; 0: the consumer's lease
)

var verbNames = [...]string{"", "ack", "nack", "reject", "extend"}

// String returns the verb's name.
func (v Verb) String() string {
	if int(v) < len(verbNames) && v != 0 {
		return verbNames[v]
	}
	return fmt.Sprintf("verb %d", uint8(v))
}

// Settle is a SETTLE frame: [22, sub, verb, first, last, arg, reason]. It concerns each
// message from First to Last that consumer Sub has a lease on.
type Settle struct {
	Sub         uint32
	Verb        Verb
	First, Last uint64
	Arg         int64  // ms, see the verbs
	Reason      []byte // of reject: UTF-8; a view into the payload when decoded
}

// AppendSettle appends the whole frame.
func AppendSettle(dst []byte, s *Settle) []byte {
	start := len(dst)
	dst = append(beginFrame(dst), 0x97, byte(TypeSettle))
	dst = appendUint(dst, uint64(s.Sub))
	dst = appendUint(dst, uint64(s.Verb))
	dst = appendUint(dst, s.First)
	dst = appendUint(dst, s.Last)
	dst = appendUint(dst, uint64(max(s.Arg, 0)))
	dst = appendStr(dst, s.Reason)
	return endFrame(dst, start)
}

// Decode reads a SETTLE payload without copying.
func (s *Settle) Decode(payload []byte) error {
	r := reader{b: payload}
	r.head(7, TypeSettle)
	s.Sub = r.uint32()
	verb := r.uint32()
	s.First = r.uint()
	s.Last = r.uint()
	arg := r.uint()
	if verb > math.MaxUint8 || arg > math.MaxInt64 {
		r.bad = true
	}
	s.Verb, s.Arg = Verb(verb), int64(arg)
	s.Reason = r.str()
	if !utf8.Valid(s.Reason) { // other consumers get to see it
		r.fail()
	}
	return r.end("SETTLE")
}

// AppendSettled appends a SETTLED frame, [23, upto]: the SETTLE frames of this connection
// up to that number, counted from 1, were carried out.
func AppendSettled(dst []byte, upTo uint64) []byte { return appendOne(dst, TypeSettled, upTo) }

// DecodeSettled reads a SETTLED payload.
func DecodeSettled(payload []byte) (upTo uint64, err error) {
	r := reader{b: payload}
	r.head(2, TypeSettled)
	upTo = r.uint()
	return upTo, r.end("SETTLED")
}

// Level says what a queue's messages survive.
type Level uint8

// The levels, the weakest first. The numbers are for ever.
const (
	LevelNone         Level = 0 // no queue took it
	LevelMemory       Level = 1 // nothing
	LevelKernel       Level = 2 // kill -9 of the broker; not a reboot
	LevelDiskInterval Level = 3 // kill -9; loss of power but for the last moments
	LevelDisk         Level = 4 // loss of power
)

var levelNames = [...]string{"none", "memory", "kernel", "disk-interval", "disk"}

// String returns the level's name.
func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return fmt.Sprintf("level %d", uint8(l))
}

// CheckQueueName reports whether name may be a queue's: 1 to 64 of the characters A-Z, a-z,
// 0-9, ".", "_" and "-", the first a letter or a digit.
func CheckQueueName(name string) error {
	why := ""
	switch {
	case name == "":
		why = "it is empty"
	case len(name) > MaxQueueName:
		why = fmt.Sprintf("it has %d bytes, the limit is %d", len(name), MaxQueueName)
	case !alphanumeric(name[0]):
		why = "it must begin with a letter or a digit"
	}
	for i := range len(name) {
		if c := name[i]; why == "" && !alphanumeric(c) && c != '.' && c != '_' && c != '-' {
			why = "it may have letters, digits, dots, underscores and hyphens only"
		}
	}
	if why == "" {
		return nil
	}
	return &Error{Code: CodeBadOption, Text: fmt.Sprintf("queue name %s: %s", quote(name), why)}
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
