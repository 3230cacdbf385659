package queue

// Message is what a queue must know about a pushed message. Times are ns since 1970.
type Message struct {
	Size     int    // bytes it counts for, below 4 GiB
	Key      string // at most one message of a key is in flight; "": none
	ID       string // for dedup; "": none
	Priority uint8  // 0 to 9, 9 is delivered first; above 9 counts as 9
	Time     int64  // of the push
	Due      int64  // not to be delivered before; 0: at once
	Expires  int64  // when its TTL is over; 0: never. Push sets it from Settings.TTL when it is 0
}

// State is what is to be remembered of a message beside itself. The zero State is
// that of a message that was never returned.
type State struct {
	Tries  uint32 // times delivered
	Due    int64  // it was returned with a delay until then; 0: without
	Dead   bool   // it is a dead letter
	Reason string // why it is one
}

// StateKind is where a message stands.
type StateKind uint8

// The kinds. Ready includes what waits behind its key.
const (
	Pending StateKind = iota + 1 // pushed, not yet stored
	Ready
	Delayed
	Leased
	Dead
)

func (k StateKind) String() string {
	switch k {
	case Pending:
		return "pending"
	case Ready:
		return "ready"
	case Delayed:
		return "delayed"
	case Leased:
		return "leased"
	case Dead:
		return "dead"
	}
	return "none"
}

// place is a StateKind as the inside sees it.
type place uint8

const (
	absent place = iota
	pending
	ready  // in the line of its priority
	behind // waits behind another of its key
	delayed
	leased
	dead
	places // how many there are
)

var kinds = [places]StateKind{pending: Pending, ready: Ready, behind: Ready, delayed: Delayed, leased: Leased, dead: Dead}

// waiting reports whether a message there is ready or behind its key.
func (p place) waiting() bool { return 1<<p&(1<<ready|1<<behind) != 0 }

// idle reports whether a message there is nobody's: TTLs, Purge and drop-old may
// take it.
func (p place) idle() bool { return 1<<p&(1<<ready|1<<behind|1<<delayed) != 0 }

// mask is a set of places.
func mask(list ...place) (m uint8) {
	for _, p := range list {
		m |= 1 << p
	}
	return m
}

// flags of a slot.
type flags uint8

const (
	inLine    flags = 1 << iota // the line of its priority has an entry of it
	inKey                       // so does its key's
	inExpiry                    // so do the timers of TTLs
	inOldest                    // so does Queue.oldest
	inLate                      // so does Queue.late
	delivered                   // it was or may have been delivered before
	moving                      // a dead letter that is being moved elsewhere
)

// slot is a message. Slots hold no pointer, so that the garbage collector does not
// look at a million of them.
type slot struct {
	time     int64
	expires  int64
	size     uint32
	tries    uint32
	lease    uint32 // index in leases, when leased
	place    place
	priority uint8
	flags    flags
}

// extra is what a plain waiting message does not have.
type extra struct {
	key    *key
	due    int64  // while pending or delayed; 0: none
	id     string // while pending
	reason string // of a dead letter
}

// expired reports whether the message's TTL is over.
func (s *slot) expired(now int64) bool { return s.expires != 0 && now >= s.expires }
