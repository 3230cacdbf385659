package client

import (
	"context"
	"errors"
	"iter"
	"sync"

	"github.com/postbus/postbus/wire"
)

// Subscription is a stream of the messages that match its filters, from
// Client.Subscribe. Its methods may be called by several goroutines; each message is
// given to one of them.
type Subscription struct {
	client  *Client
	request wire.Subscribe
	opened  *reply[struct{}] // the broker has taken it, or refused
	ended   *reply[struct{}] // nothing more comes, in order or not

	// Under Client.mu.
	state state

	// readLoop's own; while there is no connection, under Client.mu.
	arriving arrivals
	bus      string // where seen counts; "" before it was first open
	seen     uint64 // every message up to this seq has come, or was told to be missing

	mu     sync.Mutex // guards what follows
	list   queue[batch]
	next   int         // the place within the oldest batch
	count  int         // messages in list
	err    error       // what Next gives after list; set once
	waits  int         // how many wait in Next
	credit credit      // what the broker may send
	source *connection // whom to give credit
	wake   chan struct{}
}

// state is what the broker has been asked about a subscription.
//
//	opening --> open --> draining --> ended
//	    |         |                     ^
//	    +---------+------> closing -----+
type state uint8

const (
	opening  state = iota // SUBSCRIBE
	open                  // SUBSCRIBED
	draining              // UNSUBSCRIBE with drain
	closing               // UNSUBSCRIBE
	ended
)

// arrivals is what came for a subscription since it was last locked.
type arrivals struct {
	batches []batch
	count   int // messages
	bytes   int // of their frames
}

// deliver moves what has arrived to where Next takes it, and wakes one who waits.
func (s *Subscription) deliver() {
	s.mu.Lock()
	if s.err == nil {
		for _, b := range s.arriving.batches {
			s.append(b)
		}
		s.count += s.arriving.count
		s.credit.arrived(s.arriving.bytes)
		s.wakeNext()
	}
	s.mu.Unlock()
	clear(s.arriving.batches)
	s.arriving = arrivals{batches: s.arriving.batches[:0]}
}

// append adds a batch to the list. Gaps of reconnections with nothing between them
// become one, or a subscription that nobody reads would gather them; mu is held.
func (s *Subscription) append(b batch) {
	if b.gap != nil && b.gap.Reason == ReasonReconnect && s.list.len() > 0 {
		if last := s.list.back().gap; last != nil && last.Reason == ReasonReconnect {
			merged := Gap{First: last.First, Last: b.gap.Last, Reason: ReasonReconnect}
			if last.First == 0 || b.gap.First == 0 {
				merged.First, merged.Last = 0, 0
			}
			s.list.back().gap = &merged
			return
		}
	}
	s.list.push(b)
}

// wakeNext wakes one of those who wait in Next, if there is something for it. It wakes
// the following one in its turn. mu is held.
func (s *Subscription) wakeNext() {
	if s.waits > 0 && (s.list.len() > 0 || s.err != nil) {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// Next returns the next message and waits for it.
//
// It returns a *Gap where messages are missing; the call after it goes on behind the
// gap. Every other error is the end, and all later calls return it too: ErrDrained
// after Drain, ErrClosed after Close of the subscription or the client, what the
// broker said if it refused the subscription after a reconnection, and when the client
// ended for good the error of its Err, after what had arrived before. When ctx ends
// Next returns its error, even if there are messages, and nothing is lost.
func (s *Subscription) Next(ctx context.Context) (*Message, error) {
	for {
		if ctx.Err() != nil {
			return nil, interrupted(ctx, "wait for a message to %q", s.request.Filters[0])
		}
		if m, err := s.take(); m != nil || err != nil {
			return m, err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
		}
		s.mu.Lock()
		s.waits--
		if ctx.Err() != nil {
			s.wakeNext() // the token may have been ours, and somebody else's turn
		}
		s.mu.Unlock()
	}
}

// take returns what is there, or neither a message nor an error and counts the caller
// as one who waits.
func (s *Subscription) take() (*Message, error) {
	s.mu.Lock()
	m, gap := s.pop()
	if m == nil {
		defer s.mu.Unlock()
		switch {
		case gap != nil:
			s.wakeNext()
			return nil, gap
		case s.err != nil:
			s.wakeNext()
			return nil, s.err
		}
		s.waits++
		return nil, nil
	}
	s.count--
	grant, source := s.credit.consumed(m.size), s.source
	s.wakeNext()
	s.mu.Unlock()
	if grant > 0 {
		s.client.grant(source, s.request.Sub, grant)
	}
	return m, nil
}

// pop takes the first message or gap off the list; mu is held.
func (s *Subscription) pop() (*Message, *Gap) {
	for s.list.len() > 0 {
		b := s.list.front()
		if s.next < len(b.messages) {
			m := &b.messages[s.next]
			s.next++
			if s.next == len(b.messages) && b.gap == nil {
				s.list.pop()
				s.next = 0
			}
			return m, nil
		}
		gap := b.gap
		s.list.pop()
		s.next = 0
		if gap != nil {
			return nil, gap
		}
	}
	return nil, nil
}

// Messages returns the messages as Next does, for a range loop. A gap is a pair of nil
// and a *Gap, and the loop goes on. Any other error is the last pair; Drain and Close
// end the loop without one. Leaving the loop early neither loses a message nor ends
// the subscription: another loop, or Next, goes on behind the last pair.
func (s *Subscription) Messages(ctx context.Context) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		for {
			m, err := s.Next(ctx)
			if errors.Is(err, ErrDrained) || errors.Is(err, ErrClosed) {
				return
			}
			if !yield(m, err) {
				return
			}
			if _, isGap := err.(*Gap); err != nil && !isGap {
				return
			}
		}
	}
}

// Buffered returns how many messages Next would give without waiting.
func (s *Subscription) Buffered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// finish ends the stream: after what is in the list, and a gap if there is one, Next
// returns err. Only the first end counts.
func (s *Subscription) finish(gap *Gap, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	if gap != nil {
		s.append(batch{gap: gap})
	}
	s.err = err
	s.wakeNext()
}

// cut ends the stream at once: what is in the list is thrown away.
func (s *Subscription) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list, s.next, s.count = queue[batch]{}, 0, 0
	s.err = ErrClosed
	s.wakeNext()
}
