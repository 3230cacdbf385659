package client

import (
	"time"

	"github.com/postbus/postbus/wire"
)

// inbox gathers the messages of one read for their subscriptions, so that each of
// these is locked and woken once for all of them. It belongs to readLoop.
type inbox struct {
	targets map[uint32]*Subscription // those that the broker may send messages for
	target  *Subscription            // whose messages come now
	touched []*Subscription          // those with something in their arriving
	block   []Message                // where messages are put, one behind the other
	extend  bool                     // the next message continues the newest batch of target
	topics  topics
}

// A batch is messages, then perhaps a gap. The messages are a part of a block.
type batch struct {
	messages []Message
	gap      *Gap
}

// blockSize is how many messages are allocated at once: what fits 16 KiB, a size that
// Go's allocator has.
const blockSize = 136

// aim makes s the target of the messages that follow.
func (in *inbox) aim(s *Subscription) {
	if in.target != s {
		in.target, in.extend = s, false
	}
}

// put adds a message for the target, which takes frame bytes on the wire.
func (in *inbox) put(w *wire.Message, redelivered bool, frame int) {
	if len(in.block) == cap(in.block) {
		in.block, in.extend = make([]Message, 0, blockSize), false
	}
	n := len(in.block)
	in.block = append(in.block, Message{
		Seq:         w.Seq,
		Time:        time.Unix(0, w.Time),
		From:        Peer{UID: w.UID, GID: w.GID, PID: w.PID},
		Redelivered: redelivered,
		Topic:       in.topics.intern(w.Topic),
		Body:        w.Body,
		headers:     w.Headers,
		size:        frame,
	})
	a := &in.target.arriving
	if in.extend {
		last := &a.batches[len(a.batches)-1]
		last.messages = last.messages[:len(last.messages)+1]
	} else {
		in.touch(in.target)
		a.batches = append(a.batches, batch{messages: in.block[n : n+1]})
		in.extend = true
	}
	a.count++
	a.bytes += frame
	in.target.seen = w.Seq
}

// putGap adds a gap for s.
func (in *inbox) putGap(s *Subscription, gap *Gap) {
	in.touch(s)
	s.arriving.batches = append(s.arriving.batches, batch{gap: gap})
	in.extend = false
}

func (in *inbox) touch(s *Subscription) {
	if len(s.arriving.batches) == 0 {
		in.touched = append(in.touched, s)
	}
}

// deliver hands everything to the subscriptions.
func (in *inbox) deliver() {
	for i, s := range in.touched {
		s.deliver()
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
