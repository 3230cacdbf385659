package client_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// deliveries are the frames of messages of a queue, marked as delivered before if that
// may be.
func deliveries(sub uint32, redelivered bool, seqs ...uint64) []byte {
	frames := wire.AppendTarget(nil, sub)
	m := wire.Message{Topic: []byte("@queue/jobs")}
	if redelivered {
		m.Info = wire.AppendOptions(nil, &wire.MessageInfo{Redelivered: true, Tries: 2})
	}
	for _, seq := range seqs {
		m.Seq, m.Body = seq, fmt.Append(nil, "job ", seq)
		frames = wire.AppendMessage(frames, &m)
	}
	return frames
}

func span(first, last uint64) (seqs []uint64) {
	for seq := first; seq <= last; seq++ {
		seqs = append(seqs, seq)
	}
	return seqs
}

// desk returns a client with a consumer.
func desk(t testing.TB, opts *client.ConsumeOptions) (*client.Desk, *client.Consumer, uint32) {
	d := client.NewDesk(t)
	if opts == nil {
		opts = &client.ConsumeOptions{Lease: 30 * time.Second}
	}
	s, sub := d.Consume("jobs", opts)
	return d, s, sub
}

// put hands frames to the client.
func put(t testing.TB, d *client.Desk, frames []byte) {
	t.Helper()
	if err := d.Put(frames); err != nil {
		t.Fatal(err)
	}
}

// next takes as many deliveries as there are seqs, and compares.
func next(t testing.TB, s *client.Consumer, seqs ...uint64) (got []*client.Delivery) {
	t.Helper()
	ctx := testContext(t)
	for _, seq := range seqs {
		d, err := s.Next(ctx)
		if err != nil {
			t.Fatalf("want seq %d: %v", seq, err)
		}
		if d.Seq != seq {
			t.Fatalf("want seq %d, got %d", seq, d.Seq)
		}
		got = append(got, d)
	}
	return got
}

func wantSettles(t testing.TB, d *client.Desk, want ...wire.Settle) {
	t.Helper()
	got := d.Settles()
	for i := range got {
		if len(got[i].Reason) == 0 {
			got[i].Reason = nil
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

// What is told in one frame, and what is not.
func TestCoalesce(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, span(1, 20)...))
	got := next(t, s, span(1, 20)...)
	ack := func(seqs ...uint64) {
		for _, seq := range seqs {
			if err := got[seq-1].Ack(); err != nil {
				t.Error(err)
			}
		}
	}
	settle := func(verb wire.Verb, first, last uint64) wire.Settle {
		return wire.Settle{Sub: sub, Verb: verb, First: first, Last: last}
	}
	ack(1, 2, 3)
	wantSettles(t, d, settle(wire.VerbAck, 1, 3))
	ack(6, 4, 5) // in whatever order
	wantSettles(t, d, settle(wire.VerbAck, 4, 6))
	ack(7, 9, 10) // 8 is not acked
	wantSettles(t, d, settle(wire.VerbAck, 7, 7), settle(wire.VerbAck, 9, 10))
	// What is between two of another kind keeps its place.
	_ = got[7].Extend(time.Minute)
	ack(11)
	_ = got[7].Nack(0)
	ack(12)
	extend := settle(wire.VerbExtend, 8, 8)
	extend.Arg = 60_000
	wantSettles(t, d, extend, settle(wire.VerbAck, 11, 11), settle(wire.VerbNack, 8, 8), settle(wire.VerbAck, 12, 12))
	// Only what is alike in all becomes one.
	_ = got[12].Nack(time.Second)
	_ = got[13].Nack(1500 * time.Microsecond)
	_ = got[14].Nack(2 * time.Millisecond)
	_ = got[15].Reject("one")
	_ = got[16].Reject("one")
	_ = got[17].Reject("two")
	nack, nack2, reject, reject2 := settle(wire.VerbNack, 13, 13), settle(wire.VerbNack, 14, 15), settle(wire.VerbReject, 16, 17), settle(wire.VerbReject, 18, 18)
	nack.Arg, nack2.Arg, reject.Reason, reject2.Reason = 1000, 2, []byte("one"), []byte("two")
	wantSettles(t, d, nack, nack2, reject, reject2)
	wantSettles(t, d)
}

// A gap is never bridged: the broker may have leased what is in it meanwhile.
func TestCoalesceNoGap(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1, 3))
	got := next(t, s, 1, 3)
	_, _ = got[0].Ack(), got[1].Ack()
	wantSettles(t, d, wire.Settle{Sub: sub, Verb: wire.VerbAck, First: 1, Last: 1}, wire.Settle{Sub: sub, Verb: wire.VerbAck, First: 3, Last: 3})
}

