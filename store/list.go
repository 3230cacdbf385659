package store

import "slices"

// list holds values by seq, in seq order. Seqs mostly come in rising and go from the
// front: both cost the same at any length; the rest is a binary search. What is
// deleted in the middle stays as a dead item until most are. The zero list is empty.
type list[T any] struct {
	items []listItem[T]
	head  int // items before it are dead
	live  int
}

type listItem[T any] struct {
	seq   uint64
	live  bool
	value T
}

// find returns where seq is, or where it would be.
func (l *list[T]) find(seq uint64) (int, bool) {
	rest := l.items[l.head:]
	if len(rest) == 0 || seq > rest[len(rest)-1].seq {
		return len(l.items), false
	}
	if rest[0].seq == seq {
		return l.head, true
	}
	i, ok := slices.BinarySearchFunc(rest, seq, func(it listItem[T], seq uint64) int {
		if it.seq < seq {
			return -1
		} else if it.seq > seq {
			return 1
		}
		return 0
	})
	return l.head + i, ok
}

func (l *list[T]) get(seq uint64) (value T, ok bool) {
	if i, found := l.find(seq); found && l.items[i].live {
		return l.items[i].value, true
	}
	return value, false
}

// put sets seq's value and returns the one before it.
func (l *list[T]) put(seq uint64, value T) (before T, replaced bool) {
	i, found := l.find(seq)
	if !found && i == len(l.items) {
		l.items = append(l.items, listItem[T]{seq, true, value})
		l.live++
		return before, false
	}
	if !found {
		l.items = slices.Insert(l.items, i, listItem[T]{seq, true, value})
		l.live++
		return before, false
	}
	it := &l.items[i]
	before, replaced = it.value, it.live
	it.value, it.live = value, true
	if !replaced {
		l.live++
	}
	return before, replaced
}

// remove forgets seq and returns what it was.
func (l *list[T]) remove(seq uint64) (value T, ok bool) {
	i, found := l.find(seq)
	if !found || !l.items[i].live {
		return value, false
	}
	value = l.items[i].value
	l.items[i] = listItem[T]{seq: seq}
	l.live--
	for l.head < len(l.items) && !l.items[l.head].live {
		l.head++
	}
	if dead := len(l.items) - l.live; dead > 64 && dead > l.live {
		l.pack()
	}
	return value, true
}

// pack drops the dead items, and the room they took if it was much.
func (l *list[T]) pack() {
	kept := l.items[:0]
	if cap(l.items) > 4*l.live+1024 {
		kept = make([]listItem[T], 0, 2*l.live)
	}
	for _, it := range l.items[l.head:] {
		if it.live {
			kept = append(kept, it)
		}
	}
	if len(kept) < len(l.items) && &l.items[:1][0] == &kept[:1:1][0] {
		clear(l.items[len(kept):])
	}
	l.items, l.head = kept, 0
}

// first returns the lowest seq.
func (l *list[T]) first() (seq uint64, ok bool) {
	if l.live == 0 {
		return 0, false
	}
	return l.items[l.head].seq, true
}

// last returns the highest seq.
func (l *list[T]) last() (seq uint64, ok bool) {
	for i := len(l.items) - 1; i >= l.head; i-- {
		if l.items[i].live {
			return l.items[i].seq, true
		}
	}
	return 0, false
}

// each calls f in seq order until it returns an error, and returns that. f must
// not change the list.
func (l *list[T]) each(f func(seq uint64, value T) error) error {
	for _, it := range l.items[l.head:] {
		if it.live {
			if err := f(it.seq, it.value); err != nil {
				return err
			}
		}
	}
	return nil
}
