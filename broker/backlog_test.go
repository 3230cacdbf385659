package broker

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/postbus/postbus/wire"
)

// A subscription that is pushed at and taken from at random gets every message or
// is told that it is lost, in its place: the stream of what is taken, gaps spread
// out, is the stream of what was pushed, in order and without a hole.
func TestBacklogAccountsForEverything(t *testing.T) {
	seeds := uint64(12)
	if RaceEnabled {
		seeds = 3
	}
	for _, policy := range []wire.Policy{wire.DropOld, wire.DropNew, wire.Latest, wire.Block} {
		for seed := range seeds {
			t.Run(fmt.Sprintf("%v/%d", policy, seed), func(t *testing.T) {
				conserve(t, policy, rand.New(rand.NewPCG(seed, uint64(policy))))
			})
		}
	}
}

func conserve(t *testing.T, policy wire.Policy, rnd *rand.Rand) {
	l := &loop{now: time.Now()}
	l.opts, _ = (*Options)(nil).withDefaults()
	p := &peer{account: &account{}}
	s := &subscription{peer: p, id: 7, policy: policy, maxMessages: 1 + rnd.IntN(400), maxBytes: 1000 + rnd.IntN(300_000),
		credited: true, queue: backlog{sub: 7, spare: &l.spare}}
	if policy == wire.Latest {
		s.queue.latest = make(map[string]place)
	}
	r := &receiver{t: t, seen: map[uint64]bool{}}
	seq := uint64(0)
	topics := 1 + rnd.IntN(50)
	for range 1500 {
		if rnd.IntN(3) > 0 {
			l.turn = l.turn[:0]
			n := 1 + rnd.IntN(20)
			for range n {
				seq++
				l.turn = wire.AppendMessage(l.turn, &wire.Message{Seq: seq,
					Topic: fmt.Appendf(nil, "t/%d", rnd.IntN(topics)), Body: make([]byte, rnd.IntN(3000))})
			}
			s.spans = append(s.spans, span{to: len(l.turn), messages: n})
			s.spill(l)
		} else {
			s.credit = int64(1 + rnd.IntN(100_000))
			r.take(s, 1+rnd.IntN(100_000))
			s.recharge()
		}
		if policy != wire.Block && (s.queue.messages > s.maxMessages || s.queue.messages > 1 && s.queue.size > s.maxBytes+64*s.queue.messages) {
			t.Fatalf("%d messages, %d bytes are buffered, the bounds are %d and %d", s.queue.messages, s.queue.size, s.maxMessages, s.maxBytes)
		}
		if limit := 3*(s.maxBytes+64*s.maxMessages) + 5*largeChunk + sparseHoles; policy == wire.Latest && p.buffered > limit {
			t.Fatalf("%d bytes are taken, with bounds of %d messages and %d bytes", p.buffered, s.maxMessages, s.maxBytes)
		}
		if want := s.queue.memory + s.queue.index; p.buffered != want || p.account.buffered != want {
			t.Fatalf("charged %d and %d bytes for %d", p.buffered, p.account.buffered, want)
		}
	}
	for !s.queue.quiet() {
		s.credit = 1 << 20
		r.take(s, 1<<20)
	}
	s.recharge()
	if r.got+r.lost != seq || r.lost != s.dropped {
		t.Fatalf("%d got and %d told as lost of %d; the counter of drops says %d", r.got, r.lost, seq, s.dropped)
	}
	if policy == wire.Block && r.lost > 0 {
		t.Fatalf("policy block lost %d", r.lost)
	}
	if p.buffered != 0 {
		t.Fatalf("%d bytes stay charged for an empty backlog", p.buffered)
	}
}

// receiver checks the stream that a client would see.
type receiver struct {
	t         *testing.T
	last      uint64 // seq of the last message
	got, lost uint64
	seen      map[uint64]bool
}

func (r *receiver) take(s *subscription, room int) {
	buf, messages, bytes := s.queue.take(nil, room, s.credit)
	got, size := r.got, 0
	for len(buf) > 0 {
		payload, n, err := wire.Split(buf, 1<<20)
		if err != nil {
			r.t.Fatal(err)
		}
		if frameType(buf) == wire.TypeGap {
			r.gap(payload, s.policy)
		} else {
			r.message(payload)
			size += n
		}
		buf = buf[n:]
	}
	if r.got-got != uint64(messages) || size != bytes {
		r.t.Fatalf("take says %d messages of %d bytes, there are %d of %d", messages, bytes, r.got-got, size)
	}
}

func (r *receiver) message(payload []byte) {
	var m wire.Message
	if err := m.Decode(payload); err != nil {
		r.t.Fatal(err)
	}
	if m.Seq <= r.last || r.seen[m.Seq] {
		r.t.Fatalf("message %d after %d", m.Seq, r.last)
	}
	r.last, r.seen[m.Seq] = m.Seq, true
	r.got++
}

// gap checks that what is told lies behind the last message and, but for policy
// latest where others of the range may follow, covers the range.
func (r *receiver) gap(payload []byte, policy wire.Policy) {
	var g wire.Gap
	if err := g.Decode(payload); err != nil {
		r.t.Fatal(err)
	}
	if g.Sub != 7 || g.Count == 0 || g.First <= r.last || g.Last < g.First || g.Count > g.Last-g.First+1 {
		r.t.Fatalf("gap %+v after message %d", g, r.last)
	}
	if g.Count != g.Last-g.First+1 {
		r.t.Fatalf("gap %+v does not cover its range", g)
	}
	r.lost += g.Count
}
