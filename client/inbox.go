package client

import (
	"time"

	"github.com/postbus/postbus/wire"
)

// receiver is what a broker may send messages for. Its methods are readLoop's to call.
type receiver interface {
	// put takes a message that has frame bytes on the wire. It does not keep m.
	put(in *inbox, m *wire.Message, frame int) error

	// deliver hands over what put took since the last call. Client.mu must not be held.
	deliver()
}

// inbox gathers the messages of one read for their receivers, so that each of these is
// locked and woken once for all of them. It belongs to readLoop.
type inbox struct {
	targets map[uint32]receiver // those that the broker may send messages for
	target  receiver            // whose messages come now; nil for nobody
	touched []receiver          // those with something to deliver
	extend  bool                // the next message continues the newest batch of target
	topics  topics

	// Blocks are where items are put, one behind the other.
	messages   []Message
	deliveries []Delivery

	// What is at hand. They are here so that they are not allocated for each message.
	message wire.Message
	info    wire.MessageInfo
}

// Blocks hold what fits 16 KiB, a size that Go's allocator has.
const (
	messageBlock  = 136
	deliveryBlock = 63
)

// aim makes r the target of the messages that follow.
func (in *inbox) aim(r receiver) {
	if in.target != r {
		in.target, in.extend = r, false
	}
}

// forget ends number as a target.
func (in *inbox) forget(number uint32) {
	if r, ok := in.targets[number]; ok {
		delete(in.targets, number)
		if in.target == r {
			in.aim(nil)
		}
	}
}

// decode reads an info map; the result is valid until the next call.
func (in *inbox) decode(raw []byte) (*wire.MessageInfo, error) {
	in.info = wire.MessageInfo{}
	err := wire.DecodeOptions(raw, &in.info)
	return &in.info, err
}

// fill sets what is in w itself. m must be zero.
func (in *inbox) fill(m *Message, w *wire.Message, frame int) {
	m.Seq = w.Seq
	m.Time = time.Unix(0, w.Time)
	m.From = Peer{UID: w.UID, GID: w.GID, PID: w.PID}
	m.Topic = in.topics.intern(w.Topic)
	m.Body = w.Body
	m.headers = w.Headers
	m.size = frame
}

// deliver hands everything to the receivers.
func (in *inbox) deliver() {
	for i, r := range in.touched {
		r.deliver()
		in.touched[i] = nil
	}
	in.touched, in.extend = in.touched[:0], false
}

// topics makes topics into strings, and into the same string where that was met
// before. The zero topics is ready.
type topics struct {
	last string
	seen map[string]string
}

// maxTopics bounds how many are remembered; they have at most 1 KiB each.
const maxTopics = 256

func (t *topics) intern(topic []byte) string {
	if string(topic) == t.last {
		return t.last
	}
	s, ok := t.seen[string(topic)]
	if !ok {
		if t.seen == nil || len(t.seen) == maxTopics {
			t.seen = make(map[string]string)
		}
		s = string(topic)
		t.seen[s] = s
	}
	t.last = s
	return s
}
