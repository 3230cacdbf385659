package queue

import (
	"fmt"
	"math/bits"
)

// census is what Check counts message by message.
type census struct {
	q      *Queue
	counts [places]int
	ready  [priorities]int
	bytes  int64
	loose  int64
	mortal int
	refs   map[*key]int
	behind map[*key]int
	lowest map[*key]uint64 // of those that wait
}

// Check returns an error if the counts, lists, timers, keys or leases do not agree
// with the messages. It is for tests and costs O(n).
func (q *Queue) Check() error {
	c := census{q: q, refs: map[*key]int{}, behind: map[*key]int{}, lowest: map[*key]uint64{}}
	last := uint64(0)
	for m := range q.table.all(0) {
		if m.seq <= last || m.seq > q.high {
			return fmt.Errorf("message %d is after %d, and %d is the highest", m.seq, last, q.high)
		}
		last = m.seq
		if err := c.message(m); err != nil {
			return fmt.Errorf("message %d, %s: %w", m.seq, kinds[m.s.place], err)
		}
	}
	for _, check := range []func() error{c.totals, c.table, c.keys, c.leases, c.lines, c.marks} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *census) message(m ref) error {
	s, e := m.s, m.extra()
	c.counts[s.place]++
	c.bytes += int64(s.size)
	if s.place.idle() {
		c.loose += int64(s.size)
		if s.expires != 0 {
			c.mortal++
			if s.flags&inExpiry == 0 {
				return fmt.Errorf("no timer for its TTL")
			}
		}
	}
	if (m.c.waiting&(1<<(m.seq%chunkSize)) != 0) != s.place.waiting() {
		return fmt.Errorf("its chunk says otherwise")
	}
	if c.q.settings.DropOld && (s.place.waiting() && s.flags&inOldest == 0 || s.place == delayed && s.flags&inLate == 0) {
		return fmt.Errorf("drop-old would not find it")
	}
	if s.flags&moving != 0 && s.place != dead {
		return fmt.Errorf("it is being moved")
	}
	if e == nil {
		e = new(extra)
	}
	if (s.place == delayed) != (e.due != 0) && s.place != pending {
		return fmt.Errorf("due is %d", e.due)
	}
	if (s.place == dead) != (e.reason != "") {
		return fmt.Errorf("the reason is %q", e.reason)
	}
	switch s.place {
	case absent:
		return fmt.Errorf("it is nowhere")
	case ready:
		c.ready[s.priority]++
		if s.flags&inLine == 0 {
			return fmt.Errorf("it is not in the line")
		}
	case leased:
		l := c.q.leases.all[s.lease]
		if l.seq != m.seq || l.stamp == 0 || s.flags&delivered == 0 || s.tries == 0 {
			return fmt.Errorf("lease %+v, %+v", l, *s)
		}
	}
	return c.ofKey(m, e.key)
}

func (c *census) ofKey(m ref, k *key) error {
	place := m.s.place
	if k == nil {
		if place == behind {
			return fmt.Errorf("behind no key")
		}
		return nil
	}
	c.refs[k]++
	if place == behind {
		c.behind[k]++
		if m.s.flags&inKey == 0 {
			return fmt.Errorf("its key would not find it")
		}
	}
	if place.waiting() && c.lowest[k] == 0 {
		c.lowest[k] = m.seq
	}
	if place == leased && k.holder != m.seq {
		return fmt.Errorf("%d holds its key", k.holder)
	}
	if (place == ready) != (k.front == m.seq) {
		return fmt.Errorf("the front of its key is %d", k.front)
	}
	return nil
}

func (c *census) totals() error {
	q := c.q
	have, want := q.counts, c.counts
	have[absent] = 0
	if have != want || q.ready != c.ready || q.bytes != c.bytes || q.loose != c.loose || q.mortal != c.mortal {
		return fmt.Errorf("counted %v %v %d %d %d, have %v %v %d %d %d", want, c.ready, c.bytes, c.loose, c.mortal,
			have, q.ready, q.bytes, q.loose, q.mortal)
	}
	for p, n := range q.ready {
		if (n > 0) != (q.levels&(1<<p) != 0) {
			return fmt.Errorf("priority %d: %d are ready, levels are %b", p, n, q.levels)
		}
	}
	return nil
}

func (c *census) table() error {
	t := &c.q.table
	n, room, gone, last := 0, 0, 0, uint64(0)
	for i, k := range t.order {
		if i > 0 && k.number <= last {
			return fmt.Errorf("chunk %d is after %d", k.number, last)
		}
		last = k.number
		if k.slots == nil {
			gone++
			continue
		}
		if t.chunks[k.number] != k || k.used == 0 && k != t.tail || k.used&^k.held != 0 ||
			len(k.slots) != bits.OnesCount64(k.held) || k.extras != nil && len(k.extras) != len(k.slots) {
			return fmt.Errorf("chunk %d: used %x, held %x, %d slots", k.number, k.used, k.held, len(k.slots))
		}
		n += bits.OnesCount64(k.used)
		room += len(k.slots)
	}
	if n != t.n || room != t.room || gone != t.gone || len(t.chunks) != len(t.order)-gone {
		return fmt.Errorf("%d messages in %d slots, %d chunks gone: have %d in %d, %d", n, room, gone, t.n, t.room, t.gone)
	}
	if room > 4*n+roomy+chunkSize {
		return fmt.Errorf("%d slots for %d messages", room, n)
	}
	return nil
}

