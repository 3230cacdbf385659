package broker

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postbus/postbus/broker/internal/queue"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// consumer is one CONSUME of a peer.
type consumer struct {
	peer      *peer
	id        uint32
	queue     *workQueue
	leases    *queue.Consumer
	prefetch  int
	lease     time.Duration    // 0: the queue's
	waiting   []queue.Delivery // taken, and their bodies are not here yet
	delivered uint64
	draining  bool // an UNSUBSCRIBE with drain was read
	closed    bool
}

// consumerCost is about what a consumer takes, in bytes.
const consumerCost = 400

// thirstAt is how much output may wait for a peer before its consumers get nothing
// more, in bytes.
const thirstAt = 64 << 10

func (l *loop) consume(p *peer, payload []byte) error {
	var f wire.Consume
	if err := wire.DecodeCold(payload, &f); err != nil {
		return err
	}
	c, err := l.newConsumer(p, &f)
	if err != nil {
		l.refuseRequest(p, err, wire.ErrorBody{Sub: f.Sub})
		return nil
	}
	if p.consumers == nil {
		p.consumers = make(map[uint32]*consumer, 1)
	}
	p.consumers[c.id] = c
	p.charge(consumerCost)
	q := c.queue
	q.consumers = append(q.consumers, c)
	p.out = wire.AppendCold(p.out, wire.TypeSubscribed, &wire.Subscribed{Sub: c.id, Seq: l.seq})
	l.touch(p)
	l.stir(q)
	return nil
}

// newConsumer checks a CONSUME and makes what it asks for.
func (l *loop) newConsumer(p *peer, f *wire.Consume) (*consumer, error) {
	q, err := l.findQueue(f.Queue)
	if err != nil {
		return nil, err
	}
	switch {
	case f.Sub == 0:
		return nil, &wire.Error{Code: wire.CodeBadOption, Text: "consumer 0: numbers begin at 1"}
	case p.subs[f.Sub] != nil || p.consumers[f.Sub] != nil:
		return nil, &wire.Error{Code: wire.CodeExists, Text: fmt.Sprintf("subscription %d is open on this connection already", f.Sub)}
	case len(p.subs)+len(p.consumers) >= l.opts.MaxSubscriptions:
		return nil, &wire.Error{Code: wire.CodeLimit, Text: fmt.Sprintf(
			"the connection has %d subscriptions and consumers, its limit: close some", l.opts.MaxSubscriptions)}
	case f.Prefetch < 0 || f.Prefetch > wire.MaxPrefetch:
		return nil, &wire.Error{Code: wire.CodeBadOption, Text: fmt.Sprintf(
			"a prefetch of %d messages: 1 to %d are possible, 0 means %d", f.Prefetch, wire.MaxPrefetch, wire.DefaultPrefetch)}
	case f.LeaseMS < 0 || f.LeaseMS > maxLease.Milliseconds():
		return nil, &wire.Error{Code: wire.CodeBadOption, Text: fmt.Sprintf("a lease of %d ms: 1 to %d are possible", f.LeaseMS, maxLease.Milliseconds())}
	case !l.room(p, consumerCost):
		return nil, &wire.Error{Code: wire.CodeLimit, Text: "the subscriptions and consumers of this connection, or of its user, take more than the broker keeps for one: close some, or raise its limits"}
	}
	c := &consumer{
		peer: p, id: f.Sub, queue: q, leases: q.core.Consumer(), prefetch: f.Prefetch,
		lease: time.Duration(f.LeaseMS) * time.Millisecond,
	}
	if c.prefetch == 0 {
		c.prefetch = wire.DefaultPrefetch
	}
	return c, nil
}

// deliverQueues gives to consumers what there is for them.
func (l *loop) deliverQueues() {
	queues := l.stirred
	l.stirred = l.stirring[:0]
	for _, q := range queues {
		if !q.deleted {
			q.deliver(l) // all there is: what it stirs up itself is no news
			l.emptied(q)
		}
		q.stirred = false
	}
	clear(queues)
	l.stirring = queues
}

