package queue

// move takes m from its place to another. All counts and lists of places are kept
// here, and nowhere else but in insert.
func (q *Queue) move(m ref, to place) {
	from := m.s.place
	q.leave(m, from)
	m.s.place = to
	q.enter(m, to)
	q.trim(m, from)
	if from.idle() == to.idle() {
		return
	}
	if to.idle() {
		q.loose += int64(m.s.size)
		q.startTTL(m)
	} else {
		q.loose -= int64(m.s.size)
		q.stopTTL(m)
	}
}

func (q *Queue) leave(m ref, from place) {
	q.counts[from]--
	switch from {
	case ready:
		m.c.waiting &^= 1 << (m.seq % chunkSize)
		p := m.s.priority
		if q.ready[p]--; q.ready[p] == 0 {
			q.levels &^= 1 << p
		}
	case behind:
		m.c.waiting &^= 1 << (m.seq % chunkSize)
		m.extra().key.waiting--
	case delayed:
		m.extra().due = 0
	case leased:
		q.leases.release(m.s.lease)
	}
}

func (q *Queue) enter(m ref, to place) {
	q.counts[to]++
	switch to {
	case ready:
		m.c.waiting |= 1 << (m.seq % chunkSize)
		p := m.s.priority
		q.ready[p]++
		q.levels |= 1 << p
		q.lines[p].add(m)
	case behind:
		m.c.waiting |= 1 << (m.seq % chunkSize)
		k := m.extra().key
		k.waiting++
		k.line.add(m)
	case delayed:
		q.delays.add(timer{m.extra().due, m.seq})
	}
	if q.settings.DropOld {
		if to.waiting() {
			q.oldest.add(m)
		} else if to == delayed {
			q.late.add(m)
		}
	}
}

// arrive makes m, which waits for no time any more, ready or puts it behind its key.
func (q *Queue) arrive(m ref) {
	if e := m.extra(); e != nil && e.key != nil {
		q.join(m, e.key)
		return
	}
	q.move(m, ready)
}

// remove takes a message away for good, and out of the store.
func (q *Queue) remove(m ref, why Why) {
	switch why {
	case Acked:
		q.did.Acked++
	case Expired:
		q.did.Expired++
	case Dropped:
		q.did.Dropped++
	}
	q.effects = append(q.effects, Effect{Kind: Remove, Why: why, Seq: m.seq})
	q.forget(m)
}

// forget takes a message away; with a pending one goes its ID.
func (q *Queue) forget(m ref) {
	var k *key
	if e := m.extra(); e != nil {
		k = e.key
		if e.id != "" {
			q.marks.unnote(e.id, m.seq)
		}
	}
	q.move(m, absent)
	q.bytes -= int64(m.s.size)
	q.table.remove(m)
	if k != nil {
		q.quit(k, m.seq)
	}
}

// trim builds anew the lists of a place that m has left, if they are sparse.
func (q *Queue) trim(m ref, from place) {
	switch from {
	case ready:
		q.lines[m.s.priority].trim(&q.table, q.ready[m.s.priority])
	case behind:
		k := m.extra().key
		k.line.trim(&q.table, k.waiting)
	case delayed:
		trim(&q.delays, q.counts[delayed], q.isDelayed)
	case leased:
		trim(&q.ends, q.counts[leased], q.leases.runs)
	}
	if q.settings.DropOld && from.idle() {
		q.oldest.trim(&q.table, q.Waiting())
		q.late.trim(&q.table, q.counts[delayed])
	}
}
