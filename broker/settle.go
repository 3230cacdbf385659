package broker

import (
	"fmt"
	"sort"
	"time"

	"github.com/postbus/postbus/wire"
)

// consuming is the part of a peer that consumes queues.
type consuming struct {
	consumers   map[uint32]*consumer
	settles     uint64 // SETTLE frames handled: the number of the last
	settlements []settlement
	thirsty     bool // a consumer got nothing because too much output waits
	asking      int  // QUEUE frames that wait for a store
	toil        int  // messages that its frames had the loop go through since it was last let rest
}

// settlement is SETTLE frames in a row, up to number upto, that are not confirmed yet.
type settlement struct {
	upto    uint64
	open    int    // how many wait for a store
	batch   uint64 // loop.batch when the last came
	refused []wire.ErrorBody
}

func (s *settlement) refuse(e wire.ErrorBody) { s.refused = append(s.refused, e) }

// settle handles a SETTLE frame.
func (l *loop) settle(p *peer, payload []byte) error {
	var f wire.Settle
	if err := f.Decode(payload); err != nil {
		return err
	}
	p.settles++
	number := p.settles
	c := p.consumers[f.Sub]
	switch {
	case c == nil:
		l.noteSettle(p, 0).refuse(wire.ErrorBody{Code: wire.CodeLeaseLost, Sub: f.Sub, Settle: number, Text: fmt.Sprintf(
			"consumer %d is not open on this connection: what it had was given back", f.Sub)})
		l.sendSettled(p)
		return nil
	case f.Verb < wire.VerbAck || f.Verb > wire.VerbExtend || f.First > f.Last || len(f.Reason) > wire.MaxReason || f.Arg > maxLease.Milliseconds():
		l.noteSettle(p, 0).refuse(wire.ErrorBody{Code: wire.CodeBadOption, Sub: f.Sub, Settle: number, Text: fmt.Sprintf(
			"%v of %d to %d with %d ms and a reason of %d bytes: the verbs are 1 to 4, the first is not above the last, and the limits are %v and %d bytes",
			f.Verb, f.First, f.Last, f.Arg, len(f.Reason), maxLease, wire.MaxReason)})
		l.sendSettled(p)
		return nil
	}
	q := c.queue
	p.toil += int(min(f.Last-f.First, uint64(c.leases.Leases())))
	seqs := q.core.Leased(c.leases, f.First, f.Last, l.seqs[:0])
	l.seqs = seqs
	lost := missing(f.First, f.Last, seqs)
	arg := time.Duration(f.Arg) * time.Millisecond
	for _, seq := range seqs {
		switch f.Verb {
		case wire.VerbAck:
			q.core.Ack(l.stamp, c.leases, seq)
		case wire.VerbNack:
			q.core.Nack(l.stamp, c.leases, seq, arg)
		case wire.VerbReject:
			q.core.Reject(l.stamp, c.leases, seq, string(f.Reason))
		case wire.VerbExtend:
			if arg == 0 {
				arg = c.lease
			}
			q.core.Extend(l.stamp, c.leases, seq, arg)
		}
	}
	q.roomAt(c)
	q.effects(l)
	open := 0
	if len(seqs) > 0 && f.Verb != wire.VerbExtend {
		open = 1
		batch := q.commit(l)
		batch.settled = append(batch.settled, origin{peer: p, number: number, sub: f.Sub})
	}
	s := l.noteSettle(p, open)
	if len(lost) > 0 {
		s.refuse(wire.ErrorBody{Code: wire.CodeLeaseLost, Sub: f.Sub, Settle: number, Lost: lost, Text: fmt.Sprintf(
			"of messages %d to %d of queue %s not all are leased to consumer %d, or not any more: the others are delivered again, or gone",
			f.First, f.Last, q.name, f.Sub)})
	}
	l.sendSettled(p)
	l.finishConsumer(c)
	return nil
}

// maxToldLost bounds how many lost messages an ERROR names.
const maxToldLost = 100

// missing returns which of first to last are not in seqs, the first of them.
func missing(first, last uint64, seqs []uint64) []uint64 {
	if len(seqs) > 0 && last-first == uint64(len(seqs)-1) {
		return nil
	}
	var lost []uint64
	next := first
	for _, seq := range seqs {
		for ; next < seq && len(lost) < maxToldLost; next++ {
			lost = append(lost, next)
		}
		next = seq + 1
	}
	for ; next <= last && len(lost) < maxToldLost; next++ {
		if lost = append(lost, next); next == last {
			break // the highest number there is has none behind it
		}
	}
	return lost
}

// noteSettle notes the SETTLE just handled, which waits for a store if open is 1.
func (l *loop) noteSettle(p *peer, open int) *settlement {
	if n := len(p.settlements); n > 0 {
		s := &p.settlements[n-1]
		if open == 0 && s.open == 0 || open > 0 && s.open > 0 && s.batch == l.batch {
			s.upto = p.settles
			s.open += open
			return s
		}
	}
	p.settlements = append(p.settlements, settlement{upto: p.settles, open: open, batch: l.batch})
	return &p.settlements[len(p.settlements)-1]
}

// settleKept takes note of a SETTLE that a store has carried out, or has not.
func (l *loop) settleKept(by *origin, err error) {
	p, number := by.peer, by.number
	i := sort.Search(len(p.settlements), func(i int) bool { return p.settlements[i].upto >= number })
	if i == len(p.settlements) {
		return
	}
	s := &p.settlements[i]
	s.open--
	if err != nil {
		e := asError(err)
		s.refuse(wire.ErrorBody{Code: e.Code, Text: e.Text, Settle: number, Sub: by.sub})
	}
	if i == 0 && s.open == 0 {
		l.sendSettled(p)
	}
}

// sendSettled confirms what SETTLE frames it can: all before the first that waits for
// a store.
func (l *loop) sendSettled(p *peer) {
	if p.ending {
		return // nothing comes behind GOODBYE
	}
	n := 0
	for ; n < len(p.settlements) && p.settlements[n].open == 0; n++ {
		for i := range p.settlements[n].refused {
			p.out = wire.AppendCold(p.out, wire.TypeError, &p.settlements[n].refused[i])
		}
	}
	if n == 0 {
		return
	}
	p.out = wire.AppendSettled(p.out, p.settlements[n-1].upto)
	p.settlements = append(p.settlements[:0], p.settlements[n:]...)
	l.touch(p)
	l.resume(p)
}