// deliver leases messages to consumers that have room, in turn.
func (q *workQueue) deliver(l *loop) {
	if len(q.consumers) == 0 || q.failed != nil || l.draining {
		return
	}
	took := false
	for q.core.Ready() {
		c := q.next()
		if c == nil {
			break
		}
		d, ok := q.core.Take(l.stamp, c.leases, c.lease)
		if !ok {
			break
		}
		took = true
		c.give(l, d)
	}
	if took {
		q.readAhead(l)
		q.effects(l)
	}
}

// next returns the consumer whose turn it is, nil when none has room.
func (q *workQueue) next() *consumer {
	for range q.consumers {
		if q.turn >= len(q.consumers) {
			q.turn = 0
		}
		c := q.consumers[q.turn]
		q.turn++
		if c.hasRoom() {
			return c
		}
	}
	return nil
}

func (c *consumer) hasRoom() bool {
	if c.draining || c.leases.Leases() >= c.prefetch || c.peer.ending || c.peer.eof || c.peer.leaving || c.peer.closed {
		return false
	}
	if c.peer.stalled || len(c.peer.out) >= thirstAt {
		c.peer.thirsty = true
		return false
	}
	return true
}

// give sends a delivery, or has its body fetched first.
func (c *consumer) give(l *loop, d queue.Delivery) {
	q := c.queue
	if len(c.waiting) == 0 {
		if body := q.body(l, d.Seq); body != nil {
			c.write(l, &d, body)
			return
		}
	}
	c.waiting = append(c.waiting, d)
	if q.bodies.get(d.Seq) == nil {
		q.want(l, d.Seq)
	}
}

// body returns the body of message seq if that needs no waiting, and takes it out of
// the cache. It is valid until the next call.
func (q *workQueue) body(l *loop, seq uint64) []byte {
	if body := q.bodies.take(seq); body != nil || q.keeper.work != nil {
		return body
	}
	body, err := q.keeper.store.Read(l.recordBuf[:0], seq)
	if err != nil {
		var lost *store.LostError
		if errors.As(err, &lost) {
			l.lose(q, lost)
		}
		return nil // want reads it again and sees to it
	}
	l.recordBuf = body
	return body
}

// want has a body read.
func (q *workQueue) want(l *loop, seq uint64) {
	c := q.commit(l)
	c.wanted = append(c.wanted, seq)
}

// readAhead has the bodies of what comes next read, where that waits for a disk and few
// are here. It goes by seq, so what has a priority or was returned comes on demand.
func (q *workQueue) readAhead(l *loop) {
	if q.keeper.work == nil || q.ahead || q.bodies.bytes > cacheBytes/2 || q.core.Waiting() <= q.bodies.n {
		return
	}
	var some []uint64
	looked, size := 0, 0
	q.core.Each(q.aheadTo+1, func(seq uint64, v queue.View) bool {
		if looked++; looked > aheadMessages || size > cacheBytes*3/8 {
			return false
		}
		q.aheadTo = seq
		if v.State == queue.Ready && q.bodies.get(seq) == nil {
			some = append(some, seq)
			size += v.Size
		}
		return true
	})
	if len(some) == 0 {
		return
	}
	q.ahead = true
	c := q.commit(l)
	c.reads = append(c.reads, &reading{seqs: some, limit: unlimited, done: func(l *loop, bodies [][]byte) {
		q.ahead = false
		for i, body := range bodies {
			if v, ok := q.core.Look(some[i]); body != nil && ok && v.State == queue.Ready {
				q.cache(some[i], body)
			}
		}
		l.stir(q)
	}})
}

// aheadMessages is how many messages are looked at ahead of those that are taken, at a
// time.
const aheadMessages = 32768

// arrived takes a body that was wanted. nil: it cannot be read, for good if the store
// can do the rest.
func (q *workQueue) arrived(l *loop, seq uint64, body []byte, able bool) {
	if body != nil {
		q.bodies.put(seq, body)
	} else if _, there := q.core.Look(seq); able && there {
		l.unreadable(q, seq)
	}
}

