package client

import (
	"context"
	"sync"
)

// feed is what readLoop has brought for a stream and Next has not given out yet.
type feed[T any] struct {
	mu    sync.Mutex // guards what follows
	list  fifo[batch[T]]
	next  int   // the place within the oldest batch
	count int   // items in list
	err   error // what Next gives after list; set once
	waits int   // how many wait in Next
	wake  chan struct{}
}

// These two are embedded by names that documentation leaves out.
type (
	messageFeed  = feed[Message]
	deliveryFeed = feed[Delivery]
)

// A batch is items, then perhaps a notice: the error of a Next that is not the end. The
// items are a part of a block.
type batch[T any] struct {
	items  []T
	notice error
}

func newFeed[T any]() feed[T] { return feed[T]{wake: make(chan struct{}, 1)} }

// take takes the next item or notice, or else returns the end's error; where there is
// none of these it counts the caller as one who waits. mu is held.
func (f *feed[T]) take() (*T, error) {
	item, err := f.pop()
	switch {
	case item != nil:
		f.count--
	case err == nil && f.err == nil:
		f.waits++
		return nil, nil
	case err == nil:
		err = f.err
	}
	f.wakeNext()
	return item, err
}

// pop takes the first item or notice off the list; mu is held.
func (f *feed[T]) pop() (*T, error) {
	for f.list.len() > 0 {
		b := f.list.front()
		if f.next < len(b.items) {
			item := &b.items[f.next]
			f.next++
			if f.next == len(b.items) && b.notice == nil {
				f.list.pop()
				f.next = 0
			}
			return item, nil
		}
		notice := b.notice
		f.list.pop()
		f.next = 0
		if notice != nil {
			return nil, notice
		}
	}
	return nil, nil
}

// wakeNext wakes one of those who wait in Next, if there is something for it. It wakes
// the following one in its turn. mu is held.
func (f *feed[T]) wakeNext() {
	if f.waits > 0 && (f.list.len() > 0 || f.err != nil) {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

// await waits after a take that found nothing, until it is worth trying again or ctx
// ends.
func (f *feed[T]) await(ctx context.Context) {
	select {
	case <-f.wake:
	case <-ctx.Done():
	}
	f.mu.Lock()
	f.waits--
	if ctx.Err() != nil {
		f.wakeNext() // the token may have been ours, and somebody else's turn
	}
	f.mu.Unlock()
}

// cut ends the feed at once: what is in the list is thrown away.
func (f *feed[T]) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list, f.next, f.count = fifo[batch[T]]{}, 0, 0
	f.err = ErrClosed
	f.wakeNext()
}

// arrivals is what came for a stream since its feed was last locked.
type arrivals[T any] struct {
	batches []batch[T]
	count   int // items
	bytes   int // of their frames
}

// slot returns a zero item at the end of block, which is also the last of the newest
// batch. A new block has room for size items.
func (a *arrivals[T]) slot(in *inbox, block *[]T, size int) *T {
	if len(*block) == cap(*block) {
		*block, in.extend = make([]T, 0, size), false
	}
	n := len(*block)
	*block = (*block)[:n+1]
	if in.extend {
		last := &a.batches[len(a.batches)-1]
		last.items = last.items[:len(last.items)+1]
	} else {
		a.batches = append(a.batches, batch[T]{items: (*block)[n : n+1]})
		in.extend = true
	}
	a.count++
	return &(*block)[n]
}

// clear makes room for what comes next.
func (a *arrivals[T]) clear() {
	clear(a.batches)
	*a = arrivals[T]{batches: a.batches[:0]}
}
