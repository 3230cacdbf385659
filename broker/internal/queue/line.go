package queue

// ordered is what a line can hold.
type ordered[T any] interface{ before(T) bool }

// line gives back what was added to it, smallest first. What is added in order,
// as most is, costs O(1); the rest goes into a heap.
type line[T ordered[T]] struct {
	fifo fifo[T]
	heap []T
}

// number is a seq in a line.
type number uint64

func (a number) before(b number) bool { return a < b }

// timer is when something is due, and what: a seq, or a lease.
type timer struct {
	at  int64
	ref uint64
}

func (a timer) before(b timer) bool { return a.at < b.at || a.at == b.at && a.ref < b.ref }

// slack is how many entries that no longer apply a line may have beside one for each
// that does before it is built anew. Tests make it smaller.
var slack = 64

// keptHeap is the capacity that an empty heap keeps.
const keptHeap = 1024

func (l *line[T]) size() int { return l.fifo.n + len(l.heap) }

// sparse reports whether most entries of the line no longer apply, when live do.
func (l *line[T]) sparse(live int) bool { return l.size() > 2*live+slack }

func (l *line[T]) add(v T) {
	if l.fifo.n == 0 || !v.before(l.fifo.last()) {
		l.fifo.push(v)
		return
	}
	l.heap = append(l.heap, v)
	i := len(l.heap) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !v.before(l.heap[up]) {
			break
		}
		l.heap[i] = l.heap[up]
		i = up
	}
	l.heap[i] = v
}

// heapFirst reports whether the smallest is in the heap.
func (l *line[T]) heapFirst() bool {
	return len(l.heap) > 0 && (l.fifo.n == 0 || l.heap[0].before(l.fifo.first()))
}

// first returns the smallest, and whether there is one.
func (l *line[T]) first() (v T, ok bool) {
	switch {
	case l.heapFirst():
		return l.heap[0], true
	case l.fifo.n > 0:
		return l.fifo.first(), true
	}
	return v, false
}

// drop takes the smallest away. The line is not empty.
func (l *line[T]) drop() {
	if !l.heapFirst() {
		l.fifo.pop()
		return
	}
	var none T
	n := len(l.heap) - 1
	l.heap[0] = l.heap[n]
	l.heap[n] = none
	l.heap = l.heap[:n]
	if n == 0 && cap(l.heap) > keptHeap {
		l.heap = nil
	}
	if n > 1 {
		l.sink(0)
	}
}

func (l *line[T]) sink(i int) {
	v, n := l.heap[i], len(l.heap)
	for {
		down := 2*i + 1
		if down >= n {
			break
		}
		if down+1 < n && l.heap[down+1].before(l.heap[down]) {
			down++
		}
		if !l.heap[down].before(v) {
			break
		}
		l.heap[i] = l.heap[down]
		i = down
	}
	l.heap[i] = v
}

// each calls yield for all, roughly in order, until it returns false.
func (l *line[T]) each(yield func(T) bool) {
	rest := l.heap
	for v := range l.fifo.each {
		for ; len(rest) > 0 && rest[0].before(v); rest = rest[1:] {
			if !yield(rest[0]) {
				return
			}
		}
		if !yield(v) {
			return
		}
	}
	for _, v := range rest {
		if !yield(v) {
			return
		}
	}
}

// keep builds the line anew from what f wants of it.
func (l *line[T]) keep(f func(T) bool) {
	var some fifo[T]
	for v := range l.fifo.each {
		if f(v) {
			some.push(v)
		}
	}
	var rest []T
	for _, v := range l.heap {
		if f(v) {
			rest = append(rest, v)
		}
	}
	l.fifo, l.heap = some, rest
	for i := len(rest)/2 - 1; i >= 0; i-- {
		l.sink(i)
	}
}

// list is a line of messages in certain places. A message has one entry in it at
// most, which its flag tells: when it comes back while its old entry is still there,
// that one does.
type list struct {
	line[number]
	places uint8 // mask
	flag   flags
}

func (l *list) add(m ref) {
	if m.s.flags&l.flag == 0 {
		m.s.flags |= l.flag
		l.line.add(number(m.seq))
	}
}

// front returns the first message that is in one of the places.
func (l *list) front(t *table) (ref, bool) {
	for {
		v, ok := l.first()
		if !ok {
			return ref{}, false
		}
		m, ok := t.find(uint64(v))
		if ok && l.holds(m) {
			return m, true
		}
		l.drop()
		if ok {
			m.s.flags &^= l.flag
		}
	}
}

func (l *list) holds(m ref) bool { return l.places&(1<<m.s.place) != 0 }

// trim drops entries that no longer apply when most are such.
func (l *list) trim(t *table, live int) {
	if !l.sparse(live) {
		return
	}
	if l.front(t); !l.sparse(live) { // they mostly are at the front
		return
	}
	l.keep(func(v number) bool {
		m, ok := t.find(uint64(v))
		if ok && !l.holds(m) {
			m.s.flags &^= l.flag
			return false
		}
		return ok
	})
}