// call is one settling by the program.
type call struct {
	verb   wire.Verb
	arg    int64
	reason string
}

// leases is a broker's side of one consumer: what is leased to it, and everything that
// SETTLE frames have said of each message.
type leases struct {
	leased map[uint64]bool
	said   map[uint64][]call
	spare  []uint64 // messages to be delivered, again if they were
	again  map[uint64]bool
}

func (l *leases) settle(s wire.Settle) {
	for seq := s.First; seq <= s.Last; seq++ {
		l.said[seq] = append(l.said[seq], call{s.Verb, s.Arg, string(s.Reason)})
		if s.Verb != wire.VerbExtend && l.leased[seq] {
			delete(l.leased, seq)
		}
	}
}

// settling drives a client and the model of its broker's leases at random.
type settling struct {
	t      *rapid.T
	d      *client.Desk
	s      *client.Consumer
	sub    uint32
	broker leases
	flying []uint64 // leased, and on their way to the client
	held   []*client.Delivery
	came   map[uint64]int           // how often each message came
	nth    map[*client.Delivery]int // which of these it is
	called map[uint64][]call
	sent   int
}

func newSettling(t *rapid.T, tb testing.TB) *settling {
	d, s, sub := desk(tb, nil)
	m := &settling{t: t, d: d, s: s, sub: sub, called: map[uint64][]call{}, came: map[uint64]int{}, nth: map[*client.Delivery]int{}}
	m.broker = leases{leased: map[uint64]bool{}, said: map[uint64][]call{}, again: map[uint64]bool{}, spare: span(1, 40)}
	return m
}

// Lease has the broker lease some message, in whatever order.
func (m *settling) Lease(t *rapid.T) {
	if len(m.broker.spare) == 0 {
		t.Skip("nothing to lease")
	}
	// Mostly in order, so that there are runs.
	i := 0
	if rapid.IntRange(0, 3).Draw(t, "other") == 0 {
		i = rapid.IntRange(0, len(m.broker.spare)-1).Draw(t, "which")
	}
	seq := m.broker.spare[i]
	m.broker.spare = slices.Delete(m.broker.spare, i, i+1)
	m.broker.leased[seq] = true
	m.flying = append(m.flying, seq)
}

// Arrive hands over what was on its way.
func (m *settling) Arrive(t *rapid.T) {
	for _, seq := range m.flying {
		if err := m.d.Put(deliveries(m.sub, m.broker.again[seq], seq)); err != nil {
			t.Fatal(err)
		}
		m.broker.again[seq] = true
		m.came[seq]++
	}
	m.flying = nil
}

// Next has the program take some of it.
func (m *settling) Next(t *rapid.T) {
	for range rapid.IntRange(1, 10).Draw(t, "n") {
		d, err := client.TryNext(m.s)
		if err != nil {
			t.Fatal(err)
		}
		if d != nil {
			m.held = append(m.held, d)
			m.nth[d] = m.came[d.Seq]
		}
	}
}

