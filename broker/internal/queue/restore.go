package queue

// Restore puts back a stored message with what was remembered of it, at the start
// and before all but RestoreMark, in seq order. maybeDelivered says that it may have
// been delivered without a trace in s: then it is marked redelivered. Delays and TTLs
// that are over meanwhile are the next Tick's.
func (q *Queue) Restore(seq uint64, m *Message, s State, maybeDelivered bool) {
	if _, ok := q.table.find(seq); ok {
		return
	}
	q.high = max(q.high, seq)
	r := q.insert(seq, m)
	r.s.tries = s.Tries
	if s.Tries > 0 || maybeDelivered {
		r.s.flags |= delivered
	}
	q.RestoreMark(seq, m.ID, m.Time)
	due := m.Due
	if s != (State{}) {
		due = s.Due // it has been delivered, so the first delay was over
	}
	switch {
	case s.Dead:
		r.need().reason = s.Reason
		q.move(r, dead)
	case due != 0:
		e := r.need()
		e.due = due
		if e.key != nil && s.Due != 0 {
			q.hold(r, e.key)
		}
		q.move(r, delayed)
	default:
		q.arrive(r)
	}
}

// hold makes m, which was returned with a delay, the holder of its key, unless the
// key has one: what a crash left of an earlier one, which is then the one that counts.
func (q *Queue) hold(m ref, k *key) {
	if k.holder != 0 {
		return
	}
	k.holder = m.seq
	if k.front != 0 {
		first, _ := q.table.find(k.front)
		k.front = 0
		q.move(first, behind)
	}
}

// RestoreMark puts back the dedup id of a message that may be gone: the id was
// pushed at that time. Its place is that of Restore; the order does not matter.
func (q *Queue) RestoreMark(seq uint64, id string, time int64) {
	if id == "" || q.settings.Dedup <= 0 || q.marks.ids[id].seq >= seq {
		return
	}
	q.high = max(q.high, seq)
	q.marks.note(id, seq, time)
	q.remember(id, seq)
}
