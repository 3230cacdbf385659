package store

// Memory is the Store that survives nothing.
type Memory struct {
	messages arena
	ledger   ledger
	bytes    int64
	high     uint64 // of messages
	closed   bool
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory { return new(Memory) }

// Append stores entries; see Store. It fails on entries the contract does not allow only.
func (m *Memory) Append(entries []Entry) (int, error) {
	if m.closed {
		return 0, ErrClosed
	}
	for i := range entries {
		e := &entries[i]
		if err := checkEntry(e, m.high); err != nil {
			return i, err
		}
		switch e.Kind {
		case Message:
			m.messages.put(e.Seq, e.Data)
			m.bytes += int64(len(e.Data))
			m.high = e.Seq
		case State:
			if _, ok := m.messages.get(e.Seq); ok {
				m.ledger.set(*e)
			}
		default:
			m.ledger.set(*e)
		}
	}
	return len(entries), nil
}

// Remove forgets messages and their States.
func (m *Memory) Remove(seqs []uint64) error {
	if m.closed {
		return ErrClosed
	}
	for _, seq := range seqs {
		if size, ok := m.messages.remove(seq); ok {
			m.bytes -= int64(size)
			m.ledger.dropState(seq)
		}
	}
	return nil
}

// Forget forgets the Marks up to and including upTo.
func (m *Memory) Forget(upTo uint64) error {
	if m.closed {
		return ErrClosed
	}
	m.ledger.forget(upTo)
	return nil
}

// Read appends message seq's Data to dst.
func (m *Memory) Read(dst []byte, seq uint64) ([]byte, error) {
	if m.closed {
		return dst, ErrClosed
	}
	data, ok := m.messages.get(seq)
	if !ok {
		return dst, fail(ErrNotFound, nil, "message %d is not there", seq)
	}
	return append(dst, data...), nil
}

// Each calls f for every live entry, in the order of Store.
func (m *Memory) Each(f func(Entry) error) error {
	if m.closed {
		return ErrClosed
	}
	return m.ledger.each(f, func(f func(uint64, []byte) error) error { return m.messages.each(f) })
}

// Sync does nothing.
func (m *Memory) Sync() error {
	if m.closed {
		return ErrClosed
	}
	return nil
}

// Stats returns the store's numbers. The store itself has no limits.
func (m *Memory) Stats() Stats {
	return Stats{
		Level:      LevelMemory,
		Messages:   m.messages.live,
		Marks:      m.ledger.marks.live,
		Bytes:      m.bytes,
		High:       max(m.high, m.ledger.markTop),
		MaxMessage: -1,
		Free:       -1,
		Used:       m.messages.blocks + 24*int64(m.messages.live) + int64(m.ledger.bytes) + 48*int64(m.ledger.marks.live),
	}
}

// Close forgets everything.
func (m *Memory) Close() error {
	m.closed = true
	m.messages, m.ledger.states, m.ledger.settings = arena{}, nil, nil
	return nil
}
