package client

import (
	"context"
	"fmt"
	"time"

	"github.com/postbus/postbus/wire"
)

// Consume opens a consumer of the queue, and waits until the broker has confirmed it.
//
// Its errors are ErrNotFound, ErrBadOption, ErrLimit (the broker takes no more
// consumers), ErrUnsupported, the context's, and once the client has ended that of Err.
func (q *Queue) Consume(ctx context.Context, opts *ConsumeOptions) (*Consumer, error) {
	s, err := q.newConsumer(opts)
	if err != nil {
		return nil, err
	}
	if s.lease == 0 {
		info, err := q.Info(ctx)
		if err != nil {
			return nil, err
		}
		// It is asked for by its length, so that this process goes by the same.
		s.request.LeaseMS = info.Settings.LeaseMS
		s.lease = time.Duration(info.Settings.LeaseMS) * time.Millisecond
	}
	c := q.client
	c.mu.Lock()
	if err := c.checkQueues(); err != nil {
		c.mu.Unlock()
		return nil, err
	}
	s.request.Sub = c.freeNumber()
	c.streams[s.request.Sub] = s
	if c.connected() {
		s.ask()
	}
	c.mu.Unlock()

	if _, err := s.opened.wait(ctx, "consume queue %q", q.name); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (q *Queue) newConsumer(opts *ConsumeOptions) (*Consumer, error) {
	if opts == nil {
		opts = &ConsumeOptions{}
	}
	if err := wire.CheckQueueName(q.name); err != nil {
		return nil, withSentinel(err)
	}
	if opts.Prefetch < 0 || opts.Prefetch > wire.MaxPrefetch {
		return nil, fmt.Errorf("%w: a prefetch of %d: it is 1 to %d, or 0 for %d",
			ErrBadOption, opts.Prefetch, wire.MaxPrefetch, wire.DefaultPrefetch)
	}
	if opts.Lease < 0 {
		return nil, fmt.Errorf("%w: a lease of %v: it must not be below 0", ErrBadOption, opts.Lease)
	}
	return &Consumer{
		deliveryFeed: newFeed[Delivery](),
		client:       q.client,
		request:      wire.Consume{Queue: q.name, Prefetch: opts.Prefetch, LeaseMS: millis(opts.Lease)},
		lease:        opts.Lease,
		extend:       opts.ExtendLeases,
		opened:       newReply[struct{}](),
		ended:        newReply[struct{}](),
		failed:       LeaseError{Queue: q.name},
	}, nil
}

// ask sends the CONSUME; see stream.
func (s *Consumer) ask() {
	if err := s.client.checkQueues(); err != nil {
		s.end(err) // another broker than the one before
		return
	}
	s.client.send(wire.TypeConsume, &s.request)
}

// confirm opens it for deliveries; see stream.
func (s *Consumer) confirm(*connection, uint64) {
	s.keepTime()
	if s.state == opening {
		s.state = open
		s.opened.settle(struct{}{}, nil)
	}
}

// loseLeases is the end of all leases with their connection. disconnect follows;
// Client.mu is held.
func (s *Consumer) loseLeases() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost.Unsettled = s.held.lose()
	s.dropWaiting()
}

// disconnect tells of the leases that are lost, and ends it if it was to end; see
// stream.
func (s *Consumer) disconnect(*wire.Goodbye) {
	lost := s.lost
	s.lost, s.highest, s.again = LeasesLost{}, 0, nil
	s.mu.Lock()
	s.tell(&lost)
	s.wakeNext()
	s.mu.Unlock()
	switch {
	case s.state == closing:
		s.retire(ErrClosed, ErrClosed)
	case s.state == draining && lost.count() > 0:
		s.retire(ErrDrained, &lost)
	case s.state == draining:
		s.retire(ErrDrained, nil)
	}
}

// end ends it; see stream.
func (s *Consumer) end(err error) {
	if s.state == closing {
		err = ErrClosed
	}
	if err == ErrClosed {
		s.cut()
	}
	if s.state == draining && err == ErrDrained {
		s.retire(err, nil)
		return
	}
	s.retire(err, err)
}

