package client

import (
	"cmp"
	"slices"
	"sort"

	"github.com/postbus/postbus/wire"
)

// note is what is to become of messages that are leased to a consumer. Without a verb
// it only has its answer told when all before it is answered.
type note struct {
	verb        wire.Verb
	first, last uint64 // each of these is to be settled
	arg         int64  // ms
	reason      string
	quiet       bool             // it is the client's own: nobody is told that it failed
	answer      *reply[struct{}] // nil if nobody waits
}

// joins reports whether two notes may be told in one frame, as far as it depends on
// what is to be done.
func (n *note) joins(m *note) bool {
	return n.verb == m.verb && n.arg == m.arg && n.reason == m.reason && n.quiet == m.quiet && n.answer == nil && m.answer == nil
}

// merge makes notes fewer, and returns them in the same memory. It only joins those
// that name adjacent numbers: a number between them may be that of a message which the
// broker has leased to this consumer and which is still on its way. For the same reason
// notes of different kinds keep their order.
func merge(notes []note) []note {
	merged := notes[:0]
	for len(notes) > 0 {
		n := 1
		for n < len(notes) && notes[n].joins(&notes[0]) {
			n++
		}
		run := notes[:n]
		notes = notes[n:]
		slices.SortStableFunc(run, func(a, b note) int { return cmp.Compare(a.first, b.first) })
		start := len(merged)
		for _, next := range run {
			if k := len(merged); k > start && merged[k-1].last+1 == next.first {
				merged[k-1].last = next.last
				continue
			}
			merged = append(merged, next)
		}
	}
	return merged
}

// settles numbers the SETTLE frames of one connection and keeps those without an
// answer. Client.mu guards it.
type settles struct {
	news     []*Consumer // those that may have notes for the next chunk
	sent     uint64      // the last number
	upTo     uint64      // of the last SETTLED
	flights  fifo[flight]
	refusals int // for the log
}

// A flight is a note on its way, with the number of its frame or, if it has none, of
// the frame before.
type flight struct {
	number   uint64
	consumer *Consumer
	note
	refused bool
}

// settleSoon tells the writer that s has notes.
func (c *Client) settleSoon(s *Consumer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hasNotes(s)
}

// hasNotes is settleSoon with mu held.
func (c *Client) hasNotes(s *Consumer) {
	c.settles.news = append(c.settles.news, s)
	c.wakeWriter()
}

// writeSettles puts all notes into the outbox; mu is held.
func (c *Client) writeSettles() {
	if len(c.settles.news) == 0 {
		return
	}
	for _, s := range c.settles.news {
		for _, n := range s.takeNotes() {
			c.writeSettle(s, n)
		}
	}
	clear(c.settles.news)
	c.settles.news = c.settles.news[:0]
	c.advance()
}

func (c *Client) writeSettle(s *Consumer, n note) {
	if n.verb != 0 {
		c.settles.sent++
		frame := wire.Settle{Sub: s.request.Sub, Verb: n.verb, First: n.first, Last: n.last, Arg: n.arg, Reason: []byte(n.reason)}
		c.out.pending.frames = wire.AppendSettle(c.out.pending.frames, &frame)
		s.unconfirmed++
	}
	c.settles.flights.push(flight{number: c.settles.sent, consumer: s, note: n})
}

func (cn *connection) handleSettled(payload []byte) error {
	upTo, err := wire.DecodeSettled(payload)
	if err != nil {
		return err
	}
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if upTo < c.settles.upTo || upTo > c.settles.sent {
		return broken("a SETTLED of settle %d, but it is due for %d to %d", upTo, c.settles.upTo, c.settles.sent)
	}
	c.settles.upTo = upTo
	c.advance()
	return nil
}

// advance takes leave of the notes that are answered, up to the first that is not; mu
// is held.
func (c *Client) advance() {
	for c.settles.flights.len() > 0 {
		f := c.settles.flights.front()
		switch {
		case f.verb == 0 || f.refused:
		case f.number <= c.settles.upTo:
			f.consumer.unconfirmed--
		default:
			return
		}
		if f.answer != nil && !f.refused {
			f.answer.settle(struct{}{}, nil)
		}
		c.settles.flights.pop()
	}
}

// settleRefused takes the verdict "refused" on one SETTLE frame, or on the messages of
// it that are named, and logs it.
func (cn *connection) settleRefused(number uint64, named []uint64, reason error) error {
	c := cn.client
	c.mu.Lock()
	f := c.settles.find(number)
	if f == nil || !f.checkNamed(named) {
		defer c.mu.Unlock()
		return broken("an ERROR for settle %d and %d messages of it, but the verdicts due are those of %d to %d",
			number, len(named), c.settles.upTo+1, c.settles.sent)
	}
	f.refused = true
	queue, note := f.consumer.request.Queue, f.note
	f.consumer.refused(&f.note, named, reason)
	c.advance()
	c.settles.refusals++
	n := c.settles.refusals
	c.mu.Unlock()
	// At 1, 2, 4, 8…, as for publishes.
	if n&(n-1) == 0 {
		c.log.Warn("settles refused", "count", n, "queue", queue, "verb", note.verb, "first", note.first, "last", note.last, "reason", reason)
	}
	return nil
}

// find returns the frame of that number if it has no answer, else nil.
func (st *settles) find(number uint64) *flight {
	flights := st.flights.items[st.flights.head:]
	i := sort.Search(len(flights), func(i int) bool { return flights[i].number >= number })
	if i == len(flights) || flights[i].number != number || flights[i].verb == 0 || flights[i].refused {
		return nil
	}
	return &flights[i]
}

// loseSettles follows up on the end of a connection: nobody knows what became of the
// notes that are not confirmed. mu is held.
func (c *Client) loseSettles() {
	for _, s := range c.streams {
		if s, ok := s.(*Consumer); ok {
			s.loseLeases() // before the notes are taken, so that there will be no more
			c.settles.news = append(c.settles.news, s)
		}
	}
	c.writeSettles() // what goes with it into the outbox does not outlive the connection
	for c.settles.flights.len() > 0 {
		f := c.settles.flights.pop()
		switch {
		case f.refused:
		case f.verb == 0:
			f.answer.settle(struct{}{}, nil)
		default:
			f.consumer.unsaid(&f.note)
		}
	}
	c.settles = settles{}
}
