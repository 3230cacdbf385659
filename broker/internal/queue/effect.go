package queue

// EffectKind says what is to be done about a message.
type EffectKind uint8

// The kinds of effects. Take has none: a lease itself is not remembered.
const (
	// Remove: the message is gone, take it out of the store. Why says how it went.
	Remove EffectKind = iota + 1
	// Save: State replaces what is remembered of the message.
	Save
	// Bury (only with Settings.Forward): the message is a dead letter that is to be
	// moved elsewhere, with the reason and tries in State. Moved or NotMoved answers it.
	Bury
	// Forget: marks of dedup ids with a seq up to Seq may be forgotten.
	Forget
)

func (k EffectKind) String() string {
	return [...]string{"none", "remove", "save", "bury", "forget"}[min(k, Forget)]
}

// Why says how a message went.
type Why uint8

// The ways a message goes.
const (
	Acked Why = iota + 1
	Expired
	Dropped
	Purged
	Moved
)

func (w Why) String() string {
	return [...]string{"none", "acked", "expired", "dropped", "purged", "moved"}[min(w, Moved)]
}

// Effect is something that the queue's owner is to do.
type Effect struct {
	Kind  EffectKind
	Why   Why // of Remove
	Seq   uint64
	State State // of Save and Bury
}

// keptEffects is how long a list of effects is kept for the next; one of a large
// purge is not.
const keptEffects = 4096

// Effects returns what is to be done since ClearEffects, in order. The list belongs
// to the queue and is valid until the next call that changes it.
func (q *Queue) Effects() []Effect { return q.effects }

// ClearEffects empties the list of effects.
func (q *Queue) ClearEffects() {
	if cap(q.effects) > keptEffects {
		q.effects = nil
		return
	}
	clear(q.effects) // they hold reasons
	q.effects = q.effects[:0]
}

func (q *Queue) save(m ref) {
	q.effects = append(q.effects, Effect{Kind: Save, Seq: m.seq, State: m.state()})
}

// state is what is to be remembered of m.
func (m ref) state() State {
	s := State{Tries: m.s.tries, Dead: m.s.place == dead}
	if e := m.extra(); e != nil {
		s.Reason = e.reason
		if m.s.place == delayed {
			s.Due = e.due
		}
	}
	return s
}
