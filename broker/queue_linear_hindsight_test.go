package broker_test

import (
	"slices"

	"github.com/anishathalye/porcupine"

	"github.com/postbus/postbus/wire"
)

// hindsight returns the history with what is known only in the end: which push got which
// number, and between which moments something happened that nobody saw. Else the checker
// had to try all of that in every place.
//
// It rests on this: every message is acknowledged in the end, so each try but the last has
// ended in another way before the next one came, and a try that nobody saw was in between.
// Those are of consumers that died; without any there is no place for them in the history.
func (h *history) hindsight() []porcupine.Operation {
	for body, places := range h.pushes {
		for _, i := range places {
			a := h.ops[i].Input.(action)
			a.seq = h.numbers[body] // 0: it was never delivered
			h.ops[i].Input = a
		}
	}
	w := newWitness(h.ops)
	var known []porcupine.Operation
	for _, op := range h.ops {
		a := op.Input.(action)
		op.ClientId = int(a.consumer)
		next := w.next(a.seq, a.tries)
		switch a.kind {
		case actOver:
			known = append(known, w.over(op, &a)...)
			continue
		case actLeave:
			for _, t := range w.takes {
				if b := t.Input.(action); b.consumer == a.consumer {
					op.Input = action{kind: actOver, consumer: b.consumer, seq: b.seq, tries: b.tries}
					known = append(known, w.over(op, &b)...)
				}
			}
			continue
		case actSettle:
			if a.unsure && next != never {
				continue // the end of the consumer ended the lease, or this: it is the same
			}
		case actDue:
			op.Return = next
		}
		known = append(known, op)
	}
	return append(known, w.unnoticed()...)
}

// witness answers questions about a whole history.
type witness struct {
	takes   []porcupine.Operation
	settles []action
	last    map[uint16]byte // by message, the last try
	died    bool            // there were consumers that may not have read all they got
}

func newWitness(ops []porcupine.Operation) *witness {
	w := &witness{last: map[uint16]byte{}}
	for _, op := range ops {
		switch a := op.Input.(action); a.kind {
		case actTake:
			w.takes = append(w.takes, op)
			w.last[a.seq] = max(w.last[a.seq], a.tries)
		case actSettle:
			w.settles = append(w.settles, a)
		case actLeave:
			w.died = w.died || a.unsure
		}
	}
	return w
}

// take returns the delivery of a try, nil if nobody saw it.
func (w *witness) take(seq uint16, tries byte) *porcupine.Operation {
	for i := range w.takes {
		if a := w.takes[i].Input.(action); a.seq == seq && a.tries == tries {
			return &w.takes[i]
		}
	}
	return nil
}

// next returns when a delivery after this try had come, never if there was none.
func (w *witness) next(seq uint16, tries byte) int64 {
	for tries++; tries <= w.last[seq]; tries++ {
		if op := w.take(seq, tries); op != nil {
			return op.Return
		}
	}
	return never
}

// over bounds the end of a try that its consumer did not settle: it comes before the next
// one, if it comes at all.
func (w *witness) over(op porcupine.Operation, a *action) []porcupine.Operation {
	settled := slices.ContainsFunc(w.settles, func(s action) bool {
		return s.seq == a.seq && s.tries == a.tries && s.verb != wire.VerbExtend && !s.lost && !s.unsure
	})
	op.Return = w.next(a.seq, a.tries)
	if settled || op.Return == never || op.Return < op.Call {
		return nil
	}
	return []porcupine.Operation{op}
}

// unnoticed returns the tries that nobody saw.
func (w *witness) unnoticed() (all []porcupine.Operation) {
	for seq, last := range w.last {
		since := int64(0)
		for tries := byte(1); tries <= last && w.died; tries++ {
			if op := w.take(seq, tries); op != nil {
				since = op.Call
				continue
			}
			a := action{kind: actTake, consumer: unseen, seq: seq, tries: tries}
			by := w.next(seq, tries)
			all = append(all, porcupine.Operation{Input: a, Call: since, Return: by})
			a.kind = actOver
			all = append(all, porcupine.Operation{Input: a, Call: since, Return: by})
		}
	}
	return all
}
