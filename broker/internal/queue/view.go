package queue

// View is what there is to see of a message.
type View struct {
	State       StateKind
	Tries       uint32
	Due         int64 // end of the delay or of the lease; else 0
	Priority    uint8
	Key         string
	Reason      string // of a dead letter
	Expires     int64
	Time        int64
	Size        int
	Redelivered bool // it was or may have been delivered
}

// Look returns what there is to see of a message, and whether it is there.
func (q *Queue) Look(seq uint64) (View, bool) {
	m, ok := q.table.find(seq)
	if !ok {
		return View{}, false
	}
	return q.view(m), true
}

// Each calls f for the messages from seq from on, in order, until it returns false.
// f must not change the queue.
func (q *Queue) Each(from uint64, f func(seq uint64, v View) bool) {
	for m := range q.table.all(from) {
		if !f(m.seq, q.view(m)) {
			return
		}
	}
}

func (q *Queue) view(m ref) View {
	v := View{
		State: kinds[m.s.place], Tries: m.s.tries, Priority: m.s.priority, Expires: m.s.expires,
		Time: m.s.time, Size: int(m.s.size), Redelivered: m.s.flags&delivered != 0,
	}
	if m.s.place == leased {
		v.Due = q.leases.all[m.s.lease].end
	}
	if e := m.extra(); e != nil {
		v.Reason = e.reason
		if m.s.place == delayed {
			v.Due = e.due
		}
		if e.key != nil {
			v.Key = e.key.name
		}
	}
	return v
}
