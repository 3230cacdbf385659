package store

import (
	"slices"
	"sort"
)

// indexBlock is how many items a block of an index holds at most: 12 KiB.
const indexBlock = 512

// item says where the record of a Seq is: 24 bytes each.
type item struct {
	seq   uint64
	seg   uint32 // id of its segment; 0: the item is gone
	off   uint32 // offset there, in units of recordAlign
	size  uint32 // of the data
	state uint32 // 1 + place in the list of States; 0: none
}

// index keeps items in order of their seq, in blocks. Seqs mostly come at the end and
// leave near the front. A live item takes 24 bytes as long as it came in order, and at
// most twice that, and some bytes for its block, when others around it have left.
type index struct {
	blocks []*itemBlock
	count  int
}

type itemBlock struct {
	items []item
	live  int
}

// find returns the number of the block that has seq or would have it.
func (x *index) find(seq uint64) int {
	if n := len(x.blocks); n == 0 || x.blocks[n-1].items[0].seq <= seq {
		return n - 1
	}
	return sort.Search(len(x.blocks), func(i int) bool { return x.blocks[i].items[0].seq > seq }) - 1
}

func (b *itemBlock) find(seq uint64) int {
	return sort.Search(len(b.items), func(i int) bool { return b.items[i].seq >= seq })
}

// get returns the item of seq, or nil. It may be changed until the next put or drop.
func (x *index) get(seq uint64) *item {
	i := x.find(seq)
	if i < 0 {
		return nil
	}
	b := x.blocks[i]
	j := b.find(seq)
	if j == len(b.items) || b.items[j].seq != seq || b.items[j].seg == 0 {
		return nil
	}
	return &b.items[j]
}

// put adds an item whose seq is not there.
func (x *index) put(it item) {
	x.count++
	i := x.find(it.seq)
	if i < 0 {
		if len(x.blocks) == 0 || len(x.blocks[0].items) >= indexBlock {
			x.blocks = slices.Insert(x.blocks, 0, &itemBlock{})
		}
		i = 0
	}
	b := x.blocks[i]
	j := b.find(it.seq)
	if j < len(b.items) && b.items[j].seq == it.seq { // it left before
		b.items[j] = it
		b.live++
		return
	}
	if len(b.items) >= indexBlock {
		b, j = x.split(i, j)
		if full := x.blocks[i]; full != b && full.live > 0 && full.live*2 <= len(full.items) {
			defer x.shrink(i)
		}
	}
	b.items = slices.Insert(b.items, j, it)
	b.live++
}

// split makes room in full block i for an item at j: behind it when the item comes at
// the end, else by halves.
func (x *index) split(i, j int) (*itemBlock, int) {
	b := x.blocks[i]
	at := len(b.items) / 2
	if j == len(b.items) {
		at = j
	}
	next := &itemBlock{items: append([]item(nil), b.items[at:]...)}
	for _, it := range next.items {
		if it.seg != 0 {
			next.live++
		}
	}
	b.items = b.items[:at]
	b.live -= next.live
	x.blocks = slices.Insert(x.blocks, i+1, next)
	if j < at {
		return b, j
	}
	return next, j - at
}

// drop removes the item of seq, which is there.
func (x *index) drop(seq uint64) {
	i := x.find(seq)
	b := x.blocks[i]
	b.items[b.find(seq)].seg = 0
	b.live--
	x.count--
	switch {
	case b.live == 0:
		x.blocks[i] = nil
		if i == 0 {
			x.blocks = x.blocks[1:]
		} else {
			x.blocks = slices.Delete(x.blocks, i, i+1)
		}
	case b.live*2 <= len(b.items) && i < len(x.blocks)-1:
		x.shrink(i)
	}
}

// shrink takes the gone items out of block i, and joins it with a neighbour if both are
// small. The last block stays as it is: it grows.
func (x *index) shrink(i int) {
	b := x.blocks[i]
	small := func(b *itemBlock) bool { return b.live <= indexBlock/4 }
	switch {
	case small(b) && i > 0 && small(x.blocks[i-1]):
		i--
	case small(b) && i+2 < len(x.blocks) && small(x.blocks[i+1]):
	default:
		b.items = b.appendLive(make([]item, 0, b.live))
		return
	}
	b, next := x.blocks[i], x.blocks[i+1]
	b.items = next.appendLive(b.appendLive(make([]item, 0, b.live+next.live)))
	b.live = len(b.items)
	x.blocks = slices.Delete(x.blocks, i+1, i+2)
}

func (b *itemBlock) appendLive(dst []item) []item {
	for _, it := range b.items {
		if it.seg != 0 {
			dst = append(dst, it)
		}
	}
	return dst
}

// first returns the item with the lowest seq, or nil.
func (x *index) first() *item {
	for _, b := range x.blocks {
		for j := range b.items {
			if b.items[j].seg != 0 {
				return &b.items[j]
			}
		}
	}
	return nil
}

// each calls f for every item in order until it fails. f must not change the index.
func (x *index) each(f func(*item) error) error {
	for _, b := range x.blocks {
		for j := range b.items {
			if b.items[j].seg == 0 {
				continue
			}
			if err := f(&b.items[j]); err != nil {
				return err
			}
		}
	}
	return nil
}
