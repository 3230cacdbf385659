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
	lease     time.Duration // 0: the queue's
	at        int           // its place in queue.consumers
	roomy     bool          // it is in queue.roomy
	delivered uint64
	draining  bool // an UNSUBSCRIBE with drain was read
	closed    bool
}

// maxConsumers bounds the consumers of one queue.
const maxConsumers = 4096

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
	c.at = len(q.consumers)
	q.consumers = append(q.consumers, c)
	q.roomAt(c)
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
	case len(q.consumers) >= maxConsumers:
		return nil, &wire.Error{Code: wire.CodeLimit, Text: fmt.Sprintf("queue %s has %d consumers, the limit: close some", q.name, maxConsumers)}
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

// deliver leases messages to consumers that have room, in turn. A message is taken only
// when its body is here.
func (q *workQueue) deliver(l *loop) {
	if len(q.roomy) == 0 || q.failed != nil || q.unmarked || l.draining {
		return
	}
	took := false
	for q.core.Ready() {
		c := q.next()
		if c == nil {
			break
		}
		seq, ok := q.core.Head(l.stamp)
		if !ok {
			break
		}
		body, again := q.body(l, seq)
		if again {
			continue
		}
		if body == nil {
			q.fetchNext(l)
			break
		}
		d, _ := q.core.Take(l.stamp, c.leases, c.lease)
		took = true
		c.write(l, &d, body)
		q.bodies.take(seq)
	}
	if took {
		q.readAhead(l)
	}
	q.effects(l)
}

// roomAt says that c may have room for a delivery.
func (q *workQueue) roomAt(c *consumer) {
	if !c.roomy && !c.closed {
		c.roomy = true
		q.roomy = append(q.roomy, c)
	}
}

// roomForAll says it of all consumers.
func (q *workQueue) roomForAll() {
	for _, c := range q.consumers {
		q.roomAt(c)
	}
}

// next returns the consumer whose turn it is, nil when none has room.
func (q *workQueue) next() *consumer {
	for len(q.roomy) > 0 {
		if q.turn >= len(q.roomy) {
			q.turn = 0
		}
		c := q.roomy[q.turn]
		if !c.closed && c.hasRoom() {
			q.turn++
			return c
		}
		c.roomy = false
		q.roomy = slices.Delete(q.roomy, q.turn, q.turn+1)
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

// body returns the body of message seq if that needs no waiting; it is valid until the
// next call. again says that the message is gone, and the next one may be looked at.
func (q *workQueue) body(l *loop, seq uint64) (body []byte, again bool) {
	if body := q.bodies.get(seq); body != nil || q.keeper.work != nil {
		return body, false
	}
	body, err := q.keeper.store.Read(l.recordBuf[:0], seq)
	var lost *store.LostError
	switch {
	case err == nil:
		l.recordBuf = body
		return body, false
	case errors.As(err, &lost):
		l.lose(q, lost)
		if _, there := q.core.Look(seq); there {
			l.unreadable(q, seq)
		}
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDamaged):
		l.unreadable(q, seq)
	default:
		l.fail(q, err)
		return nil, false
	}
	return nil, true
}

const (
	// nextMessages and nextBytes are how much is fetched at once where the next message
	// is not here: what has a priority, or was returned.
	nextMessages = 256
	nextBytes    = 1 << 20

	// aheadMessages is how many messages are looked at ahead of those that are taken.
	aheadMessages = 32768
)

// fetchNext has the bodies of what is next read, if that is not under way.
func (q *workQueue) fetchNext(l *loop) {
	if q.ahead || q.failed != nil {
		return
	}
	var some []uint64
	size := 0
	for _, seq := range q.core.Upcoming(l.seqs[:0], nextMessages) {
		if v, _ := q.core.Look(seq); q.bodies.get(seq) == nil && (size == 0 || size+v.Size <= nextBytes) {
			some = append(some, seq)
			size += v.Size
		}
	}
	q.fetchAhead(l, some)
}

// readAhead has the bodies of what comes next read, where that waits for a disk and few
// are here. It goes by seq, so what has a priority or was returned comes by fetchNext.
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
	q.fetchAhead(l, some)
}

// fetchAhead reads bodies and keeps those of messages that are still to be delivered.
func (q *workQueue) fetchAhead(l *loop, seqs []uint64) {
	if len(seqs) == 0 {
		return
	}
	q.ahead = true
	c := q.commit(l)
	c.reads = append(c.reads, &reading{seqs: seqs, limit: unlimited, done: func(l *loop, bodies [][]byte) {
		q.ahead = false
		for i, body := range bodies {
			v, there := q.core.Look(seqs[i])
			switch {
			case !there:
			case body == nil && q.failed == nil:
				l.unreadable(q, seqs[i])
			case body != nil && v.State == queue.Ready:
				q.bodies.put(seqs[i], body)
			}
		}
		l.stir(q)
	}})
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
	if d.Redelivered || d.Tries > 1 || l.record.Key != "" || l.record.ID != "" || l.record.Priority != 0 || l.record.origin != "" || l.record.again {
		info = &wire.MessageInfo{Redelivered: d.Redelivered || l.record.again}
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
	l.leasesEnded(q)
}

// leasesEnded looks after consumers of q whose leases ended by something else than they.
func (l *loop) leasesEnded(q *workQueue) {
	q.roomForAll()
	for _, c := range slices.Clone(q.consumers) {
		l.finishConsumer(c)
	}
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
	last := len(q.consumers) - 1
	q.consumers[c.at] = q.consumers[last]
	q.consumers[c.at].at = c.at
	q.consumers[last] = nil
	q.consumers = q.consumers[:last]
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
	if drain && c.draining {
		l.refuseRequest(c.peer, &wire.Error{Code: wire.CodeNotFound,
			Text: fmt.Sprintf("consumer %d is draining already", c.id)}, wire.ErrorBody{Sub: c.id})
		return
	}
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
			c.queue.roomAt(c)
			l.stir(c.queue)
		}
	}
}
