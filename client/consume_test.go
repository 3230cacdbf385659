package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// unsubscribed takes an UNSUBSCRIBE, which must be that one.
func (s *script) unsubscribed(want wire.Unsubscribe) {
	s.t.Helper()
	var body wire.Unsubscribe
	s.expect(wire.TypeUnsubscribe, &body)
	if body != want {
		s.t.Errorf("got %+v, want %+v", body, want)
	}
}

// Drain: what was not given out goes back, what was is waited for.
func TestDrainConsumer(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		consumer, asked := consume(t, c, s, nil)
		s.deliver(asked.Sub, 1, 2, 3, 4)
		got := next(t, consumer, 1)
		waitFor(t, "the others", func() bool { return client.Ready(consumer) == 3 })
		drained := make(chan error)
		go func() { drained <- consumer.Drain(testContext(t)) }()
		s.unsubscribed(wire.Unsubscribe{Sub: asked.Sub, Drain: true})
		if back := s.settle(); back.Verb != wire.VerbNack || back.First != 2 || back.Last != 4 || back.Arg != 0 {
			t.Errorf("got %+v", back)
		}
		s.deliver(asked.Sub, 5) // it was on its way
		if back := s.settle(); back.Verb != wire.VerbNack || back.First != 5 || back.Last != 5 {
			t.Errorf("got %+v", back)
		}
		_, err := consumer.Next(testContext(t))
		wantError(t, err, client.ErrDrained)
		for _, err := range consumer.Deliveries(testContext(t)) {
			t.Errorf("got %v", err)
		}
		if err := got[0].Ack(); err != nil {
			t.Error(err)
		}
		s.settle()
		s.cold(wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: asked.Sub})
		select {
		case err := <-drained:
			t.Errorf("the ack is not kept yet: %v", err)
		default:
		}
		s.settled(3)
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if err := consumer.Drain(testContext(t)); err != nil {
			t.Error(err)
		}
		if err := consumer.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A drain tells what was settled in vain, and what a lost connection leaves open; what
// it gave back itself is nobody's concern.
func TestDrainConsumerErrors(t *testing.T) {
	drain := func(d *client.Desk, s *client.Consumer) chan error {
		done := make(chan error, 1)
		go func() { done <- s.Drain(testContext(t)) }()
		waitFor(t, "Drain", func() bool { return client.Ending(s) != nil })
		return done
	}
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1, 2))
	_ = next(t, s, 1)[0].Ack()
	done := drain(d, s)
	d.Take()
	d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 1, Sub: sub, Code: wire.CodeLeaseLost})
	d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 2, Sub: sub, Code: wire.CodeLeaseLost})
	d.Cold(wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: sub})
	wantVain(t, <-done, 1)

	s, sub = d.Consume("jobs", &client.ConsumeOptions{Lease: time.Minute})
	put(t, d, deliveries(sub, false, 5, 6, 7))
	_ = next(t, s, 5, 6)[0].Ack()
	done = drain(d, s)
	d.Take()
	d.Lose()
	lost, ok := errors.AsType[*client.LeasesLost](<-done)
	if !ok || len(lost.Unsettled) != 1 || lost.Unsettled[0] != 6 || len(lost.Unconfirmed) != 1 || lost.Unconfirmed[0] != 5 {
		t.Errorf("got %+v", lost)
	}
	wantLost(t, s, []uint64{6}, []uint64{5})
	_, err := s.Next(testContext(t))
	wantError(t, err, client.ErrDrained)
	d.Connect()
	if frames := d.Take(); len(frames) != 0 {
		t.Errorf("a drained consumer was opened again: %q", frames)
	}

	// Nothing is lost of one that held nothing, nor of one drained without a connection.
	s, _ = d.Consume("jobs", &client.ConsumeOptions{Lease: time.Minute})
	other, _ := d.Consume("jobs", &client.ConsumeOptions{Lease: time.Minute})
	done = drain(d, s)
	d.Lose()
	for _, err := range []error{<-done, other.Drain(testContext(t))} {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestDrainConsumerContext(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1))
	got := next(t, s, 1)
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	wantError(t, s.Drain(ctx), context.Canceled)
	if err := got[0].Ack(); err != nil {
		t.Error(err)
	}
}

