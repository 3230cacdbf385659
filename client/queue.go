package client

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/postbus/postbus/wire"
)

// Queue is a queue of the broker's, from Client.Queue. Messages pushed to it wait there
// until a consumer has settled them. Its methods may be called by several goroutines.
type Queue struct {
	client *Client
	name   string
	topic  string // what a push is published to
}

// QueueInfo is what is to be known of a queue.
type QueueInfo = wire.QueueInfo

// Queue returns the queue of that name. It asks the broker nothing, so that the queue
// need not be there; a name that cannot be a queue's is the error, ErrBadOption, of the
// methods that need one.
func (c *Client) Queue(name string) *Queue {
	return &Queue{client: c, name: name, topic: wire.QueueTopic + name}
}

// Queues returns what is known of all queues, and waits for it.
func (c *Client) Queues(ctx context.Context) ([]QueueInfo, error) {
	answer, err := c.request(ctx, &wire.Queue{Op: wire.OpList})
	return answer.Queues, err
}

// Name returns the queue's name.
func (q *Queue) Name() string { return q.name }

// Declare makes the queue if it is not there, and waits until it is. The error of one
// that is there with other settings is ErrConflict.
//
// When the connection is lost before the broker has answered, the error of Declare, and
// of every other method that changes something, is ErrDisconnected: it is not known
// whether it was done.
func (q *Queue) Declare(ctx context.Context, opts *QueueOptions) (QueueInfo, error) {
	if opts == nil {
		opts = &QueueOptions{}
	}
	settings, err := opts.settings()
	if err != nil {
		return QueueInfo{}, err
	}
	return q.info(ctx, &wire.Queue{Op: wire.OpDeclare, Settings: settings})
}

// settings is what o is on the wire.
func (o *QueueOptions) settings() (*wire.QueueSettings, error) {
	if o.MaxMessages < 0 || o.MaxBytes < 0 || o.Lease < 0 || o.TTL < 0 || o.SyncInterval < 0 {
		return nil, fmt.Errorf("%w: of a queue's options only MaxTries and Dedup may be below 0: %+v", ErrBadOption, *o)
	}
	for _, filter := range o.Bind {
		if err := wire.CheckFilter(filter); err != nil {
			return nil, withSentinel(err)
		}
	}
	return &wire.QueueSettings{
		Level:       o.Level,
		Bind:        o.Bind,
		MaxMessages: int64(o.MaxMessages),
		MaxBytes:    o.MaxBytes,
		WhenFull:    o.WhenFull,
		LeaseMS:     millis(o.Lease),
		MaxTries:    max(int64(o.MaxTries), -1),
		DeadLetter:  o.DeadLetter,
		TTLMS:       millis(o.TTL),
		DedupMS:     max(millis(o.Dedup), -1),
		SyncMS:      millis(o.SyncInterval),
	}, nil
}

// millis returns d in ms, rounded away from 0, which would mean the default.
func millis(d time.Duration) int64 {
	ms := int64(d / time.Millisecond)
	switch rest := d % time.Millisecond; {
	case rest > 0:
		ms++
	case rest < 0:
		ms--
	}
	return ms
}

// Info returns what is known of the queue, and waits for it.
func (q *Queue) Info(ctx context.Context) (QueueInfo, error) {
	return q.info(ctx, &wire.Queue{Op: wire.OpInfo})
}

func (q *Queue) info(ctx context.Context, body *wire.Queue) (QueueInfo, error) {
	answer, err := q.request(ctx, body)
	if err != nil {
		return QueueInfo{}, err
	}
	return answer.Queues[0], nil
}

// Delete removes the queue with everything in it, and waits until it is gone. Its
// consumers end with ErrNotFound.
func (q *Queue) Delete(ctx context.Context) error {
	_, err := q.request(ctx, &wire.Queue{Op: wire.OpDelete})
	return err
}

// Purge removes messages, and waits until they are gone: with state "" all that are
// ready or delayed, with "dead" the dead letters. It returns how many there were.
func (q *Queue) Purge(ctx context.Context, state string) (n int, err error) {
	return q.count(ctx, &wire.Queue{Op: wire.OpPurge, State: state})
}

// Pause has the broker deliver nothing until Resume, and waits for its answer. Pushes
// and settles go on.
func (q *Queue) Pause(ctx context.Context) error {
	_, err := q.request(ctx, &wire.Queue{Op: wire.OpPause})
	return err
}

// Resume ends a Pause or a Drain, and waits for the broker's answer.
func (q *Queue) Resume(ctx context.Context) error {
	_, err := q.request(ctx, &wire.Queue{Op: wire.OpResume})
	return err
}

// Drain has the broker refuse pushes with ErrDraining, and waits until the consumers
// have emptied the queue; dead letters stay. When ctx ends first the queue goes on
// draining. Resume ends it, and a Drain that waits then returns ErrConflict.
func (q *Queue) Drain(ctx context.Context) error {
	_, err := q.request(ctx, &wire.Queue{Op: wire.OpDrain})
	return err
}

// Requeue has dead letters delivered again, the oldest first and at most limit of them
// (0: all), and waits until that is kept. It returns how many there were.
func (q *Queue) Requeue(ctx context.Context, limit int) (n int, err error) {
	return q.count(ctx, &wire.Queue{Op: wire.OpRequeue, Limit: max(limit, 0)})
}

func (q *Queue) count(ctx context.Context, body *wire.Queue) (int, error) {
	answer, err := q.request(ctx, body)
	return int(answer.Count), err
}

// request asks the broker something about this queue.
func (q *Queue) request(ctx context.Context, body *wire.Queue) (queued, error) {
	if err := wire.CheckQueueName(q.name); err != nil {
		return queued{}, withSentinel(err)
	}
	body.Queue = q.name
	return q.client.request(ctx, body)
}

// peekPage is how many messages are asked for at once: their bodies are in memory
// together.
const peekPage = 100

// Peek returns the queue's messages in order of their seq, for a range loop. They stay
// where they are, and cannot be settled. It asks the broker for a page of them at a
// time, so that what happens to the queue meanwhile may or may not be seen. An error is
// the last pair. A deleted queue's is ErrNotFound.
func (q *Queue) Peek(ctx context.Context, opts *PeekOptions) iter.Seq2[*Delivery, error] {
	var o PeekOptions
	if opts != nil {
		o = *opts
	}
	return func(yield func(*Delivery, error) bool) {
		left := o.Limit
		for from, more := o.From, true; more; {
			limit := peekPage
			if o.Limit > 0 {
				limit = min(left, peekPage)
			}
			page, err := q.request(ctx, &wire.Queue{Op: wire.OpPeek, State: o.State, From: from, Limit: limit})
			if err != nil {
				yield(nil, err)
				return
			}
			for _, d := range page.peeked {
				if !yield(d, nil) {
					return
				}
			}
			left -= len(page.peeked)
			from, more = page.Next, page.Next != 0 && (o.Limit <= 0 || left > 0)
		}
	}
}
