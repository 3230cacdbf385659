package client

import (
	"fmt"
	"time"

	"github.com/postbus/postbus/wire"
)

// Ages of deliveries that wait for Next, in rounds. A round is at least a third of a
// lease, and the first one seen may have been nearly over.
const (
	lateAfter  = 2 // its lease may end before the next round does
	staleAfter = 4 // its lease has ended
)

// keepTime begins to count rounds, if the lease is known and they are not counted yet.
func (s *Consumer) keepTime() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil && s.lease > 0 && s.why == nil {
		s.timer = time.AfterFunc(s.third(), s.tick)
	}
}

// third is how long a round is.
func (s *Consumer) third() time.Duration { return max(s.lease/3, time.Millisecond) }

// tick ends a round: it extends the leases on what is held, and lets go of what has
// waited for too long.
func (s *Consumer) tick() {
	news := false
	s.mu.Lock()
	if s.why != nil {
		s.mu.Unlock()
		return
	}
	s.round.Add(1)
	s.timer.Reset(s.third())
	if s.extend && !s.extending { // or they would pile up while nothing can be written
		s.extending = len(s.held) > 0
		for _, d := range s.held {
			news = s.note(s.extension(d)) || news
		}
	}
	s.dropStale()
	s.mu.Unlock()
	if news {
		s.client.settleSoon(s)
	}
}

// fresh reports whether d, which has waited for Next, may still be leased; mu is held.
func (s *Consumer) fresh(d *Delivery) bool {
	return d.holding == waiting && s.round.Load()-d.round < staleAfter
}

// extendLate extends the lease on d, which Next is about to give out, if the next tick
// may be too late for it. It returns what note does; mu is held.
func (s *Consumer) extendLate(d *Delivery) (news bool) {
	return s.extend && s.round.Load()-d.round >= lateAfter && s.note(s.extension(d))
}

func (s *Consumer) extension(d *Delivery) note {
	return note{verb: wire.VerbExtend, first: d.Seq, last: d.Seq, arg: settleArg(s.lease), quiet: true}
}

// dropStale takes whole batches off the list that Next would give nothing of: the
// broker has given away their leases, and goes on delivering. mu is held.
func (s *Consumer) dropStale() {
	for s.list.len() > 0 {
		b := s.list.front()
		if n := len(b.items); n == 0 || b.notice != nil || s.fresh(&b.items[n-1]) {
			return
		}
		s.count -= len(b.items) - s.next
		s.list.pop()
		s.next = 0
	}
}

// LeasesLost tells of deliveries whose leases ended with a connection. It is the error
// of a Next, and not the end: the next call goes on with what the queue delivers now,
// and these may be among that. To settle them is ErrLeaseLost.
type LeasesLost struct {
	// Unsettled has the seq of those that Next had given out and that were not settled.
	Unsettled []uint64

	// Unconfirmed has the seq of those that were settled, when the broker has not
	// said that it was done.
	Unconfirmed []uint64
}

// Error says how many there are.
func (l *LeasesLost) Error() string {
	return fmt.Sprintf("client: the connection was lost, and %d deliveries that were not settled and %d that were, but not confirmed, may come again",
		len(l.Unsettled), len(l.Unconfirmed))
}

func (l *LeasesLost) count() int { return len(l.Unsettled) + len(l.Unconfirmed) }
