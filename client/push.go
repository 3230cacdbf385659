package client

import (
	"context"
	"fmt"
	"time"

	"github.com/postbus/postbus/wire"
)

// Push puts a message into the queue, and waits until the queue keeps it: the Level of
// the receipt says what it survives from now on.
//
// Its errors are ErrNotFound, ErrQueueFull, ErrDraining, ErrStore, ErrTooLarge and
// ErrBadOption, the context's, and once the client has ended that of Err. When ctx ends
// first, or the client does, the message may or may not have been kept. Pushing it
// again with the same PushOptions.ID leaves one. The client itself does that when the
// connection is lost; without an ID there may then be two.
//
// It keeps neither body nor opts.
func (q *Queue) Push(ctx context.Context, body []byte, opts *PushOptions) (Receipt, error) {
	answer, err := q.push(ctx, body, opts, true)
	if err != nil {
		return Receipt{}, err
	}
	return q.client.receipt(ctx, answer, q.topic)
}

// PushAsync hands a message to the client, which sends it as soon as it can. As
// Client.Publish it waits only while the window is full, and a nil error means that the
// message is on its way: Client.Flush waits until everything pushed is kept, and
// reports what was refused.
func (q *Queue) PushAsync(ctx context.Context, body []byte, opts *PushOptions) error {
	_, err := q.push(ctx, body, opts, false)
	return err
}

func (q *Queue) push(ctx context.Context, body []byte, opts *PushOptions, wait bool) (*reply[Receipt], error) {
	if err := wire.CheckQueueName(q.name); err != nil {
		return nil, withSentinel(err)
	}
	p := wire.Publish{Body: body}
	if opts != nil {
		if err := opts.encode(&p); err != nil {
			return nil, err
		}
	}
	return q.client.publish(ctx, q.topic, &p, wait)
}

// encode puts the options into p.
func (o *PushOptions) encode(p *wire.Publish) error {
	if err := o.check(); err != nil {
		return err
	}
	options := wire.PublishOptions{
		ID:       o.ID,
		Key:      o.Key,
		Priority: o.Priority,
		DelayMS:  millis(o.Delay),
		TTLMS:    millis(o.TTL),
	}
	if !o.At.IsZero() {
		options.AtMS = max(o.At.UnixMilli(), 1) // 0 would mean none; both are over
	}
	if options != (wire.PublishOptions{}) {
		p.Options = wire.AppendOptions(nil, &options)
	}
	return encodeHeaders(p, o.Headers)
}

func (o *PushOptions) check() error {
	switch {
	case len(o.ID) > wire.MaxID:
		return fmt.Errorf("%w: ID has %d bytes, the limit is %d", ErrBadOption, len(o.ID), wire.MaxID)
	case len(o.Key) > wire.MaxKey:
		return fmt.Errorf("%w: Key has %d bytes, the limit is %d", ErrBadOption, len(o.Key), wire.MaxKey)
	case o.Priority < 0 || o.Priority > wire.MaxPriority:
		return fmt.Errorf("%w: Priority is %d, not one of 0 to %d", ErrBadOption, o.Priority, wire.MaxPriority)
	case o.Delay < 0 || o.TTL < 0:
		return fmt.Errorf("%w: Delay %v and TTL %v must not be below 0", ErrBadOption, o.Delay, o.TTL)
	case o.Delay > 0 && !o.At.IsZero():
		return fmt.Errorf("%w: Delay %v and At %v: give one of them", ErrBadOption, o.Delay, o.At.Format(time.RFC3339))
	}
	return nil
}
