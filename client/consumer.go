package client

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"time"

	"github.com/postbus/postbus/wire"
)

// Consumer is a stream of a queue's messages, from Queue.Consume. Each of them is
// leased to this consumer until it is settled. Its methods, and those of its
// deliveries, may be called by several goroutines; each delivery is given to one.
type Consumer struct {
	deliveryFeed

	// Under feed.mu too.
	held      deliveries // what Next has given out, not settled
	notes     []note     // what the program has settled, not yet for the writer
	spare     []note     // memory for more of them
	noted     bool       // the writer has been told of notes
	extending bool       // notes have the extensions of the last tick
	why       error      // there will be no more leases, why; nil while there may
	timer     *time.Timer

	client  *Client
	request wire.Consume
	lease   time.Duration    // 0 if it is not known
	extend  bool             // extend the leases of held
	round   atomic.Uint32    // counts the thirds of a lease that have passed
	opened  *reply[struct{}] // the broker has taken it, or refused
	ended   *reply[struct{}] // nothing more comes, in order or not

	// Under Client.mu.
	state       state
	closed      bool       // Close was called
	unconfirmed int        // SETTLE frames without an answer
	lost        LeasesLost // what the connection was lost with, until disconnect
	failed      LeaseError // what nobody has been told of

	// readLoop's own; while there is no connection, under Client.mu.
	arriving arrivals[Delivery]
	highest  uint64   // seq of what has come on this connection
	again    []uint64 // seqs in arriving that may have come before
}

// put takes a delivery off the connection; see receiver.
func (s *Consumer) put(in *inbox, w *wire.Message, frame int) error {
	if len(s.arriving.batches) == 0 {
		in.touched = append(in.touched, s)
	}
	d := s.arriving.slot(in, &in.deliveries, deliveryBlock)
	d.consumer, d.round = s, s.round.Load()
	if err := d.fill(in, w, frame, 1); err != nil {
		return err
	}
	if d.Seq > s.highest {
		s.highest = d.Seq
	} else if d.Redelivered {
		s.again = append(s.again, d.Seq)
	}
	return nil
}

// deliver moves what has arrived to where Next takes it, and wakes one who waits. What
// comes after Drain was called goes back; see receiver.
func (s *Consumer) deliver() {
	news := false
	s.mu.Lock()
	s.supersede()
	switch s.err {
	case nil:
		for _, b := range s.arriving.batches {
			s.list.push(b)
		}
		s.count += s.arriving.count
		s.wakeNext()
	case ErrDrained:
		for _, b := range s.arriving.batches {
			for i := range b.items {
				news = s.giveBack(&b.items[i]) || news
			}
		}
	}
	s.mu.Unlock()
	s.arriving.clear()
	if news {
		s.client.settleSoon(s)
	}
}

// supersede takes note that what came again was delivered for the second time: the
// first lease on it is lost. mu is held.
func (s *Consumer) supersede() {
	if len(s.again) == 0 {
		return
	}
	again := make(map[uint64]bool, len(s.again))
	for _, seq := range s.again {
		again[seq] = true
	}
	s.again = s.again[:0]
	for i := len(s.held) - 1; i >= 0; i-- {
		if d := s.held[i]; again[d.Seq] {
			s.held.remove(d, lost) // what takes its place was looked at
		}
	}
	for d := range s.unread() {
		if again[d.Seq] {
			d.holding = lost
		}
	}
}

// unread gives what Next has not given out; mu is held.
func (s *Consumer) unread() iter.Seq[*Delivery] {
	return func(yield func(*Delivery) bool) {
		start := s.next
		for i := s.list.head; i < len(s.list.items); i++ {
			items := s.list.items[i].items
			for k := start; k < len(items); k++ {
				if !yield(&items[k]) {
					return
				}
			}
			start = 0
		}
	}
}

// dropWaiting empties the list but for what it tells of lost leases; mu is held.
func (s *Consumer) dropWaiting() {
	var told *LeasesLost
	for s.list.len() > 0 {
		if l, ok := s.list.pop().notice.(*LeasesLost); ok {
			told = l // there is one at most: tell sees to that
		}
	}
	s.next, s.count = 0, 0
	if told != nil {
		s.list.push(batch[Delivery]{notice: told})
	}
}

// tell adds l to what Next gives, before everything else; mu is held, and the list was
// emptied by dropWaiting.
func (s *Consumer) tell(l *LeasesLost) {
	if l.count() == 0 {
		return
	}
	if s.list.len() > 0 {
		earlier := s.list.pop().notice.(*LeasesLost)
		l = &LeasesLost{
			Unsettled:   append(earlier.Unsettled, l.Unsettled...),
			Unconfirmed: append(earlier.Unconfirmed, l.Unconfirmed...),
		}
	}
	s.list.push(batch[Delivery]{notice: l})
}

// Next returns the next delivery and waits for it. Of those whose lease runs out while
// they wait here Next gives none: they are delivered again, to whoever has time.
//
// It returns a *LeasesLost once after the connection was lost with leases that matter;
// the call after it goes on with what the queue delivers then. Every other error is
// the end, and all later calls return it too: ErrDrained after Drain, ErrClosed after
// Close of the consumer or the client, ErrNotFound when the queue was deleted, what the
// broker said if it refused the consumer after a reconnection, and when the client
// ended for good the error of its Err. When ctx ends Next returns its error, and no
// delivery is lost.
func (s *Consumer) Next(ctx context.Context) (*Delivery, error) {
	for {
		if ctx.Err() != nil {
			return nil, interrupted(ctx, "wait for a message of queue %q", s.request.Queue)
		}
		if d, err := s.take(); d != nil || err != nil {
			return d, err
		}
		s.await(ctx)
	}
}

// take returns what is there, or neither a delivery nor an error and counts the caller
// as one who waits.
func (s *Consumer) take() (*Delivery, error) {
	news := false
	s.mu.Lock()
	d, err := s.deliveryFeed.take()
	for d != nil && !s.fresh(d) {
		d, err = s.deliveryFeed.take()
	}
	if d != nil {
		s.held.add(d)
		news = s.extendLate(d)
	}
	s.mu.Unlock()
	if news {
		s.client.settleSoon(s)
	}
	return d, err
}

// Deliveries returns the deliveries as Next does, for a range loop. A *LeasesLost is a
// pair of nil and that, and the loop goes on. Any other error is the last pair; Drain
// and Close end the loop without one. Leaving the loop early neither settles the
// delivery at hand nor ends the consumer: another loop, or Next, goes on behind it.
func (s *Consumer) Deliveries(ctx context.Context) iter.Seq2[*Delivery, error] {
	return func(yield func(*Delivery, error) bool) {
		for {
			d, err := s.Next(ctx)
			if errors.Is(err, ErrDrained) || errors.Is(err, ErrClosed) {
				return
			}
			if !yield(d, err) {
				return
			}
			if _, goesOn := err.(*LeasesLost); err != nil && !goesOn {
				return
			}
		}
	}
}
