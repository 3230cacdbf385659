package client

// queue is a first-in, first-out list that uses its memory again. The zero queue is
// empty and ready.
type queue[T any] struct {
	items []T
	head  int // items before it are taken
}

func (q *queue[T]) len() int { return len(q.items) - q.head }

// front returns the oldest item, at its place; the queue must not be empty.
func (q *queue[T]) front() *T { return &q.items[q.head] }

// back returns the newest item, at its place; the queue must not be empty.
func (q *queue[T]) back() *T { return &q.items[len(q.items)-1] }

func (q *queue[T]) push(v T) {
	if len(q.items) == cap(q.items) && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

// pop takes the oldest item; the queue must not be empty.
func (q *queue[T]) pop() T {
	var none T
	v := q.items[q.head]
	q.items[q.head] = none
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return v
}
