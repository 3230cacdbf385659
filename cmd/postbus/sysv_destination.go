package main

import (
	"context"
	"errors"
	"time"

	"github.com/postbus/postbus/client"
)

// fullMin and fullMax bound the pauses before a push that was refused, for the queue was
// full, is tried again.
const (
	fullMin = 20 * time.Millisecond
	fullMax = time.Second
)

// queueDestination is a queue of the broker's.
type queueDestination struct {
	client   *client.Client
	queue    *client.Queue
	label    string
	oneByOne bool // no second push of what may have been kept
	warn     func(format string, args ...any)
	told     bool
}

func (d *queueDestination) name() string { return "queue " + d.label }

// deliver pushes the batch at one go. Where that did not do it pushes all of it again, one by
// one, to know which are kept; the queue knows those by their ids.
func (d *queueDestination) deliver(ctx context.Context, batch []parcel, kept func(i int)) error {
	if !d.oneByOne && len(batch) > 1 {
		if err := d.deliverAll(ctx, batch); err == nil {
			for i := range batch {
				kept(i)
			}
			return nil
		}
	}
	for i := range batch {
		if err := d.deliverOne(ctx, &batch[i]); err != nil {
			return err
		}
		kept(i)
	}
	return nil
}

func (d *queueDestination) deliverAll(ctx context.Context, batch []parcel) error {
	var err error
	for i := range batch {
		p := &batch[i]
		if err = d.queue.PushAsync(ctx, p.body, &client.PushOptions{ID: p.id, Headers: p.headers()}); err != nil {
			break
		}
	}
	// What went before is to be answered before anything is pushed again.
	if ferr := d.client.Flush(ctx); err == nil {
		err = ferr
	}
	return err
}

// deliverOne pushes one message, and waits while the queue is full.
func (d *queueDestination) deliverOne(ctx context.Context, p *parcel) error {
	for pause := fullMin; ; pause = min(2*pause, fullMax) {
		_, err := d.queue.Push(ctx, p.body, &client.PushOptions{ID: p.id, Headers: p.headers()})
		if !errors.Is(err, client.ErrQueueFull) {
			return err
		}
		if !d.told {
			d.told = true
			d.warn("waiting: %s", sentence(err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// topicDestination is a topic. It knows no ids, so each message is published once, and
// its answer waited for.
type topicDestination struct {
	client     *client.Client
	topic      string
	requireSub bool
}

func (d *topicDestination) name() string { return "topic " + d.topic }

func (d *topicDestination) deliver(ctx context.Context, batch []parcel, kept func(i int)) error {
	for i := range batch {
		p := &batch[i]
		_, err := d.client.PublishWait(ctx, d.topic, p.body, &client.PublishOptions{
			Headers: p.headers(), RequireSubscriber: d.requireSub,
		})
		if err != nil {
			return err
		}
		kept(i)
	}
	return nil
}
