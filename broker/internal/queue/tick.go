package queue

import "math"

// tickSteps is how much one Tick does at most, so that a million TTLs that are over
// at once do not hold the queue's owner up: about a millisecond.
const tickSteps = 10000

// Tick does what is due: leases that ran out, delays and TTLs that are over, dedup
// ids to be forgotten. It does so much at a time; Due tells if there is more.
func (q *Queue) Tick(now int64) {
	steps := tickSteps
	for ; steps > 0; steps-- {
		t, ok := q.nextEnd()
		if !ok || t.at > now {
			break
		}
		q.ends.drop()
		m, _ := q.table.find(q.leases.of(t).seq)
		q.giveBack(now, m, 0, byTime)
	}
	for ; steps > 0; steps-- {
		t, ok := q.nextDelay()
		if !ok || t.at > now {
			break
		}
		q.delays.drop()
		m, _ := q.table.find(t.ref)
		q.arrive(m)
		m.tidy()
	}
	for ; steps > 0; steps-- {
		t, ok := q.nextExpiry()
		if !ok || t.at > now {
			break
		}
		m, _ := q.table.find(t.ref)
		q.remove(m, Expired)
	}
	q.forgetMarks(now, steps)
}

// Due returns when Tick has something to do next, which may be past; 0: never.
func (q *Queue) Due() int64 {
	due := int64(math.MaxInt64)
	if t, ok := q.nextEnd(); ok {
		due = min(due, t.at)
	}
	if t, ok := q.nextDelay(); ok {
		due = min(due, t.at)
	}
	if t, ok := q.nextExpiry(); ok {
		due = min(due, t.at)
	}
	if at, ok := q.nextMark(); ok {
		due = min(due, at)
	}
	if due == math.MaxInt64 {
		return 0
	}
	return due
}

// next returns the first timer that applies; those before it are dropped.
func next(l *line[timer], applies func(timer) bool) (timer, bool) {
	for l.size() > 0 {
		if t, _ := l.first(); applies(t) {
			return t, true
		}
		l.drop()
	}
	return timer{}, false
}

// trim drops timers that do not apply when most are such.
func trim(l *line[timer], live int, applies func(timer) bool) {
	if !l.sparse(live) {
		return
	}
	if next(l, applies); l.sparse(live) {
		l.keep(applies)
	}
}

func (q *Queue) nextEnd() (timer, bool)    { return next(&q.ends, q.leases.runs) }
func (q *Queue) nextDelay() (timer, bool)  { return next(&q.delays, q.isDelayed) }
func (q *Queue) nextExpiry() (timer, bool) { return next(&q.expires, q.mayExpire) }

// isDelayed reports whether the timer is that of a delay. A message leaves its delay
// when its timer comes up or for good, so there is one timer to each.
func (q *Queue) isDelayed(t timer) bool {
	m, ok := q.table.find(t.ref)
	return ok && m.s.place == delayed
}

// mayExpire reports whether the timer is that of a message that its TTL may take. Of
// one that is leased or dead it is dropped, and set again when it comes back.
func (q *Queue) mayExpire(t timer) bool {
	m, ok := q.table.find(t.ref)
	if ok && !m.s.place.idle() {
		m.s.flags &^= inExpiry
		return false
	}
	return ok
}

// startTTL sets the timer of a message's TTL.
func (q *Queue) startTTL(m ref) {
	if m.s.expires == 0 {
		return
	}
	q.mortal++
	if m.s.flags&inExpiry == 0 {
		m.s.flags |= inExpiry
		q.expires.add(timer{m.s.expires, m.seq})
	}
}

// stopTTL says that the TTL does not apply to the message now. Its timer may stay.
func (q *Queue) stopTTL(m ref) {
	if m.s.expires == 0 {
		return
	}
	q.mortal--
	trim(&q.expires, q.mortal, q.mayExpire)
}