func (c *census) keys() error {
	if len(c.refs) != len(c.q.keys) {
		return fmt.Errorf("%d keys are used, %d are there", len(c.refs), len(c.q.keys))
	}
	for name, k := range c.q.keys {
		if k.name != name || k.refs != c.refs[k] || k.waiting != c.behind[k] {
			return fmt.Errorf("key %q: %d messages, %d behind, have %+v", name, c.refs[k], c.behind[k], k)
		}
		switch {
		case k.holder == 0:
			if k.front != c.lowest[k] {
				return fmt.Errorf("key %q: %d is first, want %d", name, k.front, c.lowest[k])
			}
		case k.front != 0 && k.front != k.holder:
			return fmt.Errorf("key %q: %d is ready while %d holds it", name, k.front, k.holder)
		default:
			if m, ok := c.q.table.find(k.holder); !ok || m.s.place != leased && m.s.place != delayed && m.s.place != ready {
				return fmt.Errorf("key %q: %d holds it, which cannot", name, k.holder)
			}
		}
	}
	return nil
}

func (c *census) leases() error {
	l := &c.q.leases
	if n := len(l.all) - len(l.free); n != c.counts[leased] {
		return fmt.Errorf("%d leases, %d leased", n, c.counts[leased])
	}
	for i, one := range l.all {
		if one.stamp == 0 {
			continue
		}
		m, ok := c.q.table.find(one.seq)
		if !ok || m.s.place != leased || m.s.lease != uint32(i) || one.consumer.leases[one.at] != uint32(i) || one.consumer.left {
			return fmt.Errorf("lease %+v does not fit its message or its consumer", one)
		}
	}
	return nil
}

// lines checks that every message that waits for something has just one entry that
// applies where its flags say so, and that the rest is within bounds.
func (c *census) lines() error {
	q := c.q
	for p := range q.lines {
		if err := c.list(fmt.Sprint("line ", p), &q.lines[p], c.ready[p]); err != nil {
			return err
		}
	}
	for name, k := range q.keys {
		if err := c.list(fmt.Sprintf("key %q", name), &k.line, c.behind[k]); err != nil {
			return err
		}
	}
	if q.settings.DropOld {
		if err := c.list("oldest", &q.oldest, c.counts[ready]+c.counts[behind]); err != nil {
			return err
		}
		if err := c.list("late", &q.late, c.counts[delayed]); err != nil {
			return err
		}
	}
	for _, t := range []struct {
		name    string
		line    *line[timer]
		live    int
		applies func(timer) bool
	}{
		{"leases", &q.ends, c.counts[leased], q.leases.runs},
		{"delays", &q.delays, c.counts[delayed], q.isDelayed},
		{"TTLs", &q.expires, c.mortal, func(t timer) bool {
			m, ok := q.table.find(t.ref)
			return ok && m.s.place.idle()
		}},
	} {
		if err := checkLine(t.name, t.line, t.live, t.applies); err != nil {
			return err
		}
	}
	return nil
}

func (c *census) list(name string, l *list, live int) error {
	return checkLine(name, &l.line, live, func(v number) bool {
		m, ok := c.q.table.find(uint64(v))
		return ok && l.holds(m) && m.s.flags&l.flag != 0
	})
}

// checkLine checks that as many entries as are live apply, each another one, that
// they come out in order, and that the rest are not too many.
func checkLine[T interface {
	ordered[T]
	comparable
}](name string, l *line[T], live int, applies func(T) bool) error {
	if l.sparse(live) {
		return fmt.Errorf("%s: %d entries for %d", name, l.size(), live)
	}
	seen := make(map[T]bool, live)
	for v := range l.each {
		if applies(v) {
			if seen[v] {
				return fmt.Errorf("%s: %v is there twice", name, v)
			}
			seen[v] = true
		}
	}
	if len(seen) != live {
		return fmt.Errorf("%s: %d entries apply, want %d", name, len(seen), live)
	}
	for i := 1; i < len(l.heap); i++ {
		if l.heap[i].before(l.heap[(i-1)/2]) {
			return fmt.Errorf("%s: the heap is none", name)
		}
	}
	last, some := *new(T), false
	for v := range l.fifo.each {
		if some && v.before(last) {
			return fmt.Errorf("%s: %v is after %v", name, v, last)
		}
		last, some = v, true
	}
	return nil
}

func (c *census) marks() error {
	k, pendings := &c.q.marks, 0
	for m := range c.q.table.all(0) {
		if e := m.extra(); e != nil && e.id != "" && k.ids[e.id].seq == m.seq {
			pendings++
		}
	}
	kept := 0
	for m := range k.kept.each {
		if k.ids[m.id].seq == m.seq {
			kept++
		}
	}
	if kept+pendings != len(k.ids) {
		return fmt.Errorf("%d dedup ids, %d of stored and %d of pending messages", len(k.ids), kept, pendings)
	}
	return nil
}
