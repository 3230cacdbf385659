package broker

import (
	"fmt"
	"time"
)

// Topics opens the routing to tests.
type Topics struct {
	t    topics
	subs map[int]*subscription
}

// Subscribe enters subscription id.
func (t *Topics) Subscribe(id int, filters ...string) {
	if t.subs == nil {
		t.subs = make(map[int]*subscription)
	}
	s := &subscription{id: uint32(id), filters: filters}
	t.subs[id] = s
	t.t.subscribe(s)
}

// Unsubscribe takes subscription id out.
func (t *Topics) Unsubscribe(id int) {
	s := t.subs[id]
	s.closed = true
	t.t.unsubscribe(s)
	delete(t.subs, id)
}

// Find returns the subscriptions that a message to topic goes to.
func (t *Topics) Find(topic []byte) ([]int, error) {
	r, err := t.t.find(topic)
	if err != nil {
		return nil, err
	}
	ids := make([]int, 0, len(r.subs))
	for _, s := range r.subs {
		ids = append(ids, int(s.id))
	}
	return ids, nil
}

// Hit looks topic up as a publish does.
func (t *Topics) Hit(topic []byte) int {
	r, err := t.t.find(topic)
	if err != nil {
		return 0
	}
	return len(r.subs)
}

// Empty reports an error unless nothing is left of any filter.
func (t *Topics) Empty() error {
	if n := len(t.t.filters.children); n != 0 {
		return fmt.Errorf("%d first levels of filters are left", n)
	}
	return nil
}

// Cached returns how many topics are cached.
func (t *Topics) Cached() int { return len(t.t.routes) }

// CachedBytes returns what they cost.
func (t *Topics) CachedBytes() int { return t.t.bytes }

// The bounds of the cache.
const (
	MaxRoutes     = maxRoutes
	MaxRouteBytes = maxRouteBytes
)

// Stepper turns a broker's loop by hand.
type Stepper struct {
	l   *loop
	now time.Time
}

// NewStepper makes a broker whose loop no goroutine turns.
func NewStepper(opts *Options) (*Stepper, error) {
	b, err := newBroker(opts)
	if err != nil {
		return nil, err
	}
	return &Stepper{l: b.loop, now: b.loop.now}, nil
}

// Join takes in a connected SOCK_STREAM or SOCK_SEQPACKET descriptor.
func (s *Stepper) Join(fd int, packet bool) { s.l.join(fd, packet) }

// Turn turns the loop once. Something must be ready.
func (s *Stepper) Turn() error { return s.l.turnOnce(func() time.Time { return s.now }) }

// Advance moves the loop's clock.
func (s *Stepper) Advance(d time.Duration) { s.now = s.now.Add(d) }

// Seq returns the last seq given out, Connections how many there are.
func (s *Stepper) Seq() uint64      { return s.l.seq }
func (s *Stepper) Connections() int { return s.l.count }

// Stats returns the loop's counters.
func (s *Stepper) Stats() Stats { return s.l.snapshot() }

// Close gives back what the loop holds.
func (s *Stepper) Close() { s.l.stop() }
