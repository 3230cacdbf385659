package queue_test

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/postbus/postbus/broker/internal/queue"
)

// model is what a queue should do, said as plainly as possible: a slice of messages
// in seq order, looked through from end to end for everything.
type model struct {
	settings queue.Settings
	high     uint64
	paused   bool
	messages []*item
	marks    []sighting // by seq; one to an id
	effects  []queue.Effect
	did      queue.Counters
}

// item is a message.
type item struct {
	seq      uint64
	m        queue.Message
	state    queue.StateKind
	tries    uint32
	again    bool  // it was or may have been delivered
	due      int64 // of its delay
	returned bool  // it was returned with a delay, and was not settled since
	consumer int
	end      int64 // of its lease
	reason   string
	moving   bool
}

type sighting struct {
	seq    uint64
	id     string
	time   int64
	stored bool
}

func (m *model) find(seq uint64) *item {
	for _, i := range m.messages {
		if i.seq == seq {
			return i
		}
	}
	return nil
}

func (m *model) count(states ...queue.StateKind) (n int, bytes int64) {
	for _, i := range m.messages {
		if slices.Contains(states, i.state) {
			n++
			bytes += int64(i.m.Size)
		}
	}
	return n, bytes
}

func (m *model) remove(i *item, why queue.Why) {
	m.messages = slices.DeleteFunc(m.messages, func(j *item) bool { return i == j })
	switch why {
	case 0: // forgotten without an effect
		return
	case queue.Acked:
		m.did.Acked++
	case queue.Expired:
		m.did.Expired++
	case queue.Dropped:
		m.did.Dropped++
	}
	m.effects = append(m.effects, queue.Effect{Kind: queue.Remove, Why: why, Seq: i.seq})
}

func (m *model) save(i *item) {
	s := queue.State{Tries: i.tries, Dead: i.state == queue.Dead, Reason: i.reason}
	if i.state == queue.Delayed {
		s.Due = i.due
	}
	kind := queue.Save
	if i.moving {
		kind = queue.Bury
	}
	m.effects = append(m.effects, queue.Effect{Kind: kind, Seq: i.seq, State: s})
}

func (m *model) expired(i *item, now int64) bool { return i.m.Expires != 0 && i.m.Expires <= now }

func (m *model) fits(n int, bytes int64, size int) bool {
	return n < m.settings.MaxMessages && (n == 0 || bytes+int64(size) <= m.settings.MaxBytes)
}

func (m *model) hasRoom(size int) bool {
	states := []queue.StateKind{queue.Pending, queue.Leased, queue.Dead}
	if !m.settings.DropOld {
		states = append(states, queue.Ready, queue.Delayed)
	}
	n, bytes := m.count(states...)
	return m.fits(n, bytes, size)
}

func (m *model) push(now int64, p *queue.Message) (uint64, queue.Verdict) {
	for _, s := range m.marks {
		if s.id == p.ID && now < s.time+int64(m.settings.Dedup) {
			m.did.Duplicates++
			return 0, queue.Duplicate
		}
	}
	if !m.hasRoom(p.Size) {
		return 0, queue.Full
	}
	for {
		n, bytes := m.count(queue.Pending, queue.Leased, queue.Dead, queue.Ready, queue.Delayed)
		if m.fits(n, bytes, p.Size) {
			break
		}
		m.dropOldest()
	}
	if p.Expires == 0 && m.settings.TTL != 0 {
		p.Expires = now + int64(m.settings.TTL)
	}
	m.high++
	m.messages = append(m.messages, &item{seq: m.high, m: *p, state: queue.Pending})
	m.mark(sighting{m.high, p.ID, now, false})
	return m.high, queue.Taken
}

// dropOldest drops the first ready message, or else the first delayed one.
func (m *model) dropOldest() bool {
	for _, state := range []queue.StateKind{queue.Ready, queue.Delayed} {
		for _, i := range m.messages {
			if i.state == state {
				m.remove(i, queue.Dropped)
				return true
			}
		}
	}
	return false
}

// mark remembers the push of an id instead of any before.
func (m *model) mark(s sighting) {
	if s.id == "" || m.settings.Dedup == 0 {
		return
	}
	m.marks = slices.DeleteFunc(m.marks, func(o sighting) bool { return o.id == s.id })
	m.marks = append(m.marks, s)
	slices.SortFunc(m.marks, func(a, b sighting) int { return int(a.seq) - int(b.seq) })
}

