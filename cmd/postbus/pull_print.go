package main

import (
	"context"
	"errors"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// printing is the printing of what one consumer gets.
type printing struct {
	*puller
	*arrivals
	limit    int // messages that are wanted of it; 0: all
	prefetch int // messages that it holds at most
	received int
	acked    int

	unwritten []*client.Delivery // in the output's buffer
	written   []*client.Delivery // and not acknowledged
}

// print prints messages and acknowledges what was written.
func (p *puller) print(ctx context.Context) error {
	for !p.enough() {
		w := &printing{puller: p, prefetch: p.prefetch}
		if w.prefetch == 0 {
			w.prefetch = wire.DefaultPrefetch
		}
		if p.count > 0 {
			w.limit = p.count - p.seen
			// The last ones one by one: see acknowledge.
			if w.limit < 2*w.prefetch {
				w.prefetch = 1
			}
		}
		var err error
		if w.arrivals, err = p.open(ctx, w.prefetch, true); err != nil {
			return err
		}
		if err := w.end(w.printAll(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// printAll prints what the consumer gets, nil when it has been told to deliver no more.
func (w *printing) printAll(ctx context.Context) error {
	for {
		d, err := w.next(ctx, func() error { return w.pause(ctx) })
		switch {
		case errors.Is(err, client.ErrDrained):
			return w.flush(ctx)
		case err != nil:
			w.giveBack()
			return err
		}
		w.received++
		w.out.buf = w.append(w.out.buf, d)
		w.unwritten = append(w.unwritten, d)
		if w.out.full() {
			if err := w.flush(ctx); err != nil {
				w.giveBack()
				return err
			}
		}
	}
}

// pause is called before another message is waited for.
func (w *printing) pause(ctx context.Context) error {
	if err := w.flush(ctx); err != nil || len(w.written) == 0 {
		return err
	}
	// Nobody knows when the next one comes: these are acknowledged now, and another
	// consumer takes the rest.
	w.stop(nil)
	return w.acknowledge()
}

// giveBack returns what was not written to the queue; it would come straight back here
// if more were wanted.
func (w *printing) giveBack() {
	w.stop(nil)
	for _, d := range w.unwritten {
		_ = d.Nack(0) // where that fails it goes back with the consumer
	}
	w.unwritten = nil
}

// flush writes what was gathered and acknowledges it.
func (w *printing) flush(ctx context.Context) error {
	if len(w.unwritten) > 0 {
		if err := w.write(ctx); err != nil {
			if err == errInterrupted {
				return err
			}
			return &notWritten{err: err, n: len(w.unwritten), queue: w.queue}
		}
		w.written = append(w.written, w.unwritten...)
		clear(w.unwritten)
		w.unwritten = w.unwritten[:0]
	}
	return w.acknowledge()
}

// acknowledge acknowledges what was written, as far as it may. Each ack makes room for
// another delivery, and with -n none may come beyond that number, not even to be sent
// back, which would count as a try. So the acks of the last messages wait until the
// broker was told to deliver no more.
func (w *printing) acknowledge() error {
	if w.limit > 0 && w.received >= w.limit {
		w.stop(nil)
	}
	may := len(w.written)
	if w.limit > 0 && !w.stopping {
		may = min(may, w.limit-w.prefetch-w.acked)
	}
	for _, d := range w.written[:may] {
		if err := w.settled(d.Ack()); err != nil {
			return err
		}
		w.acked++
		w.seen++
	}
	left := copy(w.written, w.written[may:])
	clear(w.written[left:])
	w.written = w.written[:left]
	return nil
}

// writeGrace is how long a write that somebody reads takes at most, after a signal.
const writeGrace = 100 * time.Millisecond

// write writes what was gathered. A signal ends it even while nobody reads the pipe;
// then the process is about to end, and the write is left alone.
func (w *printing) write(ctx context.Context) error {
	written := make(chan error, 1)
	go func() { written <- w.out.flush() }()
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-written:
		return err
	case <-time.After(writeGrace):
		return context.Cause(ctx)
	}
}
