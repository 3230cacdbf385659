package queue

import (
	"math"
	"time"
)

// Settings are a queue's bounds and times, all definite.
type Settings struct {
	MaxMessages int           // above 0; every message counts, dead letters too
	MaxBytes    int64         // above 0; the same
	MaxMarks    int           // most dedup ids remembered: beyond it the oldest is forgotten before its time. 0: no bound but Dedup
	DropOld     bool          // a full queue drops its oldest messages
	Lease       time.Duration // above 0
	TTL         time.Duration // 0: none
	Dedup       time.Duration // 0: none
	MaxTries    int           // deliveries after which a message that comes back is a dead letter. 0: no limit
	Forward     bool          // dead letters are moved elsewhere by the queue's owner
}

// Queue is one queue. It is for one goroutine at a time; no function waits.
type Queue struct {
	settings Settings
	high     uint64 // highest seq ever used
	paused   bool

	table  table
	counts [places]int
	bytes  int64 // of all messages
	loose  int64 // of those in idle places
	mortal int   // how many in idle places have a TTL

	lines  [priorities]list // ready ones
	ready  [priorities]int  // how many are ready
	levels uint16           // bit p is set if ready[p] is above 0
	oldest list             // waiting ones, if Settings.DropOld
	late   list             // delayed ones, if Settings.DropOld

	keys    map[string]*key
	leases  leases
	ends    line[timer] // of leases
	delays  line[timer]
	expires line[timer] // TTLs
	marks   marks

	effects []Effect
	did     Counters
}

const priorities = 10

// Verdict is what Push made of a message.
type Verdict uint8

// The verdicts.
const (
	Taken     Verdict = iota + 1 // it is pending until Stored or Unstored
	Duplicate                    // its ID was seen within Settings.Dedup
	Full                         // there is no room
)

func (v Verdict) String() string {
	return [...]string{"none", "taken", "duplicate", "full"}[min(v, Full)]
}

// New returns an empty queue. high is the highest seq that was ever used in it: the
// next is high+1.
func New(s Settings, high uint64) *Queue {
	q := &Queue{settings: s, high: high}
	for p := range q.lines {
		q.lines[p] = list{places: mask(ready), flag: inLine}
	}
	q.oldest = list{places: mask(ready, behind), flag: inOldest}
	q.late = list{places: mask(delayed), flag: inLate}
	return q
}

// Push judges a message. When it is Taken, seq is its number, it counts for fullness
// and it is pending until Stored or Unstored says how keeping it went. Push sets
// m.Expires, and keeps m's strings but not m.
//
// With Settings.DropOld the oldest ready messages are dropped to make room, then the
// oldest delayed ones; it is Full, and nothing is dropped, if all of these would not
// be enough.
func (q *Queue) Push(now int64, m *Message) (seq uint64, v Verdict) {
	if m.ID != "" && q.seen(now, m.ID) {
		q.did.Duplicates++
		return 0, Duplicate
	}
	if !q.HasRoom(m.Size) {
		return 0, Full
	}
	for !q.fits(m.Size) {
		q.dropOldest()
	}
	if m.Expires == 0 && q.settings.TTL > 0 {
		m.Expires = after(now, q.settings.TTL)
	}
	q.high++
	r := q.insert(q.high, m)
	if m.Due != 0 {
		r.need().due = m.Due
	}
	if m.ID != "" && q.settings.Dedup > 0 {
		r.need().id = m.ID
		q.marks.note(m.ID, q.high, now)
	}
	return q.high, Taken
}

// insert makes a pending message of m.
func (q *Queue) insert(seq uint64, m *Message) ref {
	r := q.table.add(seq)
	size := uint32(min(max(m.Size, 0), math.MaxUint32))
	*r.s = slot{time: m.Time, expires: m.Expires, size: size, priority: min(m.Priority, priorities-1), place: pending}
	q.counts[pending]++
	q.bytes += int64(size)
	if m.Key != "" {
		r.need().key = q.key(m.Key)
	}
	return r
}

