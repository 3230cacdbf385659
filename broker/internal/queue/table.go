package queue

import (
	"iter"
	"math/bits"
	"slices"
)

// table finds messages by seq. They lie in chunks of 64 seqs; a chunk in which few
// are left holds slots for those only.
type table struct {
	chunks map[uint64]*chunk // by number
	order  []*chunk          // by number; dropped ones have no slots
	gone   int               // dropped ones in order
	tail   *chunk            // the one with the highest number: it stays when it is empty
	near   *chunk            // the one that was asked for last
	spare  [][]slot
	n      int // messages
	room   int // slots
}

// chunk is the messages of 64 seqs in a row. In its sets bit i stands for seq
// 64*number+i.
type chunk struct {
	number  uint64
	used    uint64   // there is a message
	held    uint64   // there is a slot
	waiting uint64   // the message is ready or behind its key
	slots   []slot   // for the bits of held, in order
	extras  []*extra // beside slots; nil: there are none
}

// ref is a message that was found. It is valid until a message is removed or added.
type ref struct {
	seq uint64
	c   *chunk
	s   *slot
}

const (
	chunkSize = 64
	whole     = ^uint64(0) // all bits of a chunk

	// keptChunks is how many chunks of slots are kept for the next messages.
	keptChunks = 8
)

// roomy is how many slots there may be beside four for each message before sparse
// chunks are made smaller. Tests make it smaller.
var roomy = 4096

func (t *table) chunk(number uint64) *chunk {
	if t.tail != nil && t.tail.number == number {
		return t.tail
	}
	if t.near != nil && t.near.number == number {
		return t.near
	}
	c := t.chunks[number]
	if c != nil {
		t.near = c
	}
	return c
}

func (c *chunk) index(seq uint64) int {
	i := seq % chunkSize
	if c.held == whole {
		return int(i)
	}
	return bits.OnesCount64(c.held & (1<<i - 1))
}

func (c *chunk) ref(seq uint64) ref { return ref{seq, c, &c.slots[c.index(seq)]} }

func (t *table) find(seq uint64) (ref, bool) {
	c := t.chunk(seq / chunkSize)
	if c == nil || c.used&(1<<(seq%chunkSize)) == 0 {
		return ref{}, false
	}
	return c.ref(seq), true
}

// add makes an empty slot for seq, which is not there.
func (t *table) add(seq uint64) ref {
	c := t.chunk(seq / chunkSize)
	if c == nil {
		c = t.open(seq / chunkSize)
		t.limit() // what is restored may be sparse from the start
	}
	if c.held&(1<<(seq%chunkSize)) == 0 {
		t.resize(c, whole)
	}
	c.used |= 1 << (seq % chunkSize)
	t.n++
	return c.ref(seq)
}

// open makes a chunk.
func (t *table) open(number uint64) *chunk {
	c := &chunk{number: number, held: whole, slots: t.slots()}
	t.room += chunkSize
	if t.chunks == nil {
		t.chunks = make(map[uint64]*chunk)
	}
	t.chunks[number] = c
	if t.tail != nil && number < t.tail.number {
		t.order = slices.Insert(t.order, t.search(number), c)
		return c
	}
	old := t.tail
	t.tail = c
	t.order = append(t.order, c)
	if old != nil && old.used == 0 {
		t.close(old)
	}
	return c
}

func (t *table) slots() []slot {
	if n := len(t.spare); n > 0 {
		s := t.spare[n-1]
		t.spare = t.spare[:n-1]
		return s
	}
	return make([]slot, chunkSize)
}

// close drops an empty chunk, whose slots are all clear.
func (t *table) close(c *chunk) {
	delete(t.chunks, c.number)
	if t.near == c {
		t.near = nil
	}
	t.room -= len(c.slots)
	if len(c.slots) == chunkSize && len(t.spare) < keptChunks {
		t.spare = append(t.spare, c.slots)
	}
	c.slots, c.extras = nil, nil
	t.gone++
	for len(t.order) > 0 && t.order[0].slots == nil {
		t.order[0] = nil
		t.order = t.order[1:]
		t.gone--
	}
	if t.gone > len(t.order)/2 {
		t.order = slices.DeleteFunc(t.order, func(c *chunk) bool { return c.slots == nil })
		t.gone = 0
	}
}

// search returns where in order the chunks from number on begin.
func (t *table) search(number uint64) int {
	i, _ := slices.BinarySearchFunc(t.order, number, func(c *chunk, number uint64) int {
		switch {
		case c.number < number:
			return -1
		case c.number > number:
			return 1
		}
		return 0
	})
	return i
}

// remove clears the slot of m.
func (t *table) remove(m ref) {
	m.dress(nil)
	*m.s = slot{}
	m.c.used &^= 1 << (m.seq % chunkSize)
	t.n--
	if m.c.used == 0 && m.c != t.tail {
		t.close(m.c)
	}
	t.limit()
}

// limit makes sparse chunks smaller when there are many slots for few messages. What
// that costs is paid by those that were opened or removed since the last time.
func (t *table) limit() {
	if t.room <= 4*t.n+roomy {
		return
	}
	for _, c := range t.order {
		if c != t.tail && 2*bits.OnesCount64(c.used) <= len(c.slots) && c.slots != nil {
			t.resize(c, c.used)
		}
	}
}

// resize gives the chunk slots for the bits of held.
func (t *table) resize(c *chunk, held uint64) {
	old, n := *c, bits.OnesCount64(held)
	c.held, c.slots = held, make([]slot, n)
	if c.extras != nil {
		c.extras = make([]*extra, n)
	}
	for left := c.used; left != 0; left &= left - 1 {
		i := uint64(bits.TrailingZeros64(left))
		c.slots[c.index(i)] = old.slots[old.index(i)]
		if c.extras != nil {
			c.extras[c.index(i)] = old.extras[old.index(i)]
		}
	}
	t.room += n - len(old.slots)
}

// all returns the messages from seq from on, in order. None may be added or removed
// meanwhile.
func (t *table) all(from uint64) iter.Seq[ref] {
	return func(yield func(ref) bool) {
		first := from / chunkSize
		for _, c := range t.order[t.search(first):] {
			left := c.used
			if c.number == first {
				left &^= 1<<(from%chunkSize) - 1
			}
			for ; left != 0; left &= left - 1 {
				if !yield(c.ref(c.number*chunkSize + uint64(bits.TrailingZeros64(left)))) {
					return
				}
			}
		}
	}
}

// extra returns what a plain message does not have, or nil.
func (m ref) extra() *extra {
	if m.c.extras == nil {
		return nil
	}
	return m.c.extras[m.c.index(m.seq)]
}

// need returns m's extra, which is made if there is none.
func (m ref) need() *extra {
	e := m.extra()
	if e == nil {
		e = new(extra)
		m.dress(e)
	}
	return e
}

// tidy drops m's extra when nothing is in it.
func (m ref) tidy() {
	if e := m.extra(); e != nil && *e == (extra{}) {
		m.dress(nil)
	}
}

// dress gives m the extra e, or none if that is nil.
func (m ref) dress(e *extra) {
	if m.c.extras == nil {
		if e == nil {
			return
		}
		m.c.extras = make([]*extra, len(m.c.slots))
	}
	m.c.extras[m.c.index(m.seq)] = e
}
