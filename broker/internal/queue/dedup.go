package queue

// marks are the dedup ids that are remembered.
type marks struct {
	ids  map[string]sighting
	kept line[mark] // those of stored messages, by seq
}

// sighting is the last push of an id.
type sighting struct {
	seq  uint64
	time int64
}

// mark is the id of a message. It no longer applies when the id was pushed again.
type mark struct {
	seq uint64
	id  string
}

func (a mark) before(b mark) bool { return a.seq < b.seq }

// seen reports whether the id was pushed within Settings.Dedup.
func (q *Queue) seen(now int64, id string) bool {
	s, ok := q.marks.ids[id]
	return ok && now < after(s.time, q.settings.Dedup)
}

// First returns the number of the message that a Duplicate of id is one of.
func (q *Queue) First(id string) uint64 { return q.marks.ids[id].seq }

// MarksAfter calls f, in no order, for each id that is remembered of a message behind seq.
func (q *Queue) MarksAfter(seq uint64, f func(seq uint64, id string, time int64)) {
	for id, s := range q.marks.ids {
		if s.seq > seq {
			f(s.seq, id, s.time)
		}
	}
}

// note remembers a push that is not stored yet.
func (k *marks) note(id string, seq uint64, time int64) {
	if k.ids == nil {
		k.ids = make(map[string]sighting)
	}
	k.ids[id] = sighting{seq, time}
}

// unnote forgets a push that could not be stored.
func (k *marks) unnote(id string, seq uint64) {
	if k.ids[id].seq == seq {
		k.remove(id)
	}
}

func (k *marks) remove(id string) {
	delete(k.ids, id)
	if len(k.ids) == 0 {
		k.ids = nil // a map does not become smaller
	}
}

// remember makes a push one that is stored.
func (q *Queue) remember(id string, seq uint64) {
	k := &q.marks
	if k.ids[id].seq != seq {
		return // pushed again since
	}
	k.kept.add(mark{seq, id})
	var upTo uint64
	for q.settings.MaxMarks > 0 && len(k.ids) > q.settings.MaxMarks {
		m, ok := k.first()
		if !ok {
			break // what is pending cannot be forgotten
		}
		upTo = max(upTo, m.seq)
		k.drop(m)
	}
	q.forgot(upTo)
}

// first returns the mark with the lowest seq.
func (k *marks) first() (mark, bool) {
	for {
		m, ok := k.kept.first()
		if !ok || k.ids[m.id].seq == m.seq {
			return m, ok
		}
		k.kept.drop()
	}
}

// drop forgets the first mark.
func (k *marks) drop(m mark) {
	k.kept.drop()
	k.remove(m.id)
}

// nextMark returns when the next mark is to be forgotten.
func (q *Queue) nextMark() (int64, bool) {
	if q.marks.ids == nil {
		return 0, false
	}
	m, ok := q.marks.first()
	if !ok {
		return 0, false
	}
	return after(q.marks.ids[m.id].time, q.settings.Dedup), true
}

// forgetMarks forgets up to so many marks whose time is over.
func (q *Queue) forgetMarks(now int64, steps int) {
	var upTo uint64
	for ; steps > 0; steps-- {
		at, ok := q.nextMark()
		if !ok || at > now {
			break
		}
		m, _ := q.marks.first()
		upTo = max(upTo, m.seq)
		q.marks.drop(m)
	}
	q.forgot(upTo)
}

func (q *Queue) forgot(upTo uint64) {
	if upTo > 0 {
		q.effects = append(q.effects, Effect{Kind: Forget, Seq: upTo})
	}
}