// forget forgets the first mark of a stored message for which over is true.
func (m *model) forget(over func(sighting) bool) bool {
	k := slices.IndexFunc(m.marks, func(s sighting) bool { return s.stored })
	if k < 0 || !over(m.marks[k]) {
		return false
	}
	m.effects = append(m.effects, queue.Effect{Kind: queue.Forget, Seq: m.marks[k].seq})
	m.marks = slices.Delete(m.marks, k, k+1)
	return true
}

func (m *model) tooManyMarks(sighting) bool {
	return m.settings.MaxMarks > 0 && len(m.marks) > m.settings.MaxMarks
}

func (m *model) stored(now int64, seq uint64) {
	i := m.find(seq)
	if i == nil || i.state != queue.Pending {
		return
	}
	m.did.Pushed++
	i.state = queue.Ready
	if i.m.Due > now {
		i.state, i.due = queue.Delayed, i.m.Due
	}
	for k := range m.marks {
		if m.marks[k].seq == seq {
			m.marks[k].stored = true
			for m.forget(m.tooManyMarks) {
			}
			return
		}
	}
}

func (m *model) unstored(seq uint64) {
	if i := m.find(seq); i != nil && i.state == queue.Pending {
		m.remove(i, 0)
		m.marks = slices.DeleteFunc(m.marks, func(s sighting) bool { return s.seq == seq })
	}
}

// deliverable reports whether i may be delivered now, its TTL apart: no other of its
// key is in flight, or was returned with a delay, or waits before it.
func (m *model) deliverable(i *item) bool {
	if i.state != queue.Ready || i.m.Key == "" || i.returned {
		return i.state == queue.Ready
	}
	for _, o := range m.messages {
		if o != i && o.m.Key == i.m.Key && (o.state == queue.Leased || o.returned || o.state == queue.Ready && o.seq < i.seq) {
			return false
		}
	}
	return true
}

// next returns what is to be delivered next, its TTL apart.
func (m *model) next() (best *item) {
	for _, i := range m.messages {
		if m.deliverable(i) && (best == nil || min(i.m.Priority, 9) > min(best.m.Priority, 9)) {
			best = i
		}
	}
	return best
}

func (m *model) take(now int64, consumer int, d time.Duration) (queue.Delivery, bool) {
	if m.paused {
		return queue.Delivery{}, false
	}
	for {
		i := m.next()
		if i == nil {
			return queue.Delivery{}, false
		}
		if m.expired(i, now) {
			m.remove(i, queue.Expired)
			continue
		}
		return m.deliver(now, i, consumer, d), true
	}
}

func (m *model) deliver(now int64, i *item, consumer int, d time.Duration) queue.Delivery {
	if d == 0 {
		d = m.settings.Lease
	}
	again := i.again
	i.state, i.consumer, i.end, i.again = queue.Leased, consumer, now+int64(d), true
	i.tries++
	m.did.Delivered++
	if again {
		m.did.Redelivered++
	}
	return queue.Delivery{Seq: i.seq, Tries: i.tries, Redelivered: again, Priority: min(i.m.Priority, 9), Size: i.m.Size}
}

func (m *model) held(consumer int, seq uint64) *item {
	if i := m.find(seq); i != nil && i.state == queue.Leased && i.consumer == consumer {
		return i
	}
	return nil
}

func (m *model) giveBack(now int64, i *item, delay time.Duration, by string) {
	switch {
	case m.settings.MaxTries > 0 && int(i.tries) >= m.settings.MaxTries:
		m.bury(i, fmt.Sprintf("max-tries: %d deliveries, the last ended by %s", i.tries, by))
		return
	case m.expired(i, now):
		m.remove(i, queue.Expired)
		return
	case delay > 0:
		i.state, i.due, i.returned = queue.Delayed, now+int64(delay), true
	default:
		i.state, i.returned = queue.Ready, false
	}
	m.save(i)
}

func (m *model) bury(i *item, reason string) {
	i.state, i.reason, i.returned, i.moving = queue.Dead, reason, false, m.settings.Forward
	m.did.DeadLettered++
	m.save(i)
}

