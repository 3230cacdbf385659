package queue

// Tighten makes the bounds small beyond which lists and chunks are built anew, so
// that few messages reach them, and returns what undoes it.
func Tighten() (undo func()) {
	oldSlack, oldRoomy := slack, roomy
	slack, roomy = 1, 0
	return func() { slack, roomy = oldSlack, oldRoomy }
}

// TickSteps is how much one Tick does at most.
const TickSteps = tickSteps

// Slots returns how many slots the queue's chunks have.
func (q *Queue) Slots() int { return q.table.room }

// Entries returns how many entries the queue's lines and timers have.
func (q *Queue) Entries() int {
	n := q.oldest.size() + q.late.size() + q.ends.size() + q.delays.size() + q.expires.size() + q.marks.kept.size()
	for p := range q.lines {
		n += q.lines[p].size()
	}
	for _, k := range q.keys {
		n += k.line.size()
	}
	return n
}
