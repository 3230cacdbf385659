package queue_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/broker/internal/queue"
)

// rig is a queue, one consumer, and the time, which begins at 1000.
type rig struct {
	*testing.T
	q   *queue.Queue
	c   *queue.Consumer
	now int64
}

// newRig makes one with room for 1000 messages of 1000 bytes, leases of 10, and what
// s has besides.
func newRig(t *testing.T, s queue.Settings) *rig {
	if s.MaxMessages == 0 {
		s.MaxMessages = 1000
	}
	if s.MaxBytes == 0 {
		s.MaxBytes = 1000
	}
	s.Lease = 10
	q := queue.New(s, 0)
	return &rig{T: t, q: q, c: q.Consumer(), now: 1000}
}

// cases runs each rule as a test of its own and checks the queue after it.
func cases(t *testing.T, s queue.Settings, rules map[string]func(*rig)) {
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, s)
			rule(r)
			r.check()
		})
	}
}

func (r *rig) check() {
	r.Helper()
	if err := r.q.Check(); err != nil {
		r.Error(err)
	}
}

// push pushes and stores messages, whose Time is set, and returns the last one's seq.
func (r *rig) push(messages ...queue.Message) (seq uint64) {
	r.Helper()
	for _, m := range messages {
		seq = r.pushed(m, queue.Taken)
		r.q.Stored(r.now, seq)
	}
	return seq
}

// pushed pushes a message and expects the verdict.
func (r *rig) pushed(m queue.Message, want queue.Verdict) uint64 {
	r.Helper()
	if m.Time == 0 {
		m.Time = r.now
	}
	seq, got := r.q.Push(r.now, &m)
	if got != want || (seq != 0) != (want == queue.Taken) {
		r.Errorf("Push(%+v) is %s, want %s", m, got, want)
	}
	return seq
}

// plain returns n messages without anything.
func plain(n int) []queue.Message { return make([]queue.Message, n) }

// take takes one message and expects its seq, or none if that is 0.
func (r *rig) take(want uint64) queue.Delivery {
	r.Helper()
	d, ok := r.q.Take(r.now, r.c, 0)
	if d.Seq != want || ok != (want != 0) {
		r.Errorf("took %+v, want %d", d, want)
	}
	return d
}

// takes takes all that is there, and expects these.
func (r *rig) takes(want ...uint64) {
	r.Helper()
	var got []uint64
	for {
		d, ok := r.q.Take(r.now, r.c, 0)
		if !ok {
			break
		}
		got = append(got, d.Seq)
	}
	if !slices.Equal(got, want) {
		r.Errorf("took %d, want %d", got, want)
	}
}

func (r *rig) true(ok bool) {
	r.Helper()
	if !ok {
		r.Error("false, want true")
	}
}

func (r *rig) false(ok bool) {
	r.Helper()
	if ok {
		r.Error("true, want false")
	}
}

func (r *rig) ack(seq uint64) { r.Helper(); r.true(r.q.Ack(r.now, r.c, seq)) }
func (r *rig) nack(seq uint64, delay time.Duration) {
	r.Helper()
	r.true(r.q.Nack(r.now, r.c, seq, delay))
}
func (r *rig) reject(seq uint64, reason string) {
	r.Helper()
	r.true(r.q.Reject(r.now, r.c, seq, reason))
}

// tick lets so much time pass.
func (r *rig) tick(d int64) {
	r.now += d
	r.q.Tick(r.now)
}

// due expects Due to be so far from now, or never if d is -1.
func (r *rig) due(d int64) {
	r.Helper()
	want := r.now + d
	if d == -1 {
		want = 0
	}
	if got := r.q.Due(); got != want {
		r.Errorf("Due is %d, want %d", got, want)
	}
}

// effects expects these since the last time, like "remove 1 acked".
func (r *rig) effects(want ...string) {
	r.Helper()
	var got []string
	for _, e := range r.q.Effects() {
		text := fmt.Sprint(e.Kind, " ", e.Seq)
		switch e.Kind {
		case queue.Remove:
			text += " " + e.Why.String()
		case queue.Save, queue.Bury:
			text += fmt.Sprintf(" tries=%d", e.State.Tries)
			if e.State.Due != 0 {
				text += fmt.Sprintf(" due=%d", e.State.Due)
			}
			if e.State.Dead {
				text += " dead: " + e.State.Reason
			}
		}
		got = append(got, text)
	}
	r.q.ClearEffects()
	if !slices.Equal(got, want) {
		r.Errorf("effects:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// state expects the message to be in this state; "none" if it is gone.
func (r *rig) state(seq uint64, want string) {
	r.Helper()
	v, ok := r.q.Look(seq)
	if v.State.String() != want || ok != (want != "none") {
		r.Errorf("%d is %+v, want %s", seq, v, want)
	}
}
