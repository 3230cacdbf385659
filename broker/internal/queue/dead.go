package queue

import (
	"fmt"
	"time"
)

// What ends a delivery so that the message is returned.
const (
	byNack  = "nack"
	byTime  = "a lease that ran out"
	byLeave = "a consumer that left"
)

// giveBack returns a leased message: it waits again, or it has come to its end.
func (q *Queue) giveBack(now int64, m ref, delay time.Duration, by string) {
	if most := q.settings.MaxTries; most > 0 && int64(m.s.tries) >= int64(most) {
		q.bury(m, fmt.Sprintf("max-tries: %d deliveries, the last ended by %s", m.s.tries, by))
		return
	}
	if m.s.expired(now) {
		q.remove(m, Expired)
		return
	}
	if delay > 0 { // it still holds its key
		m.need().due = after(now, delay)
		q.move(m, delayed)
	} else if e := m.extra(); e != nil && e.key != nil {
		q.move(m, behind)
		q.release(e.key, m.seq)
	} else {
		q.move(m, ready)
	}
	q.save(m)
}

// bury makes a leased message a dead letter.
func (q *Queue) bury(m ref, reason string) {
	q.did.DeadLettered++
	e := m.need()
	e.reason = reason
	q.move(m, dead)
	if q.settings.Forward {
		m.s.flags |= moving
		q.effects = append(q.effects, Effect{Kind: Bury, Seq: m.seq, State: m.state()})
	} else {
		q.save(m)
	}
	if e.key != nil {
		q.release(e.key, m.seq)
	}
}

// BuryAgain has the dead letters that are here moved elsewhere (effect Bury), after a
// restart.
func (q *Queue) BuryAgain() {
	if q.counts[dead] == 0 || !q.settings.Forward {
		return
	}
	for m := range q.table.all(0) {
		if m.s.place == dead && m.s.flags&moving == 0 {
			m.s.flags |= moving
			q.effects = append(q.effects, Effect{Kind: Bury, Seq: m.seq, State: m.state()})
		}
	}
}

// Moved says that a dead letter (effect Bury) is kept elsewhere now: it is removed.
func (q *Queue) Moved(seq uint64) {
	if m, ok := q.table.find(seq); ok && m.s.flags&moving != 0 {
		q.remove(m, Moved)
	}
}

// NotMoved says that a dead letter (effect Bury) cannot be moved: it stays here.
func (q *Queue) NotMoved(seq uint64) {
	if m, ok := q.table.find(seq); ok && m.s.flags&moving != 0 {
		m.s.flags &^= moving
		q.save(m)
	}
}

// Requeue puts up to limit dead letters back, lowest seq first, as if they had never
// been tried, and returns their seqs. limit 0 means all. Those that are being moved
// stay.
func (q *Queue) Requeue(now int64, limit int) []uint64 {
	var seqs []uint64
	if q.counts[dead] == 0 {
		return nil
	}
	for m := range q.table.all(0) {
		if m.s.place == dead && m.s.flags&moving == 0 {
			if seqs = append(seqs, m.seq); len(seqs) == limit {
				break
			}
		}
	}
	for _, seq := range seqs {
		m, _ := q.table.find(seq)
		m.s.tries = 0
		m.extra().reason = ""
		q.arrive(m)
		m.tidy()
		q.save(m)
	}
	return seqs
}
