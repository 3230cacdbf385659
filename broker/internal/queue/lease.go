package queue

import (
	"math/bits"
	"slices"
	"time"
)

// Consumer is somebody who holds leases.
type Consumer struct {
	leases []uint32 // in leases, in no order
	left   bool
}

// Leases returns how many messages are leased to it.
func (c *Consumer) Leases() int { return len(c.leases) }

// Delivery is a message that was taken.
type Delivery struct {
	Seq         uint64
	Tries       uint32 // times delivered since it was pushed or requeued, this one included
	Redelivered bool   // it was or may have been delivered before
	Priority    uint8
	Size        int
}

// lease is a message that a consumer has. Its timer in Queue.ends bears the stamp;
// when the lease is extended or its place used for another, the stamp is a new one.
type lease struct {
	seq      uint64
	end      int64
	consumer *Consumer
	at       uint32 // in consumer.leases
	stamp    uint32 // 0: there is no lease here
}

// leases are all leases.
type leases struct {
	all   []lease
	free  []uint32
	stamp uint32 // the last
}

// grant makes a lease without an end.
func (l *leases) grant(c *Consumer, seq uint64) uint32 {
	i := uint32(len(l.all))
	if n := len(l.free); n > 0 {
		i = l.free[n-1]
		l.free = l.free[:n-1]
	} else {
		l.all = append(l.all, lease{})
	}
	l.all[i] = lease{seq: seq, consumer: c, at: uint32(len(c.leases))}
	c.leases = append(c.leases, i)
	return i
}

func (l *leases) release(i uint32) {
	old := l.all[i]
	c := old.consumer
	last := len(c.leases) - 1
	moved := c.leases[last]
	c.leases[old.at] = moved
	l.all[moved].at = old.at
	c.leases = c.leases[:last]
	l.all[i] = lease{}
	if l.free = append(l.free, i); len(l.free) == len(l.all) && len(l.all) > keptLeases {
		l.all, l.free = nil, nil
	}
}

// keptLeases is for how many leases place is kept when there are none.
const keptLeases = 1024

// until sets the end of a lease.
func (q *Queue) until(i uint32, end int64) {
	l := &q.leases
	if l.stamp++; l.stamp == 0 {
		l.stamp = 1
	}
	l.all[i].end, l.all[i].stamp = end, l.stamp
	q.ends.add(timer{end, uint64(l.stamp)<<32 | uint64(i)}) // ascending where the ends are equal
}

// of returns the lease whose timer it is, or nil.
func (l *leases) of(t timer) *lease {
	i := uint32(t.ref)
	if uint64(i) < uint64(len(l.all)) && uint64(l.all[i].stamp) == t.ref>>32 {
		return &l.all[i]
	}
	return nil
}

// runs reports whether a timer is that of a lease.
func (l *leases) runs(t timer) bool { return l.of(t) != nil }

// Consumer returns a new consumer, for Take.
func (q *Queue) Consumer() *Consumer { return &Consumer{} }

// Ready reports whether Take would find something, if it has not expired.
func (q *Queue) Ready() bool { return q.levels != 0 && !q.paused }

// Take leases the next ready message to c, until now+d; d 0 means Settings.Lease.
// Messages whose TTL is over are removed on the way. It returns false when there is
// nothing, when the queue is paused, and when c has left.
func (q *Queue) Take(now int64, c *Consumer, d time.Duration) (Delivery, bool) {
	for q.Ready() && !c.left {
		p := bits.Len16(q.levels) - 1
		m, _ := q.lines[p].front(&q.table)
		if m.s.expired(now) {
			q.remove(m, Expired)
			continue
		}
		q.lines[p].drop()
		m.s.flags &^= inLine
		return q.deliver(now, c, m, d), true
	}
	return Delivery{}, false
}

// Pick leases the message seq to c as Take does, out of its turn, if it is ready and
// the first of its key, and its TTL is not over. It takes no notice of Pause.
func (q *Queue) Pick(now int64, c *Consumer, seq uint64, d time.Duration) bool {
	m, ok := q.table.find(seq)
	if !ok || m.s.place != ready || c.left || m.s.expired(now) {
		return false
	}
	q.deliver(now, c, m, d)
	return true
}

// deliver leases a ready message to c.
// Head returns the number of the message that Take would give now, and whether there is
// one. Messages whose TTL is over are removed on the way.
func (q *Queue) Head(now int64) (seq uint64, ok bool) {
	for q.Ready() {
		m, _ := q.lines[bits.Len16(q.levels)-1].front(&q.table)
		if !m.s.expired(now) {
			return m.seq, true
		}
		q.remove(m, Expired)
	}
	return 0, false
}

