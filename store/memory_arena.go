package store

import (
	"maps"
	"slices"
)

// arena holds the data of messages by seq. It lies in blocks in the order it came, so
// that a message costs its bytes and 24 more, and no object of its own; its place is in
// a chunk of 64 seqs. Each operation costs the same at any number of messages. The zero
// arena is empty.
type arena struct {
	chunks  map[uint64]*arenaChunk // by seq/64
	last    *arenaChunk            // the one used last, whose number is
	number  uint64
	filling *arenaBlock
	live    int
	blocks  int64 // bytes that all blocks take
}

type arenaChunk struct {
	places [64]arenaPlace
	live   int
}

// arenaPlace is where a message's data is.
type arenaPlace struct {
	block *arenaBlock // nil: there is none
	at, n uint32
}

// arenaBlock is data of messages, those that were put in.
type arenaBlock struct {
	buf  []byte
	live int      // bytes of messages that are there
	seqs []uint64 // of all that were put in
}

const (
	// arenaBlockSize is how large blocks are, bytes; a larger message has its own.
	arenaBlockSize = 64 << 10

	// arenaSparse is what part of a block must be dead before what is left in it moves.
	arenaSparse = 4
)

// chunk returns the chunk of seq, nil when there is none.
func (a *arena) chunk(seq uint64) *arenaChunk {
	if n := seq / 64; a.last == nil || n != a.number {
		c := a.chunks[n]
		if c == nil {
			return nil
		}
		a.last, a.number = c, n
	}
	return a.last
}

func (a *arena) get(seq uint64) (data []byte, ok bool) {
	c := a.chunk(seq)
	if c == nil {
		return nil, false
	}
	p := &c.places[seq%64]
	if p.block == nil {
		return nil, false
	}
	return p.block.buf[p.at : p.at+p.n : p.at+p.n], true
}

// put keeps a copy of the data of seq, which is above all there were.
func (a *arena) put(seq uint64, data []byte) {
	c := a.chunk(seq)
	if c == nil {
		c = new(arenaChunk)
		if a.chunks == nil {
			a.chunks = make(map[uint64]*arenaChunk)
		}
		a.chunks[seq/64] = c
		a.last, a.number = c, seq/64
	}
	a.place(&c.places[seq%64], seq, data)
	c.live++
	a.live++
}

// place copies data into the block being filled.
func (a *arena) place(p *arenaPlace, seq uint64, data []byte) {
	b := a.filling
	if b == nil || cap(b.buf)-len(b.buf) < len(data) {
		b = &arenaBlock{buf: make([]byte, 0, max(arenaBlockSize, len(data)))}
		a.filling = b
		a.blocks += int64(cap(b.buf))
	}
	*p = arenaPlace{b, uint32(len(b.buf)), uint32(len(data))}
	b.buf = append(b.buf, data...)
	b.live += len(data)
	b.seqs = append(b.seqs, seq)
}

// remove forgets seq and returns how many bytes it had.
func (a *arena) remove(seq uint64) (size int, ok bool) {
	c := a.chunk(seq)
	if c == nil || c.places[seq%64].block == nil {
		return 0, false
	}
	p := c.places[seq%64]
	c.places[seq%64] = arenaPlace{}
	a.live--
	if c.live--; c.live == 0 {
		delete(a.chunks, seq/64)
		a.last = nil
	}
	b := p.block
	b.live -= int(p.n)
	switch {
	case b == a.filling:
		if a.live == 0 {
			b.buf, b.seqs = b.buf[:0], b.seqs[:0]
		}
	case b.live == 0 || b.live < len(b.buf)/arenaSparse:
		a.empty(b)
	}
	return int(p.n), true
}

// empty moves what is left in b to the block being filled.
func (a *arena) empty(b *arenaBlock) {
	a.blocks -= int64(cap(b.buf))
	for _, seq := range b.seqs {
		c := a.chunk(seq)
		if c == nil {
			continue
		}
		if p := &c.places[seq%64]; p.block == b {
			b.live -= int(p.n)
			a.place(p, seq, b.buf[p.at:p.at+p.n])
		}
	}
}

// each calls f in seq order until it returns an error, and returns that. f must not
// change the arena.
func (a *arena) each(f func(seq uint64, data []byte) error) error {
	for _, n := range slices.Sorted(maps.Keys(a.chunks)) {
		c := a.chunks[n]
		for i := range c.places {
			p := &c.places[i]
			if p.block == nil {
				continue
			}
			if err := f(n*64+uint64(i), p.block.buf[p.at:p.at+p.n:p.at+p.n]); err != nil {
				return err
			}
		}
	}
	return nil
}