// retire forgets a consumer that the broker sends nothing more for: Next gives why, and
// Drain the reason. Client.mu is held.
func (s *Consumer) retire(why, reason error) {
	delete(s.client.streams, s.request.Sub)
	if s.state == opening {
		s.opened.settle(struct{}{}, why)
	}
	s.state = ended
	s.surrender(why)
	s.ended.settle(struct{}{}, reason)
	s.client.hasNotes(s) // if it has, they must be known before the number is another's
}

// surrender is the end of all leases: Next gives err, and what is held can be settled
// no more.
func (s *Consumer) surrender(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	if s.why == nil {
		s.why = err
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	s.held.lose()
	s.dropWaiting()
	s.wakeNext()
}

// Drain ends the consumer without giving up what the program has begun: the broker
// delivers no more, what Next has not given out goes back to the queue, and Next
// returns ErrDrained. Drain waits until everything that was given out is settled, or
// its lease has run out, and until that is kept; it returns a *LeaseError as Flush
// does. Its other errors are the context's, a *LeasesLost when the connection is lost
// meanwhile, and ErrClosed after Close.
func (s *Consumer) Drain(ctx context.Context) error {
	c := s.client
	c.mu.Lock()
	s.startDrain()
	c.mu.Unlock()
	if _, err := s.ended.wait(ctx, "drain the consumer of queue %q", s.request.Queue); err != nil {
		return err
	}
	return s.Flush(ctx)
}

// startDrain asks for no more; see stream.
func (s *Consumer) startDrain() bool {
	c := s.client
	switch {
	case s.state != open: // it ends already
	case c.conn == nil:
		s.retire(ErrDrained, nil)
	default:
		s.state = draining
		if c.connected() {
			c.send(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: s.request.Sub, Drain: true})
		}
		// After that, or the broker would deliver them to this consumer again.
		s.giveBackWaiting()
		c.hasNotes(s)
	}
	return s.state == draining || s.state == ended
}

// giveBackWaiting ends the stream for Next, and notes that what it has not given out is
// to be delivered again.
func (s *Consumer) giveBackWaiting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.unread() {
		if s.fresh(d) {
			s.giveBack(d)
		}
	}
	s.dropWaiting()
	if s.err == nil { // Close may have been quicker
		s.err = ErrDrained
	}
	s.wakeNext()
}

// giveBack notes that d is to be delivered again; mu is held. It returns what note does.
func (s *Consumer) giveBack(d *Delivery) (news bool) {
	d.holding = lost
	return s.note(note{verb: wire.VerbNack, first: d.Seq, last: d.Seq, quiet: true})
}

// Close ends the consumer. What was settled is sent to the broker first, and Close
// waits until it is confirmed, for half a second at most. All other messages that it
// has leases on go back to the queue at once; to settle them is ErrLeaseLost from now
// on, and Next returns ErrClosed.
//
// It may be called any number of times, from anywhere. The first call returns a
// *LeaseError as Flush does, or an error when the broker has not confirmed in time;
// later calls return nil.
func (s *Consumer) Close() error {
	if !s.startClose() {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), closeTimeout, fmt.Errorf(
		"the broker has not confirmed within %v what was settled: it may be delivered again", closeTimeout))
	defer cancel()
	return s.Flush(ctx)
}

// startClose asks for the end, and reports whether this is the first Close.
func (s *Consumer) startClose() (first bool) {
	s.cut()
	s.surrender(ErrClosed)
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	first = !s.closed
	s.closed = true
	switch {
	case s.state == closing || s.state == ended:
	case c.conn == nil:
		s.retire(ErrClosed, ErrClosed)
	case !c.connected(): // when readLoop ends, disconnect does the rest
		s.state = closing
	default:
		s.state = closing
		c.hasNotes(s)
		c.writeSettles()
		c.send(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: s.request.Sub})
	}
	return first
}