// goOn sends what waited for its body, as far as the bodies are here.
func (c *consumer) goOn(l *loop) {
	q := c.queue
	n := 0
	for ; n < len(c.waiting); n++ {
		d := &c.waiting[n]
		if len(q.core.Leased(c.leases, d.Seq, d.Seq, l.seqs[:0])) == 0 {
			continue // its lease ran out meanwhile, or it was given up
		}
		body := q.bodies.take(d.Seq)
		if body == nil {
			break
		}
		c.write(l, d, body)
	}
	if c.waiting = c.waiting[n:]; len(c.waiting) == 0 {
		c.waiting = nil
	}
}

// write sends a delivery.
func (c *consumer) write(l *loop, d *queue.Delivery, body []byte) {
	p := c.peer
	if p.closed || p.ending {
		return
	}
	if err := l.record.decode(body); err != nil {
		l.unreadable(c.queue, d.Seq)
		return
	}
	if p.target != c.id {
		p.out = wire.AppendTarget(p.out, c.id)
		p.target = c.id
	}
	var info *wire.MessageInfo
	if d.Redelivered || d.Tries > 1 || l.record.Key != "" || l.record.ID != "" || l.record.Priority != 0 || l.record.origin != "" {
		info = &wire.MessageInfo{Redelivered: d.Redelivered}
		if d.Tries > 1 {
			info.Tries = int(d.Tries)
		}
	}
	if cap(p.out) < outputSize && cap(p.out)-len(p.out) < len(body)+keptOutput {
		p.out = append(l.outputs.get(), p.out...)
	}
	p.out = l.record.appendMessage(p.out, d.Seq, c.queue.topic, info)
	c.delivered++
	l.touch(p)
}

// unreadable gives up a message whose body cannot be had.
func (l *loop) unreadable(q *workQueue, seq uint64) {
	q.core.Lost([]uint64{seq})
	q.bodies.take(seq)
	l.log.Error("a message of a queue cannot be read: it is given up", "queue", q.name, "message", seq)
	l.announce(q, eventLost, seq, "it cannot be read")
	l.stir(q)
}

// closeConsumer ends a consumer; its leases go back.
func (l *loop) closeConsumer(c *consumer) {
	if c.closed {
		return
	}
	c.closed = true
	p, q := c.peer, c.queue
	delete(p.consumers, c.id)
	p.charge(-consumerCost)
	if p.target == c.id {
		p.target = 0
	}
	if i := slices.Index(q.consumers, c); i >= 0 {
		q.consumers = slices.Delete(q.consumers, i, i+1)
	}
	c.waiting = nil
	q.core.Leave(l.stamp, c.leases)
	q.effects(l)
}

// closeConsumers ends all of p's.
func (l *loop) closeConsumers(p *peer) {
	for _, c := range p.consumers {
		l.closeConsumer(c)
	}
}

// unconsume handles an UNSUBSCRIBE of a consumer.
func (l *loop) unconsume(c *consumer, drain bool) {
	if drain {
		c.draining = true
		l.finishConsumer(c)
		return
	}
	l.tellUnconsumed(c)
}

// finishConsumer ends a consumer that drains, once nothing is leased to it.
func (l *loop) finishConsumer(c *consumer) {
	if c.draining && !c.closed && c.leases.Leases() == 0 {
		l.tellUnconsumed(c)
	}
}

func (l *loop) tellUnconsumed(c *consumer) {
	told := wire.Unsubscribed{Sub: c.id, Delivered: c.delivered, Discarded: uint64(c.leases.Leases())}
	l.closeConsumer(c)
	c.peer.out = wire.AppendCold(c.peer.out, wire.TypeUnsubscribed, &told)
	l.touch(c.peer)
}

// quench lets p's consumers get more, once the output that they waited for is out.
func (l *loop) quench(p *peer) {
	if p.thirsty && len(p.out) < thirstAt {
		p.thirsty = false
		for _, c := range p.consumers {
			l.stir(c.queue)
		}
	}
}
