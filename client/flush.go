package client

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/postbus/postbus/wire"
)

// Flush waits until the broker has confirmed everything that was settled before the
// call: it is kept at the queue's level. It returns a *LeaseError when some of that was
// in vain and nobody has been told yet, what was lost with a connection included. Its
// other errors are the context's.
func (s *Consumer) Flush(ctx context.Context) error {
	c := s.client
	c.mu.Lock()
	answer := s.mark()
	c.mu.Unlock()
	if answer != nil {
		if _, err := answer.wait(ctx, "flush what was settled of queue %q", s.request.Queue); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.failed.Count == 0 {
		return nil
	}
	err := s.failed
	s.failed = LeaseError{Queue: s.request.Queue}
	return &err
}

// mark returns what is told when everything settled by now is answered, nil if it is;
// Client.mu is held.
func (s *Consumer) mark() *reply[struct{}] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unconfirmed == 0 && len(s.notes) == 0 {
		return nil
	}
	answer := newReply[struct{}]()
	s.note(note{answer: answer})
	s.client.hasNotes(s)
	return answer
}

// note notes what is to become of messages, and reports whether the writer must be
// told (settleSoon), which is not so if it knows of others. mu is held.
func (s *Consumer) note(n note) (news bool) {
	k := len(s.notes) - 1
	if k >= 0 && s.notes[k].last+1 == n.first && s.notes[k].joins(&n) {
		s.notes[k].last = n.last
	} else {
		s.notes = append(s.notes, n)
	}
	news = !s.noted
	s.noted = true
	return news
}

// takeNotes returns the notes, to be used before the next call; Client.mu is held.
func (s *Consumer) takeNotes() []note {
	s.mu.Lock()
	notes := s.notes
	s.notes, s.spare = s.spare[:0], notes
	s.noted, s.extending = false, false
	s.mu.Unlock()
	return merge(notes)
}

// refused takes the broker's refusal of a SETTLE frame, or of the part of it that it
// names; Client.mu is held.
func (s *Consumer) refused(n *note, named []uint64, reason error) {
	s.unconfirmed--
	switch {
	case n.verb == wire.VerbExtend:
		if n.first == n.last {
			named = []uint64{n.first}
		}
		s.extendRefused(named)
	case n.quiet:
	case n.answer != nil:
		n.answer.settle(struct{}{}, reason)
	default:
		for seq := range n.inVain(named) {
			s.failed.add(seq, reason)
		}
	}
}

// maxNamed is how many messages of a SETTLE frame an ERROR names at most.
const maxNamed = 100

// inVain gives the numbers of n that were refused: those that the broker named, and
// those that it may have had no room to name.
func (n *note) inVain(named []uint64) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		next := n.first
		for _, seq := range named {
			if !yield(seq) {
				return
			}
			next = seq + 1
		}
		if len(named) > 0 && len(named) < maxNamed {
			return
		}
		for i := range n.last - next + 1 { // 0 behind the last
			if !yield(next + i) {
				return
			}
		}
	}
}

// checkNamed reports whether named are numbers of n, in order.
func (n *note) checkNamed(named []uint64) bool {
	return slices.IsSorted(named) && (len(named) == 0 || named[0] >= n.first && named[len(named)-1] <= n.last)
}

// extendRefused takes note that these leases are lost. Of others that were, the program
// will know when it settles them.
func (s *Consumer) extendRefused(seqs []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.held) - 1; i >= 0; i-- {
		d := s.held[i]
		if _, ok := slices.BinarySearch(seqs, d.Seq); ok {
			s.held.remove(d, lost) // what takes its place was looked at
		}
	}
}

// errUnconfirmed is why what a connection was lost with counts as settled in vain.
var errUnconfirmed = fmt.Errorf("%w: the connection was lost before the broker had confirmed it", ErrLeaseLost)

// unsaid takes note that the connection was lost before the broker answered a SETTLE
// frame; Client.mu is held.
func (s *Consumer) unsaid(n *note) {
	s.unconfirmed--
	if n.quiet || n.verb == wire.VerbExtend {
		return
	}
	if n.answer != nil {
		n.answer.settle(struct{}{}, errUnconfirmed)
	}
	for seq := range n.inVain(nil) {
		s.lost.Unconfirmed = append(s.lost.Unconfirmed, seq)
		if n.answer == nil {
			s.failed.add(seq, errUnconfirmed)
		}
	}
}

// abandon says that nobody waits for this answer any more, so that a refusal is told
// by Flush.
func (s *Consumer) abandon(answer *reply[struct{}]) {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	flights := &c.settles.flights
	for i := flights.head; i < len(flights.items); i++ {
		if f := &flights.items[i]; f.answer == answer {
			f.answer = nil
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.notes {
		if s.notes[i].answer == answer {
			s.notes[i].answer = nil
		}
	}
}