func (m *model) leave(now int64, consumer int) {
	for _, i := range slices.Clone(m.messages) {
		if i.state == queue.Leased && i.consumer == consumer {
			m.giveBack(now, i, 0, "a consumer that left")
		}
	}
}

func (m *model) tick(now int64) {
	for _, i := range slices.Clone(m.messages) {
		if i.state == queue.Leased && i.end <= now {
			m.giveBack(now, i, 0, "a lease that ran out")
		}
	}
	for _, i := range m.messages {
		if i.state == queue.Delayed && i.due <= now {
			i.state = queue.Ready
		}
	}
	for _, i := range slices.Clone(m.messages) {
		if (i.state == queue.Ready || i.state == queue.Delayed) && m.expired(i, now) {
			m.remove(i, queue.Expired)
		}
	}
	for m.forget(func(s sighting) bool { return s.time+int64(m.settings.Dedup) <= now }) {
	}
}

func (m *model) due() int64 {
	due := int64(math.MaxInt64)
	for _, i := range m.messages {
		switch {
		case i.state == queue.Leased:
			due = min(due, i.end)
		case i.state == queue.Delayed:
			due = min(due, i.due)
		}
		if (i.state == queue.Ready || i.state == queue.Delayed) && i.m.Expires != 0 {
			due = min(due, i.m.Expires)
		}
	}
	if k := slices.IndexFunc(m.marks, func(s sighting) bool { return s.stored }); k >= 0 {
		due = min(due, m.marks[k].time+int64(m.settings.Dedup))
	}
	if due == math.MaxInt64 {
		return 0
	}
	return due
}

func (m *model) purge(deadLetters bool) (n int) {
	for _, i := range slices.Clone(m.messages) {
		if deadLetters && i.state == queue.Dead && !i.moving || !deadLetters && (i.state == queue.Ready || i.state == queue.Delayed) {
			m.remove(i, queue.Purged)
			n++
		}
	}
	return n
}

func (m *model) requeue(limit int) (seqs []uint64) {
	for _, i := range m.messages {
		if i.state == queue.Dead && !i.moving && (limit == 0 || len(seqs) < limit) {
			i.state, i.tries, i.reason = queue.Ready, 0, ""
			m.save(i)
			seqs = append(seqs, i.seq)
		}
	}
	return seqs
}

func (m *model) lost(seqs []uint64) {
	for _, seq := range seqs {
		if i := m.find(seq); i != nil {
			m.unstored(seq)
			m.did.Lost++
			m.remove(i, 0)
		}
	}
}

// restore puts back a stored message; called in seq order.
func (m *model) restore(seq uint64, p queue.Message, s queue.State, maybeDelivered bool) {
	i := &item{seq: seq, m: p, state: queue.Ready, tries: s.Tries, again: s.Tries > 0 || maybeDelivered}
	held := slices.ContainsFunc(m.messages, func(o *item) bool { return p.Key != "" && o.m.Key == p.Key && o.returned })
	switch {
	case s.Dead:
		i.state, i.reason = queue.Dead, s.Reason
	case s.Due != 0:
		i.state, i.due, i.returned = queue.Delayed, s.Due, !held
	case s == queue.State{} && p.Due != 0:
		i.state, i.due = queue.Delayed, p.Due
	}
	m.messages = append(m.messages, i)
}

func (m *model) view(i *item) queue.View {
	v := queue.View{State: i.state, Tries: i.tries, Priority: min(i.m.Priority, 9), Key: i.m.Key, Reason: i.reason,
		Expires: i.m.Expires, Time: i.m.Time, Size: i.m.Size, Redelivered: i.again}
	switch i.state {
	case queue.Delayed:
		v.Due = i.due
	case queue.Leased:
		v.Due = i.end
	}
	return v
}

func (m *model) stats() queue.Stats {
	s := queue.Stats{Marks: len(m.marks), Counters: m.did}
	for state, n := range map[queue.StateKind]*int{queue.Pending: &s.Pending, queue.Ready: &s.Ready,
		queue.Delayed: &s.Delayed, queue.Leased: &s.Leased, queue.Dead: &s.Dead} {
		k, bytes := m.count(state)
		*n, s.Bytes = k, s.Bytes+bytes
	}
	for _, i := range slices.Backward(m.messages) {
		if i.state == queue.Ready {
			s.OldestReady = i.m.Time
		}
	}
	return s
}
