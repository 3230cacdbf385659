package broker

import (
	"time"

	"github.com/postbus/postbus/broker/internal/queue"
	"github.com/postbus/postbus/store"
)

// A dead letter of a queue that has a queue for them goes there: it is pushed, and once
// it is kept there it is removed here. Killed in between, it is in both.

// bury moves the dead letter of e to where they go. Where that cannot be it stays, as a
// dead letter of q's own.
func (q *workQueue) bury(l *loop, e *queue.Effect) {
	l.announce(q, eventDead, e.Seq, e.State.Reason)
	if q.failed != nil {
		return
	}
	// What it is now is kept first: who settled it so is told when that is.
	state := e.State
	c := q.commit(l)
	c.states = append(c.states, store.Entry{Kind: store.State, Seq: e.Seq, Data: appendState(nil, &state)})
	if _, err := l.findQueue(q.settings.DeadLetter); err != nil {
		q.notMoved(l, e.Seq)
		return
	}
	seq := e.Seq
	q.fetch(l, []uint64{e.Seq}, func(l *loop, bodies [][]byte) {
		if q.failed != nil {
			return // it is a dead letter again when the store is open again
		}
		var r record
		if len(bodies) == 0 || bodies[0] == nil || r.decode(bodies[0]) != nil {
			l.unreadable(q, seq)
			return
		}
		to, err := l.findQueue(q.settings.DeadLetter)
		if err != nil || to == q || to.refusePush(l, len(bodies[0]), l.memory) != nil || !to.core.HasRoom(len(bodies[0])) {
			q.notMoved(l, seq)
			return
		}
		r.origin, r.reason, r.tries = q.name, state.Reason, state.Tries
		q.move(l, to, seq, &r)
	})
}

// move pushes the record of q's message seq to another queue; moved or notMoved follows.
func (q *workQueue) move(l *loop, to *workQueue, seq uint64, r *record) {
	if r.topic == nil {
		r.topic = q.topic
	}
	r.Due, r.Expires, r.ID = 0, to.expires(l), "" // an id is for pushes of clients
	data := r.append(nil)
	r.Size = len(data)
	to.push(l, origin{from: q, number: seq}, &r.Message, data)
}

// expires is when a message that is pushed now expires by the queue's settings.
func (q *workQueue) expires(l *loop) int64 {
	if q.settings.TTLMS == 0 {
		return 0
	}
	return l.stamp + q.settings.TTLMS*int64(time.Millisecond)
}

// moved says that message seq is kept elsewhere now.
func (q *workQueue) moved(l *loop, seq uint64) {
	if q.deleted {
		return
	}
	if q.mover != nil && q.core.Ack(l.stamp, q.mover, seq) {
		q.effects(l)
		l.requeuedOne(q, true)
		return
	}
	q.core.Moved(seq)
	q.effects(l)
}

// notMoved says that message seq could not be moved.
func (q *workQueue) notMoved(l *loop, seq uint64) {
	if q.deleted {
		return
	}
	if q.mover != nil && len(q.core.Leased(q.mover, seq, seq, nil)) > 0 {
		q.core.Nack(l.stamp, q.mover, seq, 0)
		q.effects(l)
		l.requeuedOne(q, false)
		return
	}
	q.core.NotMoved(seq)
	q.effects(l)
}

// fetch has bodies read, with the next commit, and calls done with as many as were.
func (q *workQueue) fetch(l *loop, seqs []uint64, done func(l *loop, bodies [][]byte)) {
	c := q.commit(l)
	c.reads = append(c.reads, &reading{seqs: seqs, limit: fetchBytes, done: done})
}

// fetchBytes is how much one fetch reads at most, in bytes: a page of peek.
const fetchBytes = 1 << 20
