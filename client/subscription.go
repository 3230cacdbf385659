package client

import (
	"context"
	"errors"
	"iter"

	"github.com/postbus/postbus/wire"
)

// Subscription is a stream of the messages that match its filters, from
// Client.Subscribe. Its methods may be called by several goroutines; each message is
// given to one of them.
type Subscription struct {
	messageFeed
	credit credit      // what the broker may send; under feed.mu
	source *connection // whom to give credit; under feed.mu

	client  *Client
	request wire.Subscribe
	opened  *reply[struct{}] // the broker has taken it, or refused
	ended   *reply[struct{}] // nothing more comes, in order or not

	// Under Client.mu.
	state state

	// readLoop's own; while there is no connection, under Client.mu.
	arriving arrivals[Message]
	bus      string // where seen counts; "" before it was first open
	seen     uint64 // every message up to this seq has come, or was told to be missing
}

// put takes a message off the connection.
func (s *Subscription) put(in *inbox, w *wire.Message, frame int) error {
	redelivered := false
	if w.Info != nil {
		info, err := in.decode(w.Info)
		if err != nil {
			return err
		}
		redelivered = info.Redelivered
	}
	s.touch(in)
	m := s.arriving.slot(in, &in.messages, messageBlock)
	in.fill(m, w, frame)
	m.Redelivered = redelivered
	s.arriving.bytes += frame
	s.seen = w.Seq
	return nil
}

// putGap adds a gap behind what has come.
func (s *Subscription) putGap(in *inbox, gap *Gap) {
	s.touch(in)
	s.arriving.batches = append(s.arriving.batches, batch[Message]{notice: gap})
	in.extend = false
}

func (s *Subscription) touch(in *inbox) {
	if len(s.arriving.batches) == 0 {
		in.touched = append(in.touched, s)
	}
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
	s.arriving.clear()
}

// append adds a batch to the list. Gaps of reconnections with nothing between them
// become one, or a subscription that nobody reads would gather them; mu is held.
func (s *Subscription) append(b batch[Message]) {
	if gap := reconnectGap(b); gap != nil && s.list.len() > 0 {
		if last := reconnectGap(*s.list.back()); last != nil {
			merged := Gap{First: last.First, Last: gap.Last, Reason: ReasonReconnect}
			if last.First == 0 || gap.First == 0 {
				merged.First, merged.Last = 0, 0
			}
			s.list.back().notice = &merged
			return
		}
	}
	s.list.push(b)
}

// reconnectGap returns the gap of a reconnection at the end of b, or nil.
func reconnectGap(b batch[Message]) *Gap {
	if gap, ok := b.notice.(*Gap); ok && gap.Reason == ReasonReconnect {
		return gap
	}
	return nil
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
		s.await(ctx)
	}
}

// take returns what is there, or neither a message nor an error and counts the caller
// as one who waits.
func (s *Subscription) take() (*Message, error) {
	s.mu.Lock()
	m, err := s.messageFeed.take()
	if m == nil {
		s.mu.Unlock()
		return nil, err
	}
	grant, source := s.credit.consumed(m.size), s.source
	s.mu.Unlock()
	if grant > 0 {
		s.client.grant(source, s.request.Sub, grant)
	}
	return m, nil
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
		s.append(batch[Message]{notice: gap})
	}
	s.err = err
	s.wakeNext()
}
