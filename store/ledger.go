package store

// ledger holds what a queue remembers beside its messages: settings, states and
// marks. The zero ledger is empty.
type ledger struct {
	settings    []byte
	hasSettings bool
	states      map[uint64][]byte
	marks       list[[]byte]

	entries int // live
	bytes   int // of their Data
	markTop uint64
}

// set takes e, which is no Message, and a copy of its Data.
func (l *ledger) set(e Entry) {
	data := clone(e.Data)
	switch e.Kind {
	case Settings:
		l.count(l.hasSettings, len(l.settings), len(data))
		l.settings, l.hasSettings = data, true
	case State:
		if l.states == nil {
			l.states = make(map[uint64][]byte)
		}
		before, had := l.states[e.Seq]
		l.count(had, len(before), len(data))
		l.states[e.Seq] = data
	case Mark:
		before, had := l.marks.put(e.Seq, data)
		l.count(had, len(before), len(data))
		l.markTop = max(l.markTop, e.Seq)
	}
}

func (l *ledger) count(replaces bool, before, now int) {
	if replaces {
		l.entries--
		l.bytes -= before
	}
	l.entries++
	l.bytes += now
}

// dropState forgets what became of message seq.
func (l *ledger) dropState(seq uint64) {
	if len(l.states) == 0 {
		return
	}
	if before, ok := l.states[seq]; ok {
		delete(l.states, seq)
		l.entries--
		l.bytes -= len(before)
	}
}

// forget forgets the marks up to and including upTo and returns how many there were.
func (l *ledger) forget(upTo uint64) (n int) {
	for {
		seq, ok := l.marks.first()
		if !ok || seq > upTo {
			return n
		}
		before, _ := l.marks.remove(seq)
		l.entries--
		l.bytes -= len(before)
		n++
	}
}

// checkEntry returns ErrBadEntry in words where the contract does not allow e after
// messages up to high.
func checkEntry(e *Entry, high uint64) error {
	switch e.Kind {
	case Message, State, Mark:
		if e.Seq == 0 || e.Seq > MaxSeq {
			return fail(ErrBadEntry, nil, "seq %d is not from 1 to %d", e.Seq, uint64(MaxSeq))
		}
		if e.Kind == Message && e.Seq <= high {
			return fail(ErrBadEntry, nil, "message %d comes after message %d: seqs rise and are never used twice", e.Seq, high)
		}
	case Settings:
		if e.Seq != 0 {
			return fail(ErrBadEntry, nil, "settings with seq %d: they have none", e.Seq)
		}
	default:
		return fail(ErrBadEntry, nil, "entry of unknown kind %d", e.Kind)
	}
	return nil
}

// clone returns a copy of b that is never nil and takes no more than it needs.
func clone(b []byte) []byte { return append(make([]byte, 0, len(b)), b...) }

// each calls f for every entry in the order of Store.Each; messages calls its
// argument with each message in seq order.
func (l *ledger) each(f func(Entry) error, messages func(func(seq uint64, data []byte) error) error) error {
	if l.hasSettings {
		if err := f(Entry{Kind: Settings, Data: l.settings}); err != nil {
			return err
		}
	}
	err := messages(func(seq uint64, data []byte) error {
		if err := f(Entry{Kind: Message, Seq: seq, Data: data}); err != nil {
			return err
		}
		if state, ok := l.states[seq]; ok {
			return f(Entry{Kind: State, Seq: seq, Data: state})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.marks.each(func(seq uint64, data []byte) error {
		return f(Entry{Kind: Mark, Seq: seq, Data: data})
	})
}
