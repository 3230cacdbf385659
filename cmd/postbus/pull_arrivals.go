package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/postbus/postbus/client"
)

// arrivals is a consumer with a place in front of it, where one can see whether a
// message is there already.
type arrivals struct {
	p        *puller
	consumer *client.Consumer
	ready    chan arrival
	cancel   context.CancelFunc
	reader   sync.WaitGroup

	stopping bool  // the broker was told to deliver no more
	over     error // why, if not because enough came
}

// arrival is what Next of a consumer has returned.
type arrival struct {
	delivery *client.Delivery
	err      error
}

// readyMessages is how many deliveries are taken from the client ahead of their time:
// enough to hide the change of goroutine.
const readyMessages = 64

// open makes this process a consumer of the queue.
func (p *puller) open(ctx context.Context, prefetch int, extend bool) (*arrivals, error) {
	consumer, err := p.client.Queue(p.queue).Consume(ctx, &client.ConsumeOptions{Prefetch: prefetch, Lease: p.lease, ExtendLeases: extend})
	if err != nil {
		return nil, endedBy(ctx, err)
	}
	if err := p.ready.announce(); err != nil {
		_ = consumer.Close()
		return nil, err
	}
	p.ready = readiness{fd: -1} // it is said once
	reading, cancel := context.WithCancel(ctx)
	a := &arrivals{p: p, consumer: consumer, ready: make(chan arrival, min(readyMessages, max(prefetch, 1))), cancel: cancel}
	a.reader.Go(func() { a.read(reading) })
	return a, nil
}

// read moves deliveries to where they can be seen, until the consumer ends.
func (a *arrivals) read(ctx context.Context) {
	for {
		d, err := a.consumer.Next(ctx)
		select {
		case a.ready <- arrival{d, err}:
		case <-ctx.Done():
			return
		}
		var lost *client.LeasesLost
		if err != nil && !errors.As(err, &lost) {
			return
		}
	}
}

// end ends it, after err: what was settled is confirmed, what was not goes back to the
// queue at once. It returns err, or what is worse.
func (a *arrivals) end(err error) error {
	cerr := a.p.confirm(a.consumer)
	_ = a.consumer.Close()
	a.cancel()
	a.reader.Wait()
	if cerr != nil && (err == nil || orderly(err)) {
		return cerr
	}
	return err
}

// stop tells the broker to deliver no more, because of over, or because enough has come.
// What is settled after it makes no room for others, which would only come to be sent
// back. What is on its way comes still.
func (a *arrivals) stop(over error) {
	if a.stopping {
		return
	}
	a.stopping, a.over = true, over
	now, cancel := context.WithCancel(context.Background())
	cancel()
	_ = a.consumer.Drain(now) // begins it, and does not wait
}

// next returns the next delivery; idle is called before it waits for one. When none has
// come for the time of --timeout no more are asked for. At the end it returns why
// that is: client.ErrDrained, when enough came.
func (a *arrivals) next(ctx context.Context, idle func() error) (*client.Delivery, error) {
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var came arrival
		select {
		case came = <-a.ready:
		default:
			err := idle()
			if err == nil {
				came, err = a.wait(ctx)
			}
			if err != nil {
				return nil, err
			}
		}
		if d, err := a.judge(ctx, came); d != nil || err != nil {
			return d, err
		}
	}
}

// judge returns the delivery that came, or why it was the end, or neither.
func (a *arrivals) judge(ctx context.Context, came arrival) (*client.Delivery, error) {
	var lost *client.LeasesLost
	switch {
	case errors.As(came.err, &lost):
		a.p.tell(lost)
		return nil, nil
	case errors.Is(came.err, client.ErrDrained) && a.over != nil:
		return nil, a.over
	case came.err != nil:
		return nil, endedBy(ctx, came.err)
	}
	return came.delivery, nil
}

// wait waits for an arrival; with an empty one the time is over.
func (a *arrivals) wait(ctx context.Context) (came arrival, err error) {
	over, stop := a.patience()
	defer stop()
	select {
	case came = <-a.ready:
	case <-over:
		a.stop(errNothingCame)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return came, err
}

// patience is for how long a message is waited for: stop frees it.
func (a *arrivals) patience() (over <-chan time.Time, stop func()) {
	if a.p.timeout == 0 || a.stopping {
		return nil, func() {}
	}
	timer := time.NewTimer(a.p.timeout)
	return timer.C, func() { timer.Stop() }
}
