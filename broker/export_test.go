package broker

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
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
func (s *Stepper) Close() {
	s.l.wrapUp()
	s.l.stop()
}

// Ready reports whether a turn would find something to do at once.
func (s *Stepper) Ready() bool {
	if s.l.patience(s.now) == 0 {
		return true
	}
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(s.l.epoll), Events: unix.POLLIN}}, 0)
	return n > 0
}

// Restart is what an orderly stop leaves.
type Restart = restart

// Take goes on where the broker that left r stopped.
func (s *Stepper) Take(r *Restart) { s.l.take(r) }

// Drain begins the orderly stop, and Left returns what it leaves for the next.
func (s *Stepper) Drain()         { s.l.startDrain() }
func (s *Stepper) Left() *Restart { return s.l.restart }

// Ended returns why the loop ends, nil while it runs.
func (s *Stepper) Ended() error { return s.l.err }

// References returns how many publishers the subscriptions and connections there
// are know of: those they hold back, and those that yield to them.
func (s *Stepper) References() (waiting, yielders int) {
	for _, p := range s.l.peers {
		if p == nil {
			continue
		}
		yielders += len(p.yielders)
		for _, sub := range p.subs {
			waiting += len(sub.waiting)
		}
	}
	return waiting, yielders
}

// A Tracer is told what happens to some connections of a loop, in order.
type Tracer struct {
	Publishes func(id, n int)                            // n publishes were handled as the one before
	Frame     func(id int, t wire.Type, payload []byte)  // a frame is about to be handled
	Routes    func(id int, routed func(sub uint32) bool) // which subscriptions get messages now; told before each frame
	peers     []*peer                                    // by id
	last      *peer                                      // who published last
	counted   uint64                                     // of its publishes
}

// Add has the loop take in fd, whose connection is number id from now on.
func (tr *Tracer) Add(s *Stepper, fd int, packet bool) (id int) {
	s.l.join(fd, packet)
	tr.peers = append(tr.peers, s.l.peers[fd])
	return len(tr.peers) - 1
}

// Catch tells what has happened since the last frame.
func (tr *Tracer) Catch() {
	if p := tr.last; p != nil {
		if n := p.published - tr.counted; n > 0 {
			tr.counted = p.published
			tr.Publishes(slices.Index(tr.peers, p), int(n))
		}
	}
	for id, p := range tr.peers {
		tr.Routes(id, func(sub uint32) bool { return p.subs[sub] != nil && !p.subs[sub].left })
	}
}

// Trace has tr told what the loop does until the function returned is called. No
// other loop may run meanwhile.
func Trace(tr *Tracer) (stop func()) {
	plain := handlers
	for t, handle := range plain {
		if handle == nil {
			continue
		}
		handlers[t] = func(l *loop, p *peer, payload []byte) error {
			tr.Catch()
			tr.Frame(slices.Index(tr.peers, p), wire.Type(t), payload)
			if wire.Type(t) == wire.TypePublish {
				tr.last, tr.counted = p, p.published+1
			}
			return handle(l, p, payload)
		}
	}
	return func() { handlers = plain }
}

// Private is how the sockets of a bus directory are made.
var Private = private
