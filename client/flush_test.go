package client_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// Flush waits for what was settled before it, and tells once what was in vain.
func TestFlushSettles(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		consumer, asked := consume(t, c, s, nil)
		flushed := func() chan error {
			done := make(chan error, 1)
			go func() { done <- consumer.Flush(testContext(t)) }()
			return done
		}
		if err := <-flushed(); err != nil {
			t.Errorf("nothing was settled: %v", err)
		}
		s.deliver(asked.Sub, span(1, 6)...)
		got := next(t, consumer, span(1, 6)...)
		_ = got[0].Ack()
		s.settle()
		done := flushed()
		s.settled(1)
		if err := <-done; err != nil {
			t.Error(err)
		}
		// The second of three is refused before the first is kept.
		for _, d := range []*client.Delivery{got[1], got[3], got[5]} {
			_ = d.Ack()
			s.settle()
		}
		done = flushed()
		s.leaseLost(3, asked.Sub)
		s.settled(2)
		s.settled(4)
		wantVain(t, <-done, 4)
		if err := <-flushed(); err != nil {
			t.Errorf("told twice: %v", err)
		}
		_ = got[2].Nack(time.Second)
		s.settle()
		done = flushed()
		s.cold(wire.TypeError, &wire.ErrorBody{Settle: 5, Sub: asked.Sub, Code: wire.CodeStore, Text: "no space"})
		err := <-done
		wantError(t, err, client.ErrStore)
		if vain, ok := errors.AsType[*client.LeaseError](err); !ok || !slices.Equal(vain.Seqs, []uint64{3}) {
			t.Errorf("got %v", err)
		}
	})
}

// Flush waits for the notes that are not written, those that are, and nothing later.
func TestFlushWaits(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1, 3, 5))
	got := next(t, s, 1, 3, 5)
	_ = got[0].Ack()
	d.Settles()
	_ = got[1].Ack()
	done := make(chan error, 1)
	go func() { done <- s.Flush(testContext(t)) }()
	waitFor(t, "Flush to wait", func() bool { d.Settles(); return client.Flushing(d.Client) == 1 })
	_ = got[2].Ack()
	d.Settles()
	put(t, d, wire.AppendSettled(nil, 1))
	if client.Flushing(d.Client) != 1 {
		t.Error("Flush did not wait for the second")
	}
	put(t, d, wire.AppendSettled(nil, 2))
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Of a frame that names several the broker says which were lost, but for those it has
// no room to name.
func TestFlushRange(t *testing.T) {
	for name, test := range map[string]struct{ lost, want []uint64 }{
		"one":          {[]uint64{7}, []uint64{7}},
		"some":         {[]uint64{1, 5, 150}, []uint64{1, 5, 150}},
		"not said":     {nil, span(1, 1000)},
		"many":         {span(2, 101), append(span(2, 101), span(102, 1001)...)},
		"many, at end": {span(1901, 2000), span(1901, 2000)},
	} {
		t.Run(name, func(t *testing.T) {
			d, s, sub := desk(t, nil)
			put(t, d, deliveries(sub, false, span(1, 2000)...))
			for _, d := range next(t, s, span(1, 2000)...) {
				_ = d.Ack()
			}
			if got := d.Settles(); len(got) != 1 {
				t.Fatalf("got %+v", got)
			}
			d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 1, Sub: sub, Code: wire.CodeLeaseLost, Lost: test.lost})
			vain, ok := errors.AsType[*client.LeaseError](s.Flush(testContext(t)))
			if !ok || !slices.Equal(vain.Seqs, test.want) || vain.Count < len(test.want) {
				t.Errorf("got %+v", vain)
			}
		})
	}
}

func TestFlushContext(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1))
	_ = next(t, s, 1)[0].Ack()
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	wantError(t, s.Flush(ctx), context.Canceled)
	d.Settles()
	put(t, d, wire.AppendSettled(nil, 1))
	if err := s.Flush(testContext(t)); err != nil {
		t.Error(err)
	}
}

func TestAckWait(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		consumer, asked := consume(t, c, s, nil)
		s.deliver(asked.Sub, span(1, 4)...)
		got := next(t, consumer, span(1, 4)...)
		ctx, cancel := context.WithCancel(testContext(t))
		wait := func(d *client.Delivery) func() error { return func() error { return d.AckWait(ctx) } }
		err := called(func() { s.settle(); s.settled(1) }, wait(got[0]))
		if err != nil {
			t.Error(err)
		}
		err = called(func() { s.settle(); s.leaseLost(2, asked.Sub) }, wait(got[1]))
		wantError(t, err, client.ErrLeaseLost)
		if err := consumer.Flush(testContext(t)); err != nil {
			t.Errorf("it was told already: %v", err)
		}
		// One that was given up is told by Flush.
		err = called(func() { s.settle(); cancel() }, wait(got[2]))
		wantError(t, err, context.Canceled)
		s.leaseLost(3, asked.Sub)
		wantVain(t, consumer.Flush(testContext(t)), 3)
		// With a context that has ended nothing is settled.
		wantError(t, got[3].AckWait(ctx), context.Canceled)
		if err := got[3].Ack(); err != nil {
			t.Error(err)
		}
	})
}

// A message that is waited for is alone in its frame, so that the answer is its own.
func TestAckWaitAlone(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1, 2, 3))
	got := next(t, s, 1, 2, 3)
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error)
	_ = got[0].Ack()
	go func() { done <- got[1].AckWait(ctx) }()
	waitFor(t, "AckWait", func() bool { return len(client.Held(s)) == 1 })
	_ = got[2].Ack()
	ack := func(seq uint64) wire.Settle { return wire.Settle{Sub: sub, Verb: wire.VerbAck, First: seq, Last: seq} }
	wantSettles(t, d, ack(1), ack(2), ack(3))
	d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 2, Sub: sub, Code: wire.CodeLeaseLost})
	wantError(t, <-done, client.ErrLeaseLost)
	// Given up before it was written: the program is told by Flush.
	put(t, d, deliveries(sub, false, 4))
	last := next(t, s, 4)[0]
	go func() { done <- last.AckWait(ctx) }()
	waitFor(t, "AckWait", func() bool { return len(client.Held(s)) == 0 })
	cancel()
	wantError(t, <-done, context.Canceled)
	wantSettles(t, d, ack(4))
	d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 4, Sub: sub, Code: wire.CodeLeaseLost})
	put(t, d, wire.AppendSettled(nil, 4))
	wantVain(t, s.Flush(testContext(t)), 4)
}
