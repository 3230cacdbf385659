package broker

import (
	"fmt"
	"slices"

	"github.com/postbus/postbus/wire"
)

// subscription is one SUBSCRIBE of a peer.
//
// Within a turn of the loop its messages are spans of the loop's turn buffer,
// which it shares with all others. What cannot be written at the end of the turn
// is copied into its backlog, where its policy rules.
type subscription struct {
	peer        *peer
	id          uint32
	filters     []string
	policy      wire.Policy
	maxMessages int
	maxBytes    int
	noLocal     bool
	credited    bool  // the client grants credit
	credit      int64 // bytes that may still be sent

	spans   []span // of this turn
	queue   backlog
	cost    int  // bytes that its filters take
	charged int  // bytes that the peer is charged
	listed  bool // in peer.active

	delivered uint64
	dropped   uint64
	waiting   []*peer // publishers whose verdicts it holds back (policy block)

	tapped *workQueue // it is a queue's, and has no peer: what follows is all it uses

	seats    []seat // in topics
	since    uint64 // version of topics when it came
	mark     uint64 // of topics
	left     bool   // it is out of topics: it takes no new messages
	draining bool   // an UNSUBSCRIBE with drain was read
	closed   bool
}

// span is part of the turn buffer: whole MESSAGE frames.
type span struct {
	from, to int
	index    int // messages of the turn that lie before it
	messages int // in it
}

// take adds a span to what the subscription gets this turn.
func (s *subscription) take(l *loop, add span) {
	if k := len(s.spans); k > 0 && s.spans[k-1].to == add.from {
		s.spans[k-1].to = add.to
		s.spans[k-1].messages += add.messages
	} else {
		s.spans = append(s.spans, add)
	}
	s.list(l)
}

// list puts the subscription among those that have something to send.
func (s *subscription) list(l *loop) {
	if !s.listed {
		s.listed = true
		s.peer.active = append(s.peer.active, s)
	}
	l.touch(s.peer)
}

// idle reports whether nothing is there to be sent.
func (s *subscription) idle() bool { return len(s.spans) == 0 && s.queue.quiet() }

// mayWrite reports whether credit lasts for another message.
func (s *subscription) mayWrite() bool { return !s.credited || s.credit > 0 }

// allowance is the credit there is, in bytes.
func (s *subscription) allowance() int64 {
	if s.credited {
		return s.credit
	}
	return int64(unlimited)
}

// sent counts messages that were given to the connection.
func (s *subscription) sent(l *loop, messages, bytes int) {
	s.delivered += uint64(messages)
	l.stats.Delivered += uint64(messages)
	if s.credited {
		s.credit -= int64(bytes)
	}
}

func (s *subscription) drop(l *loop, messages int) {
	s.dropped += uint64(messages)
	l.stats.Dropped += uint64(messages)
}

// full reports whether the buffer's bound is reached. An empty buffer never is: it
// could not become emptier, and whoever waits for that would wait for ever.
func (s *subscription) full(l *loop) bool {
	if s.queue.messages == 0 {
		return false
	}
	return s.queue.messages >= s.maxMessages || s.queue.size >= s.maxBytes || !l.room(s.peer, 0)
}

// fits reports whether the buffer takes so many more messages and bytes. A message
// above the bound fits an empty buffer, else it could never pass.
func (s *subscription) fits(l *loop, messages, size int) bool {
	q := &s.queue
	if !l.room(s.peer, size) {
		return false
	}
	return q.messages+messages <= s.maxMessages && q.size+size <= s.maxBytes || q.messages == 0 && messages == 1
}

// spill copies what is left of this turn into the backlog.
func (s *subscription) spill(l *loop) {
	for _, sp := range s.spans {
		if s.closed {
			return
		}
		frames := l.turn[sp.from:sp.to]
		if s.policy == wire.Block && !l.room(s.peer, len(frames)) {
			l.end(s.peer, wire.CodeLimit, "what waits for your block subscriptions is more than the broker keeps for one connection or one user: read faster, or raise its limits")
			return
		}
		if s.policy == wire.Block || s.policy != wire.Latest && s.fits(l, sp.messages, len(frames)) {
			s.queue.push(frames, sp.messages)
			s.recharge()
			continue
		}
		for len(frames) > 0 && !s.closed {
			n := frameSize(frames)
			s.keep(l, frames[:n])
			frames = frames[n:]
		}
	}
	s.spans = s.spans[:0]
}

// recharge charges the peer for what the subscription takes now.
func (s *subscription) recharge() {
	now := s.cost + s.queue.memory + s.queue.index
	s.peer.charge(now - s.charged)
	s.charged = now
}

// keep puts one message into the backlog, as the policy has it.
func (s *subscription) keep(l *loop, frame []byte) {
	q, seq := &s.queue, wire.FrameSeq(frame)
	if s.policy == wire.Latest {
		s.drop(l, q.supersede(wire.FrameTopic(frame)))
	}
	if !s.fits(l, 1, len(frame)) {
		switch s.policy {
		case wire.DropNew:
			q.after.add(seq, seq, 1, wire.ReasonDropNew)
			s.drop(l, 1)
			return
		case wire.Disconnect:
			l.end(s.peer, wire.CodeSlow, fmt.Sprintf(
				"subscription %d was too slow: its buffer of %d messages and %d bytes is full and its policy is disconnect",
				s.id, s.maxMessages, s.maxBytes))
			return
		}
		if !s.makeRoom(l, len(frame)) {
			q.before.add(seq, seq, 1, wire.ReasonDropOld)
			s.drop(l, 1)
			return
		}
	}
	q.push(frame, 1)
	s.recharge()
}

// makeRoom drops the oldest messages until one of size bytes fits. It reports
// false when everything is dropped and it still does not: then the connection or
// the uid is at its bound.
func (s *subscription) makeRoom(l *loop, size int) bool {
	for !s.fits(l, 1, size) {
		if s.queue.empty() {
			return false
		}
		s.drop(l, s.queue.dropHead(wire.ReasonDropOld))
		s.recharge()
	}
	return true
}

// hold makes the publisher wait for its verdicts until the subscription has room.
func (s *subscription) hold(l *loop, p *peer) {
	// A publisher without subscriptions of its own has nothing to say that others
	// wait for: it can be stopped before the buffers of a connection are all full.
	p.patient = p.patient || l.crowded(s.peer)
	if slices.Contains(p.heldBy, s) {
		return
	}
	if len(p.heldBy) == 0 {
		p.frozen = p.published - 1 // the one now being handled is the first to wait
	}
	p.heldBy = append(p.heldBy, s)
	s.waiting = append(s.waiting, p)
}

// release lets the publishers go on once half of the buffer is free again.
func (s *subscription) release(l *loop) {
	if len(s.waiting) == 0 || !s.closed && (s.queue.messages > s.maxMessages/2 || s.queue.size > s.maxBytes/2) {
		return
	}
	waiting := s.waiting
	s.waiting = nil
	for _, p := range waiting {
		p.heldBy = remove(p.heldBy, s)
		if len(p.heldBy) == 0 {
			l.released(p)
		}
	}
}

// forgetHolds takes p, which is gone, off the lists of those that hold it.
func (p *peer) forgetHolds() {
	for _, s := range p.heldBy {
		s.waiting = remove(s.waiting, p)
	}
	p.heldBy = nil
}

// remove takes the one e out of list, whose order does not matter.
func remove[T comparable](list []T, e T) []T {
	i := slices.Index(list, e)
	if i < 0 {
		return list
	}
	last := len(list) - 1
	list[i] = list[last]
	var none T
	list[last] = none
	return list[:last]
}