// Settle has the program settle one or a few of what it holds.
func (m *settling) Settle(t *rapid.T) {
	if len(m.held) == 0 {
		t.Skip("nothing held")
	}
	for range rapid.IntRange(1, min(8, len(m.held))).Draw(t, "n") {
		i := rapid.IntRange(0, len(m.held)-1).Draw(t, "i")
		d := m.held[i]
		c := call{verb: rapid.SampledFrom([]wire.Verb{1, 1, 1, 1, 1, 1, 2, 3, 4}).Draw(t, "verb")}
		var err error
		switch c.verb {
		case wire.VerbAck:
			err = d.Ack()
		case wire.VerbNack:
			c.arg = int64(rapid.IntRange(0, 1).Draw(t, "arg"))
			err = d.Nack(time.Duration(c.arg) * time.Millisecond)
		case wire.VerbReject:
			c.reason = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "reason")
			err = d.Reject(c.reason)
		case wire.VerbExtend:
			err = d.Extend(0)
		}
		switch again := m.came[d.Seq] > m.nth[d]; {
		case err == nil && !again:
			m.called[d.Seq] = append(m.called[d.Seq], c)
		case !errors.Is(err, client.ErrLeaseLost) || !again:
			t.Fatalf("seq %d, which came again: %v: %v", d.Seq, again, err)
		}
		if c.verb != wire.VerbExtend || err != nil {
			m.held = slices.Delete(m.held, i, i+1)
			if again := d.Ack(); again == nil {
				t.Fatalf("seq %d was settled twice", d.Seq)
			}
		}
		if len(m.held) == 0 {
			return
		}
	}
}

// Write has the writer take its chunk, and the broker do what it says.
func (m *settling) Write(*rapid.T) {
	for _, s := range m.d.Settles() {
		m.sent++
		for seq := s.First; seq <= s.Last; seq++ {
			if s.Verb == wire.VerbNack && m.broker.leased[seq] {
				m.broker.spare = append(m.broker.spare, seq)
			}
		}
		m.broker.settle(s)
	}
}

// Expire has a lease run out, so that its message is delivered again.
func (m *settling) Expire(t *rapid.T) {
	var seqs []uint64
	for seq := range m.broker.leased {
		if !slices.Contains(m.flying, seq) {
			seqs = append(seqs, seq)
		}
	}
	if len(seqs) == 0 {
		t.Skip("nothing leased")
	}
	slices.Sort(seqs)
	seq := rapid.SampledFrom(seqs).Draw(t, "seq")
	delete(m.broker.leased, seq)
	m.broker.spare = append([]uint64{seq}, m.broker.spare...)
}

// Confirm has the broker confirm what it did.
func (m *settling) Confirm(t *rapid.T) {
	if err := m.d.Put(wire.AppendSettled(nil, uint64(m.sent))); err != nil {
		t.Fatal(err)
	}
}

// Check compares what was written with what was called, message by message and in
// order: frames that are not written yet are the tail.
func (m *settling) Check(t *rapid.T) {
	for seq, said := range m.broker.said {
		called := m.called[seq]
		if len(said) > len(called) || !slices.Equal(said, called[:len(said)]) {
			t.Fatalf("seq %d: the frames say %v, the program %v", seq, said, called)
		}
	}
}

// Whatever order deliveries come, come again and are settled in, the frames settle
// exactly what the program did: no message between two of them, and none twice.
func TestSettleExactly(t *testing.T) {
	for range 4 {
		rapid.Check(t, func(rt *rapid.T) { settleExactly(rt, t) })
	}
}

func settleExactly(rt *rapid.T, t *testing.T) {
	m := newSettling(rt, t)
	rt.Repeat(map[string]func(*rapid.T){
		"": m.Check, "lease": m.Lease, "lease again": m.Lease, "arrive": m.Arrive, "next": m.Next, "settle": m.Settle,
		"settle more": m.Settle, "write": m.Write, "expire": m.Expire, "confirm": m.Confirm,
	})
	m.Write(rt)
	m.Check(rt)
	for seq, called := range m.called {
		if len(m.broker.said[seq]) != len(called) {
			rt.Fatalf("seq %d: the frames say %v, the program %v", seq, m.broker.said[seq], called)
		}
	}
	m.Confirm(rt)
	if err := m.s.Flush(context.Background()); err != nil {
		rt.Fatal(err)
	}
}
