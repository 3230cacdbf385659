package client

// fifo is a first-in, first-out list that uses its memory again. The zero fifo is
// empty and ready.
type fifo[T any] struct {
	items []T
	head  int // items before it are taken
}

func (q *fifo[T]) len() int { return len(q.items) - q.head }

// front returns the oldest item, at its place; the fifo must not be empty.
func (q *fifo[T]) front() *T { return &q.items[q.head] }

// back returns the newest item, at its place; the fifo must not be empty.
func (q *fifo[T]) back() *T { return &q.items[len(q.items)-1] }

func (q *fifo[T]) push(v T) {
	if len(q.items) == cap(q.items) && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

// pop takes the oldest item; the fifo must not be empty.
func (q *fifo[T]) pop() T {
	var none T
	v := q.items[q.head]
	q.items[q.head] = none
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return v
}
