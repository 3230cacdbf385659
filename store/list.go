package store

import "slices"

// list holds values by seq, in seq order. Seqs mostly come in rising and go from the
// front: both cost the same at any length; the rest is a binary search. The items lie in
// pages, so that nothing is moved when it grows; what is deleted in the middle stays as a
// dead item until most of its page are. The zero list is empty.
type list[T any] struct {
	pages []*listPage[T] // none of them without a live item
	live  int
}

// listPage is some items in a row; the first and the last are not dead.
type listPage[T any] struct {
	items []listItem[T]
	live  int
}

type listItem[T any] struct {
	seq   uint64
	live  bool
	value T
}

// listPageSize is how many items a page is made for. One that is put into in the middle
// can have twice as many.
const listPageSize = 256

func (p *listPage[T]) last() uint64 { return p.items[len(p.items)-1].seq }

// page returns where the page is that seq is or would be in: the first that does not end
// before it.
func (l *list[T]) page(seq uint64) int {
	n := len(l.pages)
	switch {
	case n == 0 || seq > l.pages[n-1].last():
		return n
	case seq <= l.pages[0].last():
		return 0
	}
	i, _ := slices.BinarySearchFunc(l.pages, seq, func(p *listPage[T], seq uint64) int {
		if p.last() < seq {
			return -1
		}
		return 1
	})
	return i
}

// find returns where seq is in the page, or where it would be.
func (p *listPage[T]) find(seq uint64) (int, bool) {
	if p.items[0].seq == seq {
		return 0, true
	}
	return slices.BinarySearchFunc(p.items, seq, func(it listItem[T], seq uint64) int {
		if it.seq < seq {
			return -1
		} else if it.seq > seq {
			return 1
		}
		return 0
	})
}

func (l *list[T]) get(seq uint64) (value T, ok bool) {
	i := l.page(seq)
	if i == len(l.pages) {
		return value, false
	}
	p := l.pages[i]
	if at, found := p.find(seq); found && p.items[at].live {
		return p.items[at].value, true
	}
	return value, false
}

// put sets seq's value and returns the one before it.
func (l *list[T]) put(seq uint64, value T) (before T, replaced bool) {
	i := l.page(seq)
	if i == len(l.pages) {
		l.append(seq, value)
		return before, false
	}
	p := l.pages[i]
	at, found := p.find(seq)
	if !found {
		p.items = slices.Insert(p.items, at, listItem[T]{seq, true, value})
		p.live++
		l.live++
		if len(p.items) > 2*listPageSize {
			l.split(i)
		}
		return before, false
	}
	it := &p.items[at]
	before, replaced = it.value, it.live
	it.value, it.live = value, true
	if !replaced {
		p.live++
		l.live++
	}
	return before, replaced
}

// append puts seq behind all others.
func (l *list[T]) append(seq uint64, value T) {
	n := len(l.pages)
	if n == 0 || len(l.pages[n-1].items) >= listPageSize {
		p := new(listPage[T])
		if n > 0 { // a list of more than a page will fill others
			p.items = make([]listItem[T], 0, listPageSize)
		}
		l.pages = append(l.pages, p)
		n++
	}
	p := l.pages[n-1]
	p.items = append(p.items, listItem[T]{seq, true, value})
	p.live++
	l.live++
}

// split makes two pages of one.
func (l *list[T]) split(i int) {
	p := l.pages[i]
	half := len(p.items) / 2
	rest := &listPage[T]{items: slices.Clone(p.items[half:])}
	clear(p.items[half:])
	p.items = p.items[:half]
	l.pages = slices.Insert(l.pages, i+1, rest)
	for _, at := range []int{i + 1, i} {
		l.pages[at].live = 0
		for _, it := range l.pages[at].items {
			if it.live {
				l.pages[at].live++
			}
		}
		l.trim(at)
	}
}

// remove forgets seq and returns what it was.
func (l *list[T]) remove(seq uint64) (value T, ok bool) {
	i := l.page(seq)
	if i == len(l.pages) {
		return value, false
	}
	p := l.pages[i]
	at, found := p.find(seq)
	if !found || !p.items[at].live {
		return value, false
	}
	value = p.items[at].value
	p.items[at] = listItem[T]{seq: seq}
	p.live--
	l.live--
	l.trim(i)
	return value, true
}

// trim takes dead items off the ends of page i, or all of them where they are most, and
// the page if nothing is left in it.
func (l *list[T]) trim(i int) {
	p := l.pages[i]
	if p.live == 0 {
		if i == 0 {
			l.pages[0] = nil
			l.pages = l.pages[1:]
		} else {
			l.pages = slices.Delete(l.pages, i, i+1)
		}
		return
	}
	if dead := len(p.items) - p.live; dead > listPageSize/4 && dead > p.live {
		kept := make([]listItem[T], 0, p.live)
		for _, it := range p.items {
			if it.live {
				kept = append(kept, it)
			}
		}
		p.items = kept
		return
	}
	for !p.items[0].live {
		p.items = p.items[1:]
	}
	for !p.items[len(p.items)-1].live {
		p.items = p.items[:len(p.items)-1]
	}
}

// first returns the lowest seq.
func (l *list[T]) first() (seq uint64, ok bool) {
	if l.live == 0 {
		return 0, false
	}
	return l.pages[0].items[0].seq, true
}

// last returns the highest seq.
func (l *list[T]) last() (seq uint64, ok bool) {
	if l.live == 0 {
		return 0, false
	}
	return l.pages[len(l.pages)-1].last(), true
}

// each calls f in seq order until it returns an error, and returns that. f must
// not change the list.
func (l *list[T]) each(f func(seq uint64, value T) error) error {
	for _, p := range l.pages {
		for _, it := range p.items {
			if !it.live {
				continue
			}
			if err := f(it.seq, it.value); err != nil {
				return err
			}
		}
	}
	return nil
}