// Stored says that the pending message is kept: it is ready, or delayed, or behind
// its key.
func (q *Queue) Stored(now int64, seq uint64) {
	m, ok := q.table.find(seq)
	if !ok || m.s.place != pending {
		return
	}
	q.did.Pushed++
	e := m.extra()
	if e == nil {
		q.move(m, ready)
		return
	}
	if e.id != "" {
		q.remember(e.id, seq)
		e.id = ""
	}
	if e.due > now {
		q.move(m, delayed)
		return
	}
	e.due = 0
	q.arrive(m)
	m.tidy()
}

// Unstored says that the pending message could not be kept. It is forgotten, its ID
// too.
func (q *Queue) Unstored(seq uint64) {
	if m, ok := q.table.find(seq); ok && m.s.place == pending {
		q.forget(m)
	}
}

// HasRoom reports whether Push would take a message of size bytes, drop-old
// included.
func (q *Queue) HasRoom(size int) bool {
	if q.fits(size) {
		return true
	}
	if !q.settings.DropOld {
		return false
	}
	rest := q.table.n - q.counts[ready] - q.counts[behind] - q.counts[delayed]
	return q.settings.room(rest, q.bytes-q.loose, size)
}

func (q *Queue) fits(size int) bool { return q.settings.room(q.table.n, q.bytes, size) }

// room reports whether a message fits beside n others of so many bytes. One above
// MaxBytes fits an empty queue, else it could never pass.
func (s *Settings) room(n int, bytes int64, size int) bool {
	return n < s.MaxMessages && (n == 0 || bytes+int64(size) <= s.MaxBytes)
}

// dropOldest drops a message that waits. There is one.
func (q *Queue) dropOldest() {
	m, ok := q.oldest.front(&q.table)
	if !ok {
		m, ok = q.late.front(&q.table)
	}
	if !ok {
		panic("queue: nothing to drop")
	}
	q.remove(m, Dropped)
}

// DropOldest drops up to n messages as Push does, for a store that is full before the
// queue is. It returns how many: 0 without Settings.DropOld.
func (q *Queue) DropOldest(n int) int {
	for i := range n {
		_, waits := q.oldest.front(&q.table)
		if _, late := q.late.front(&q.table); !waits && !late {
			return i
		}
		q.dropOldest()
	}
	return n
}

// Pause stops deliveries until Resume. What is due is still done.
func (q *Queue) Pause() { q.paused = true }

// Resume ends Pause.
func (q *Queue) Resume() { q.paused = false }

// Paused reports whether deliveries are stopped.
func (q *Queue) Paused() bool { return q.paused }

// Purge removes what is ready or delayed, or the dead letters, and returns how many
// that were. Leased and pending messages stay, and dead letters that are being moved.
func (q *Queue) Purge(deadLetters bool) int { return q.PurgeSome(deadLetters, q.high, q.table.n) }

// High returns the highest number that a message ever had.
func (q *Queue) High() uint64 { return q.high }

// PurgeSome purges as Purge does, n messages at most, none with a number above upTo.
func (q *Queue) PurgeSome(deadLetters bool, upTo uint64, n int) int {
	var seqs []uint64
	for m := range q.table.all(0) {
		if m.seq > upTo || len(seqs) >= n {
			break
		}
		if deadLetters && m.s.place == dead && m.s.flags&moving == 0 || !deadLetters && m.s.place.idle() {
			seqs = append(seqs, m.seq)
		}
	}
	for _, seq := range seqs {
		m, _ := q.table.find(seq)
		q.remove(m, Purged)
	}
	return len(seqs)
}

// Lost says that the store has lost messages. They are forgotten without effects, a
// lease on them too; their IDs are still remembered.
func (q *Queue) Lost(seqs []uint64) {
	for _, seq := range seqs {
		if m, ok := q.table.find(seq); ok {
			q.did.Lost++
			q.forget(m)
		}
	}
}

// after returns now+d, or the end of time.
func after(now int64, d time.Duration) int64 {
	if t := now + int64(d); t >= now || d < 0 {
		return t
	}
	return math.MaxInt64
}
