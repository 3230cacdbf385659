package broker

import (
	"fmt"

	"github.com/postbus/postbus/broker/internal/queue"
	"github.com/postbus/postbus/wire"
)

// requeuing is dead letters on their way back to the queues they came from.
type requeuing struct {
	request queueRequest
	from    uint64 // where to go on
	left    int    // how many more may go
	count   int64  // that went
	open    int    // that are on their way
	reading bool   // the next page is being read
}

// requeuePage is how many dead letters are on their way back at a time.
const requeuePage = 256

// requeue brings dead letters back: those set aside in q itself, and those that other
// queues moved to it.
func (l *loop) requeue(p *peer, f *wire.Queue, q *workQueue) error {
	if f.Limit < 0 {
		return badOption("requeue %d dead letters: give a number above 0, or 0 for all", f.Limit)
	}
	if q.requeuing != nil {
		return &wire.Error{Code: wire.CodeLimit, Text: fmt.Sprintf("dead letters of queue %s are being requeued already: wait for that", q.name)}
	}
	left := f.Limit
	if left == 0 {
		left = unlimited
	}
	p.toil += q.core.Len()
	p.asking++
	n := len(q.core.Requeue(l.stamp, left))
	q.effects(l)
	q.requeuing = &requeuing{request: queueRequest{p, f}, left: left - n, count: int64(n)}
	if q.mover == nil {
		q.mover = q.core.Consumer()
	}
	l.requeueMore(q)
	return nil
}

// requeueMore takes the next page, or ends it.
func (l *loop) requeueMore(q *workQueue) {
	r := q.requeuing
	var seqs []uint64
	if r.left > 0 {
		q.core.Each(r.from, func(seq uint64, v queue.View) bool {
			if r.from = seq + 1; v.State == queue.Ready {
				seqs = append(seqs, seq)
			}
			return len(seqs) < requeuePage
		})
	}
	if len(seqs) == 0 {
		q.requeuing = nil
		l.answerKept(r.request.peer, r.request.frame, q, r.count)
		l.askedOne(r.request.peer)
		return
	}
	r.reading = true
	q.fetch(l, seqs, func(l *loop, bodies [][]byte) {
		r.reading = false
		r.open++ // so that it does not end in the middle
		for i, body := range bodies {
			if body != nil && r.left > 0 {
				q.sendBack(l, seqs[i], body)
			}
		}
		if len(bodies) < len(seqs) {
			r.from = seqs[len(bodies)]
		}
		l.requeuedOne(q, false)
	})
}

// sendBack moves a message to the queue that it died in, if it is a dead letter of one.
func (q *workQueue) sendBack(l *loop, seq uint64, body []byte) {
	var rec record
	if rec.decode(body) != nil || rec.origin == "" {
		return
	}
	to, err := l.findQueue(rec.origin)
	if err != nil || to == q || to.refusePush(l, len(body), l.memory) != nil || !to.core.HasRoom(len(body)) {
		return
	}
	if !q.core.Pick(l.stamp, q.mover, seq, maxLease) {
		return
	}
	q.bodies.take(seq)
	q.requeuing.open++
	q.requeuing.left--
	rec.origin, rec.reason, rec.tries = "", "", 0
	if string(rec.topic) == string(to.topic) {
		rec.topic = nil
	}
	rec.Expires = to.expires(l)
	data := rec.append(nil)
	rec.Size = len(data)
	to.push(l, origin{from: q, number: seq}, &rec.Message, data)
}

// requeuedOne notes that a message went back, or that it could not.
func (l *loop) requeuedOne(q *workQueue, went bool) {
	r := q.requeuing
	if r == nil {
		return
	}
	if r.open--; went {
		r.count++
	}
	if r.open == 0 {
		l.dueBy(l.stamp) // the next page is for the next turn
	}
}

// endJobs answers what is being done page by page, because q cannot go on.
func (l *loop) endJobs(q *workQueue, err error) {
	if r := q.requeuing; r != nil {
		q.requeuing, q.mover = nil, nil
		l.askedOne(r.request.peer)
		l.refuseRequest(r.request.peer, err, wire.ErrorBody{Token: r.request.frame.Token})
	}
	purges := q.purges
	q.purges = nil
	for _, g := range purges {
		l.askedOne(g.request.peer)
		l.refuseRequest(g.request.peer, err, wire.ErrorBody{Token: g.request.frame.Token})
	}
}