func (q *Queue) deliver(now int64, c *Consumer, m ref, d time.Duration) Delivery {
	if d <= 0 {
		d = q.settings.Lease
	}
	q.move(m, leased)
	m.s.lease = q.leases.grant(c, m.seq)
	q.until(m.s.lease, after(now, d))
	if e := m.extra(); e != nil && e.key != nil {
		e.key.front, e.key.holder = 0, m.seq
	}
	again := m.s.flags&delivered != 0
	m.s.flags |= delivered
	m.s.tries++
	q.did.Delivered++
	if again {
		q.did.Redelivered++
	}
	return Delivery{Seq: m.seq, Tries: m.s.tries, Redelivered: again, Priority: m.s.priority, Size: int(m.s.size)}
}

// Upcoming appends to dst up to n seqs that Take would give next, roughly in order:
// a hint for reading ahead. It costs O(n).
func (q *Queue) Upcoming(dst []uint64, n int) []uint64 {
	look := 4*n + slack // entries that no longer apply are passed over
	for levels := q.levels; levels != 0; levels &^= 1 << (bits.Len16(levels) - 1) {
		l := &q.lines[bits.Len16(levels)-1]
		l.front(&q.table)
		for v := range l.each {
			if n <= 0 || look == 0 {
				return dst
			}
			look--
			if m, ok := q.table.find(uint64(v)); ok && l.holds(m) {
				dst = append(dst, m.seq)
				n--
			}
		}
	}
	return dst
}

// held returns the message if it is leased to c.
func (q *Queue) held(c *Consumer, seq uint64) (ref, bool) {
	m, ok := q.table.find(seq)
	if !ok || m.s.place != leased || q.leases.all[m.s.lease].consumer != c {
		return ref{}, false
	}
	return m, true
}

// Ack ends the message, which was handled. It returns false if seq is not leased to
// c, or not any more. A lease whose time is over still counts until Tick ends it.
func (q *Queue) Ack(now int64, c *Consumer, seq uint64) bool {
	m, ok := q.held(c, seq)
	if ok {
		q.remove(m, Acked)
	}
	return ok
}

// Nack returns the message, after the delay if that is above 0. False is as with Ack.
func (q *Queue) Nack(now int64, c *Consumer, seq uint64, delay time.Duration) bool {
	m, ok := q.held(c, seq)
	if ok {
		q.did.Nacked++
		q.giveBack(now, m, delay, byNack)
	}
	return ok
}

// Reject makes the message a dead letter. False is as with Ack.
func (q *Queue) Reject(now int64, c *Consumer, seq uint64, reason string) bool {
	m, ok := q.held(c, seq)
	if ok {
		text := "rejected"
		if reason != "" {
			text += ": " + reason
		}
		q.bury(m, text)
	}
	return ok
}

// Extend sets the end of the lease to now+d; d 0 means Settings.Lease. False is as
// with Ack.
func (q *Queue) Extend(now int64, c *Consumer, seq uint64, d time.Duration) bool {
	m, ok := q.held(c, seq)
	if ok {
		if d <= 0 {
			d = q.settings.Lease
		}
		q.until(m.s.lease, after(now, d))
		trim(&q.ends, q.counts[leased], q.leases.runs)
	}
	return ok
}

// Leased appends to dst the seqs from first to last that are leased to c, ascending.
// It costs as much as the smaller of the range and what is leased to c.
func (q *Queue) Leased(c *Consumer, first, last uint64, dst []uint64) []uint64 {
	if first > last {
		return dst
	}
	if last-first < uint64(len(c.leases)) {
		for seq := first; ; seq++ {
			if _, ok := q.held(c, seq); ok {
				dst = append(dst, seq)
			}
			if seq == last {
				return dst
			}
		}
	}
	from := len(dst)
	for _, i := range c.leases {
		if seq := q.leases.all[i].seq; first <= seq && seq <= last {
			dst = append(dst, seq)
		}
	}
	slices.Sort(dst[from:])
	return dst
}

// Leave says that the consumer is gone: what is leased to it is returned at once,
// and it takes nothing any more.
func (q *Queue) Leave(now int64, c *Consumer) {
	c.left = true
	for _, seq := range q.Leased(c, 0, q.high, nil) {
		m, _ := q.table.find(seq)
		q.giveBack(now, m, 0, byLeave)
	}
}
