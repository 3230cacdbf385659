package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

const (
	// exportPrefetch is how many messages of a queue an export has leases on.
	exportPrefetch = 64

	// exportCredit is what of a topic's messages waits in this process, in bytes: what
	// a kill loses. With it a subscription still has some hundred messages at hand.
	exportCredit = 64 << 10
)

// kernelSender sends messages into a kernel queue.
type kernelSender struct {
	sink     *store.Foreign
	mtype    int64 // 0: what the message says
	warn     func(format string, args ...any)
	told     bool            // that it is full
	unsent   *client.Message // when ctx ended the wait
	sent     int
	tooLarge int
}

// send waits until the kernel queue takes the message; store.ErrTooLarge says that it never will.
func (s *kernelSender) send(ctx context.Context, m *client.Message) error {
	return s.sendRecord(ctx, store.NewRecord(s.typeOf(m), m.Body))
}

func (s *kernelSender) sendRecord(ctx context.Context, r store.Record) error {
	for pause := pollMin; ; pause = min(2*pause, pollMax) {
		err := s.sink.Send(r)
		if err == nil {
			s.sent++
			return nil
		}
		if !errors.Is(err, store.ErrFull) {
			return err
		}
		if !s.told {
			s.told = true
			s.warn("waiting: %s", sentence(err))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func (s *kernelSender) typeOf(m *client.Message) int64 {
	if s.mtype > 0 {
		return s.mtype
	}
	if n, err := strconv.ParseInt(m.Headers()[headerType], 10, 64); err == nil && n > 0 {
		return n
	}
	return 1
}

// withIdle is ctx for the wait for one message.
func (ex *exporting) withIdle(ctx context.Context) (context.Context, context.CancelFunc) {
	if ex.idle == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, ex.idle, errIdle)
}

func (ex *exporting) more(s *kernelSender) bool { return ex.count == 0 || s.sent < ex.count }

// feedTopic sends what is published from now on.
func (ex *exporting) feedTopic(ctx context.Context, c *client.Client, s *kernelSender) error {
	sub, err := c.Subscribe(ctx, ex.filter, &client.SubscribeOptions{Policy: client.Block, Credit: exportCredit})
	if err != nil {
		return endedBy(ctx, err)
	}
	if err := ex.ready.announce(); err != nil {
		return err
	}
	err = ex.feedMessages(ctx, sub, s)
	if err != errInterrupted {
		return err
	}
	// What was published before the signal came goes out as well; a second one ends the process.
	late := context.Background()
	if s.unsent != nil {
		if err := ex.sendPublished(late, s.unsent, s); err != nil {
			return err
		}
	}
	var gap *client.Gap
	if derr := sub.Drain(late); derr != nil && !errors.As(derr, &gap) {
		return derr
	}
	if derr := ex.feedMessages(late, sub, s); !errors.Is(derr, client.ErrDrained) {
		return derr
	}
	return err
}

func (ex *exporting) feedMessages(ctx context.Context, sub *client.Subscription, s *kernelSender) error {
	for ex.more(s) {
		waiting, cancel := ex.withIdle(ctx)
		m, err := sub.Next(waiting)
		cause := context.Cause(waiting)
		cancel()
		var gap *client.Gap
		if errors.As(err, &gap) {
			ex.warn("%s", gapSentence(gap))
			continue
		}
		if err != nil {
			if cause != nil {
				return cause
			}
			return err
		}
		if err := ex.sendPublished(ctx, m, s); err != nil {
			s.unsent = m
			return err
		}
	}
	return nil
}

// sendPublished sends one message of a topic, or tells that it is lost.
func (ex *exporting) sendPublished(ctx context.Context, m *client.Message, s *kernelSender) error {
	err := s.send(ctx, m)
	if errors.Is(err, store.ErrTooLarge) {
		s.tooLarge++
		ex.warn("a message to %s is lost: %s", m.Topic, sentence(err))
		return nil
	}
	return err
}

// feedQueue sends the messages of a queue, each acked once it is sent.
func (ex *exporting) feedQueue(ctx context.Context, c *client.Client, s *kernelSender) error {
	prefetch := exportPrefetch
	if ex.count > 0 {
		prefetch = min(prefetch, ex.count)
	}
	consumer, err := c.Queue(ex.queue).Consume(ctx, &client.ConsumeOptions{Prefetch: prefetch, ExtendLeases: true})
	if err != nil {
		return endedBy(ctx, err)
	}
	if err := ex.ready.announce(); err != nil {
		return err
	}
	// Only what was given out has its lease extended, so all that is fetched is.
	fetching, stop := context.WithCancel(ctx)
	ahead := &fetcher{consumer: consumer, warn: ex.warn, fetched: make(chan fetchedDelivery, prefetch)}
	ended := make(chan error, 1)
	go func() { ended <- ahead.run(fetching) }()
	err = ex.feedDeliveries(ctx, ahead, s)
	stop()
	if ferr := <-ended; err == nil {
		err = ferr
	}
	// A goodbye must not keep a broker that is away waited for.
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), importLinger)
	defer cancel()
	if ferr := consumer.Flush(late); err == nil {
		err = ferr
	}
	if cerr := consumer.Close(); err == nil {
		err = cerr
	}
	return err
}

// fetcher takes deliveries from a consumer ahead of their being sent.
type fetcher struct {
	consumer *client.Consumer
	warn     func(format string, args ...any)
	fetched  chan fetchedDelivery
	lives    atomic.Int64 // how often leases were lost with the connection
}

// fetchedDelivery is a delivery and the life it was fetched in; those of earlier lives come again.
type fetchedDelivery struct {
	*client.Delivery
	life int64
}

// run takes deliveries until ctx ends, which is no error, or the consumer does.
func (f *fetcher) run(ctx context.Context) error {
	defer close(f.fetched)
	for {
		d, err := f.consumer.Next(ctx)
		var lost *client.LeasesLost
		if errors.As(err, &lost) {
			f.lives.Add(1)
			f.warn("%s", sentence(err))
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case f.fetched <- fetchedDelivery{d, f.lives.Load()}:
		case <-ctx.Done():
			return nil
		}
	}
}

func (ex *exporting) feedDeliveries(ctx context.Context, ahead *fetcher, s *kernelSender) error {
	for ex.more(s) {
		waiting, cancel := ex.withIdle(ctx)
		select {
		case d, ok := <-ahead.fetched:
			cancel()
			if !ok {
				return nil // run says why
			}
			if d.life != ahead.lives.Load() {
				continue
			}
			if err := ex.feedDelivery(ctx, d.Delivery, s); err != nil {
				return err
			}
		case <-waiting.Done():
			cause := context.Cause(waiting)
			cancel()
			return cause
		}
	}
	return nil
}

func (ex *exporting) feedDelivery(ctx context.Context, d *client.Delivery, s *kernelSender) error {
	err := s.send(ctx, &d.Message)
	if errors.Is(err, store.ErrTooLarge) {
		s.tooLarge++
		reason := fmt.Sprintf("sysv export: %s", sentence(err))
		ex.warn("message %d of queue %s goes to the dead letters: %s", d.Seq, ex.queue, sentence(err))
		err = d.Reject(reason[:min(len(reason), wire.MaxReason)])
	} else if err == nil {
		err = d.Ack()
	}
	if errors.Is(err, client.ErrLeaseLost) { // it comes again; fetcher tells that
		return nil
	}
	return err
}