// Close: what was settled goes first, the rest goes back.
func TestCloseConsumer(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		consumer, asked := consume(t, c, s, nil)
		s.deliver(asked.Sub, span(1, 5)...)
		got := next(t, consumer, 1, 2, 3)
		_, _ = got[0].Ack(), got[1].Ack()
		closed := make(chan error)
		go func() { closed <- consumer.Close() }()
		frames, last := uint64(0), uint64(0)
		for ; last < 2; frames++ {
			settle := s.settle()
			if settle.Verb != wire.VerbAck || settle.First != last+1 {
				t.Errorf("got %+v", settle)
			}
			last = settle.Last
		}
		s.unsubscribed(wire.Unsubscribe{Sub: asked.Sub})
		s.deliver(asked.Sub, 6)
		s.settled(frames)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		s.cold(wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: asked.Sub})
		err := got[2].Ack()
		wantError(t, err, client.ErrLeaseLost)
		wantError(t, err, client.ErrClosed)
		_, err = consumer.Next(testContext(t))
		wantError(t, err, client.ErrClosed)
		for _, err := range consumer.Deliveries(testContext(t)) {
			t.Errorf("got %v", err)
		}
		if err := consumer.Close(); err != nil {
			t.Error(err)
		}
		wantError(t, consumer.Drain(testContext(t)), client.ErrClosed)
		go s.pong()
		if err := c.Ping(testContext(t)); err != nil {
			t.Error(err)
		}
	})
}

// The first Close tells what was settled in vain.
func TestCloseConsumerVain(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1))
	_ = next(t, s, 1)[0].Ack()
	d.Settles()
	d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 1, Sub: sub, Code: wire.CodeLeaseLost})
	wantVain(t, s.Close(), 1)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Close cuts a Drain short: the broker, which would wait for the leases, is asked again.
func TestCloseDraining(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		consumer, asked := consume(t, c, s, nil)
		s.deliver(asked.Sub, 1)
		next(t, consumer, 1)
		drained := make(chan error)
		go func() { drained <- consumer.Drain(testContext(t)) }()
		s.unsubscribed(wire.Unsubscribe{Sub: asked.Sub, Drain: true})
		if err := consumer.Close(); err != nil {
			t.Error(err)
		}
		s.unsubscribed(wire.Unsubscribe{Sub: asked.Sub})
		s.cold(wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: asked.Sub})
		wantError(t, <-drained, client.ErrClosed)
	})
}

// Without a connection there is nothing to ask, and nothing to wait for.
func TestCloseConsumerOffline(t *testing.T) {
	d, s, sub := desk(t, nil)
	other, _ := d.Consume("jobs", &client.ConsumeOptions{Lease: time.Minute})
	put(t, d, deliveries(sub, false, 1, 2))
	got := next(t, s, 1)
	closing := make(chan error)
	go func() { closing <- other.Close() }()
	if err := <-closing; err != nil {
		t.Error(err)
	}
	d.Lose()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantError(t, got[0].Ack(), client.ErrLeaseLost)
	d.Connect()
	if frames := d.Take(); len(frames) != 0 {
		t.Errorf("a closed consumer was opened again: %q", frames)
	}
}

// What was settled before the client is closed is written before it leaves.
func TestCloseClientSettles(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		consumer, asked := consume(t, c, s, nil)
		s.deliver(asked.Sub, 1, 2)
		got := next(t, consumer, 1, 2)
		_ = got[0].Ack()
		closed := make(chan error)
		go func() { closed <- c.Close() }()
		s.settle()
		s.expect(wire.TypeGoodbye, nil)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		err := got[1].Ack()
		wantError(t, err, client.ErrLeaseLost)
		wantError(t, err, client.ErrClosed)
		_, err = consumer.Next(testContext(t))
		wantError(t, err, client.ErrClosed)
		wantVain(t, consumer.Flush(testContext(t)), 1) // Close does not wait for the broker's word
	})
}

// A client that ends with its connection: Next tells what was lost, and then the end.
func TestConsumerDisconnected(t *testing.T) {
	c, s := scripted(t, nil) // it does not reconnect
	consumer, asked := consume(t, c, s, nil)
	s.deliver(asked.Sub, 1, 2, 3)
	got := next(t, consumer, 1, 2)
	_ = got[0].Ack()
	s.settle()
	_ = s.conn.Close()
	<-c.Done()
	wantLost(t, consumer, []uint64{2}, []uint64{1})
	for range 2 {
		_, err := consumer.Next(testContext(t))
		wantError(t, err, client.ErrDisconnected)
	}
	err := got[1].Ack()
	wantError(t, err, client.ErrLeaseLost)
	wantError(t, err, client.ErrDisconnected)
	wantVain(t, consumer.Flush(testContext(t)), 1)
	wantError(t, consumer.Drain(testContext(t)), client.ErrDisconnected)
	if err := consumer.Close(); err != nil {
		t.Error(err)
	}
}

// Draining the client drains its consumers.
func TestDrainClientConsumers(t *testing.T) {
	c, s := scripted(t, nil)
	consumer, asked := consume(t, c, s, nil)
	s.deliver(asked.Sub, 1)
	got := next(t, consumer, 1)
	drained := make(chan error)
	go func() { drained <- c.Drain(testContext(t)) }()
	s.unsubscribed(wire.Unsubscribe{Sub: asked.Sub, Drain: true})
	_ = got[0].Ack()
	s.settle()
	s.settled(1)
	s.cold(wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: asked.Sub})
	s.expect(wire.TypeGoodbye, nil)
	_ = s.conn.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
	wantError(t, c.Err(), client.ErrClosed)
}
