package client_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// consume opens a consumer, and returns what it asked for too.
func consume(t testing.TB, c *client.Client, s *script, opts *client.ConsumeOptions) (*client.Consumer, wire.Consume) {
	t.Helper()
	if opts == nil {
		opts = &client.ConsumeOptions{Lease: 30 * time.Second}
	}
	asked := make(chan wire.Consume, 1)
	go func() { asked <- s.openConsumer() }()
	consumer, err := c.Queue("jobs").Consume(testContext(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	return consumer, <-asked
}

func (s *script) deliver(sub uint32, seqs ...uint64) { s.send(deliveries(sub, false, seqs...)) }

func (s *script) settled(upTo uint64) { s.send(wire.AppendSettled(nil, upTo)) }

func (s *script) leaseLost(settle uint64, sub uint32) {
	s.cold(wire.TypeError, &wire.ErrorBody{Settle: settle, Sub: sub, Code: wire.CodeLeaseLost, Text: "too late"})
}

// wantLost takes a LeasesLost.
func wantLost(t testing.TB, s *client.Consumer, unsettled, unconfirmed []uint64) {
	t.Helper()
	d, err := s.Next(testContext(t))
	lost, ok := errors.AsType[*client.LeasesLost](err)
	if !ok {
		t.Fatalf("want lost leases, got %+v, %v", d, err)
	}
	if !slices.Equal(lost.Unsettled, unsettled) || !slices.Equal(lost.Unconfirmed, unconfirmed) {
		t.Errorf("got %+v, want %v and %v", lost, unsettled, unconfirmed)
	}
}

// wantVain checks that err tells of those settled in vain.
func wantVain(t testing.TB, err error, seqs ...uint64) {
	t.Helper()
	vain, ok := errors.AsType[*client.LeaseError](err)
	if !ok || vain.Count != len(seqs) || !slices.Equal(vain.Seqs, seqs) || vain.Queue != "jobs" {
		t.Fatalf("got %#v, want %v", err, seqs)
	}
	wantError(t, err, client.ErrLeaseLost)
}

func TestConsume(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		consumer, asked := consume(t, c, s, &client.ConsumeOptions{Prefetch: 10, Lease: time.Minute + time.Microsecond})
		if want := (wire.Consume{Sub: asked.Sub, Queue: "jobs", Prefetch: 10, LeaseMS: 60_001}); asked != want {
			t.Errorf("got %+v, want %+v", asked, want)
		}
		info := wire.AppendOptions(nil, &wire.MessageInfo{Redelivered: true, Tries: 2, Key: "k", ID: "i", Priority: 4})
		m := wire.Message{
			Seq: 7, Time: 5, UID: 6, GID: 7, PID: 8, Topic: []byte("a/b"), Body: []byte("body"),
			Headers: wire.AppendHeaders(nil, map[string]string{"h": "v"}), Info: info,
		}
		s.send(wire.AppendMessage(wire.AppendTarget(nil, asked.Sub), &m))
		s.deliver(asked.Sub, 8)
		got := next(t, consumer, 7, 8)
		want := client.Delivery{
			Message: client.Message{Seq: 7, Time: time.Unix(0, 5), From: client.Peer{UID: 6, GID: 7, PID: 8}, Redelivered: true, Topic: "a/b", Body: []byte("body")},
			Tries:   2, Key: "k", ID: "i", Priority: 4,
		}
		if d := client.Plain(got[0]); !reflect.DeepEqual(d, want) || got[0].Headers()["h"] != "v" {
			t.Errorf("got  %+v\nwant %+v", d, want)
		}
		if d := got[1]; d.Tries != 1 || d.Redelivered || string(d.Body) != "job 8" || d.Headers() != nil {
			t.Errorf("got %+v", d)
		}
		for i, d := range got {
			if err := d.Ack(); err != nil {
				t.Error(err)
			}
			if settle := s.settle(); settle.Sub != asked.Sub || settle.Verb != wire.VerbAck || settle.First != d.Seq || settle.Last != d.Seq {
				t.Errorf("got %+v", settle)
			}
			s.settled(uint64(i + 1))
			for _, call := range []func() error{d.Ack, func() error { return d.Nack(0) }, func() error { return d.Reject("") }, func() error { return d.Extend(0) }} {
				wantError(t, call(), client.ErrSettled)
			}
		}
	})
}

// Without a length of its own a consumer asks for the queue's lease, and goes by it.
func TestConsumeLease(t *testing.T) {
	c, s := scripted(t, nil)
	err := called(func() {
		s.answer(s.request(wire.OpInfo), wire.Queued{Queues: []wire.QueueInfo{{Settings: wire.QueueSettings{LeaseMS: 12_345}}}})
		if got := s.openConsumer(); got.LeaseMS != 12_345 {
			t.Errorf("got %+v", got)
		}
	}, func() error { _, err := c.Queue("jobs").Consume(testContext(t), nil); return err })
	if err != nil {
		t.Error(err)
	}
	err = called(func() { s.fail(s.request(wire.OpInfo), wire.CodeNotFound, "no queue jobs") },
		func() error { _, err := c.Queue("jobs").Consume(testContext(t), nil); return err })
	wantError(t, err, client.ErrNotFound)
}

func TestConsumeRefused(t *testing.T) {
	c, s := scripted(t, nil)
	lease := &client.ConsumeOptions{Lease: time.Second}
	err := called(func() {
		var body wire.Consume
		s.expect(wire.TypeConsume, &body)
		s.cold(wire.TypeError, &wire.ErrorBody{Sub: body.Sub, Code: wire.CodeNotFound, Text: "no queue jobs"})
	}, func() error { _, err := c.Queue("jobs").Consume(testContext(t), lease); return err })
	wantError(t, err, client.ErrNotFound)

	ctx, cancel := context.WithCancel(testContext(t))
	var body wire.Consume
	err = called(func() { s.expect(wire.TypeConsume, &body); cancel() },
		func() error { _, err := c.Queue("jobs").Consume(ctx, lease); return err })
	wantError(t, err, context.Canceled)
	var unsubscribe wire.Unsubscribe
	s.expect(wire.TypeUnsubscribe, &unsubscribe)
	if unsubscribe != (wire.Unsubscribe{Sub: body.Sub}) {
		t.Errorf("got %+v", unsubscribe)
	}
	// What the broker sent before it knew does no harm.
	s.cold(wire.TypeSubscribed, &wire.Subscribed{Sub: body.Sub})
	s.deliver(body.Sub, 1)
	s.cold(wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: body.Sub})
	go s.pong()
	if err := c.Ping(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func TestReject(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1, 3))
	got := next(t, s, 1, 3)
	long := "é" // two bytes: the limit falls into the middle of one
	for len(long) < 2*wire.MaxReason {
		long += "é"
	}
	_ = got[0].Reject("x" + long)
	_ = got[1].Reject("a\xffb")
	settles := d.Settles()
	if len(settles) != 2 || string(settles[0].Reason) != "x"+long[:wire.MaxReason-2] || string(settles[1].Reason) != "a\uFFFDb" {
		t.Errorf("got %+v", settles)
	}
}

// A message that came again while the program had it: the first lease is lost.
func TestCameAgain(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1, 2, 3))
	first := next(t, s, 1, 2)
	put(t, d, deliveries(sub, true, 2, 3)) // 3 still waits
	put(t, d, deliveries(sub, false, 4))
	wantError(t, first[1].Ack(), client.ErrLeaseLost)
	second := next(t, s, 2, 3, 4)
	for _, d := range append(second, first[0]) {
		if err := d.Ack(); err != nil {
			t.Error(err)
		}
	}
	if got, err := client.TryNext(s); got != nil || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	wantSettles(t, d, wire.Settle{Sub: sub, Verb: wire.VerbAck, First: 1, Last: 4})
}

// A lost connection: what was given out may come again, what was not comes as if new.
func TestLeasesLost(t *testing.T) {
	eachSocket(t, func(t *testing.T, l *listener, c *client.Client, s *script) {
		consumer, asked := consume(t, c, s, &client.ConsumeOptions{Prefetch: 9, Lease: time.Minute})
		s.deliver(asked.Sub, span(1, 8)...)
		got := next(t, consumer, 1, 2, 3, 4, 5)
		_ = got[0].Ack()
		s.settle()
		s.settled(1)
		_, _ = got[1].Ack(), got[3].Extend(time.Minute)
		for settles := 0; settles < 2; settles++ {
			s.settle()
		}
		waiting := make(chan error, 2)
		go func() { waiting <- got[2].AckWait(testContext(t)) }()
		s.settle()
		go func() { waiting <- consumer.Flush(testContext(t)) }()
		waitFor(t, "Flush to wait", func() bool { return client.Flushing(c) == 1 })
		_ = s.conn.Close()
		for range 2 {
			wantError(t, <-waiting, client.ErrLeaseLost)
		}
		wantLost(t, consumer, []uint64{4, 5}, []uint64{2, 3})
		for _, d := range got[3:] {
			wantError(t, d.Ack(), client.ErrLeaseLost)
		}
		wantError(t, got[0].Ack(), client.ErrSettled)

		s = l.accept()
		if hello := s.greet(nil); hello.Restore != 0 {
			t.Errorf("got %+v: there are no subscriptions to restore", hello)
		}
		if again := s.openConsumer(); again != asked {
			t.Errorf("got %+v, want %+v", again, asked)
		}
		s.send(deliveries(asked.Sub, true, 2, 4))
		again := next(t, consumer, 2, 4)
		if !again[0].Redelivered || again[0].Tries != 2 {
			t.Errorf("got %+v", again[0])
		}
		_ = again[0].Ack()
		s.settle()
		s.settled(1) // they are numbered from 1 again
		if err := consumer.Flush(testContext(t)); err != nil {
			t.Error(err) // the waiting Flush was told
		}
	})
}

// Losses that nobody looks at are one, and where nothing matters there is none.
func TestLeasesLostUnread(t *testing.T) {
	d, s, sub := desk(t, nil)
	reconnect := func() {
		d.Lose()
		d.Connect()
		d.Open(s)
	}
	put(t, d, deliveries(sub, false, 1, 2)) // nobody has seen these
	reconnect()
	if got, err := client.TryNext(s); got != nil || err != nil {
		t.Fatalf("got %v, %v", got, err)
	}
	put(t, d, deliveries(sub, false, 1, 2, 3))
	got := next(t, s, 1, 2, 3)
	_, _ = got[0].Ack(), got[1].Ack() // never written
	reconnect()
	put(t, d, deliveries(sub, true, 1))
	reconnect()
	put(t, d, deliveries(sub, true, 2))
	wantLost(t, s, []uint64{3}, []uint64{1, 2})
	next(t, s, 2)
	wantVain(t, s.Flush(testContext(t)), 1, 2)
	if got := d.Settles(); len(got) != 0 {
		t.Errorf("settles of another connection: %+v", got)
	}
}

// A range loop goes on behind lost leases and ends with anything else.
func TestDeliveries(t *testing.T) {
	d, s, sub := desk(t, nil)
	put(t, d, deliveries(sub, false, 1, 2))
	for range s.Deliveries(testContext(t)) {
		break
	}
	d.Lose()
	d.Connect()
	d.Open(s)
	put(t, d, deliveries(sub, true, 1, 2, 3))
	d.Cold(wire.TypeError, &wire.ErrorBody{Sub: sub, Code: wire.CodeNotFound, Text: "deleted"})
	var got []error
	for _, err := range s.Deliveries(testContext(t)) {
		got = append(got, err)
	}
	if len(got) != 2 || reflect.TypeOf(got[0]) != reflect.TypeFor[*client.LeasesLost]() || !errors.Is(got[1], client.ErrNotFound) {
		t.Errorf("got %v", got)
	}
}

// A deleted queue is the end, and what was given out of it cannot be settled.
func TestQueueDeleted(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		consumer, asked := consume(t, c, s, nil)
		s.deliver(asked.Sub, 1, 2)
		got := next(t, consumer, 1)
		s.cold(wire.TypeError, &wire.ErrorBody{Sub: asked.Sub, Code: wire.CodeNotFound, Text: "queue jobs was deleted"})
		d, err := consumer.Next(testContext(t))
		if d != nil { // it was quicker than the end
			_, err = consumer.Next(testContext(t))
		}
		wantError(t, err, client.ErrNotFound)
		wantError(t, got[0].Ack(), client.ErrLeaseLost)
		wantError(t, got[0].Ack(), client.ErrNotFound)
		wantError(t, consumer.Drain(testContext(t)), client.ErrNotFound)
		if err := consumer.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Next wakes when something comes, and when its context ends nothing is lost.
func TestConsumerNextContext(t *testing.T) {
	c, s := scripted(t, nil)
	consumer, asked := consume(t, c, s, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	waited := make(chan error)
	go func() { _, err := consumer.Next(ctx); waited <- err }()
	waitFor(t, "Next to wait", func() bool { return client.WaitingFor(consumer) == 1 })
	cancel()
	wantError(t, <-waited, context.Canceled)
	s.deliver(asked.Sub, 1)
	next(t, consumer, 1)
	_, err := consumer.Next(ctx)
	wantError(t, err, context.Canceled)
}

// Workers share a consumer: each delivery is one worker's, and all are settled.
func TestWorkers(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		const workers, messages, prefetch = 4, 3000, 100
		consumer, asked := consume(t, c, s, &client.ConsumeOptions{Prefetch: prefetch, Lease: time.Minute})
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				for d, err := range consumer.Deliveries(testContext(t)) {
					if err == nil {
						err = d.Ack()
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		acked, delivered, frames := make(map[uint64]bool), uint64(0), uint64(0)
		for len(acked) < messages {
			for delivered < messages && delivered-uint64(len(acked)) < prefetch {
				delivered++
				s.deliver(asked.Sub, delivered)
			}
			settle := s.settle()
			frames++
			for seq := settle.First; seq <= settle.Last; seq++ {
				if acked[seq] || seq == 0 || seq > delivered {
					t.Fatalf("seq %d is settled again or was not delivered", seq)
				}
				acked[seq] = true
			}
			s.settled(frames)
		}
		closed := make(chan error)
		go func() { closed <- consumer.Close() }()
		s.expect(wire.TypeUnsubscribe, nil)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		all.Wait()
	})
}

// Several consumers of one client: their settles share the connection's numbers.
func TestTwoConsumers(t *testing.T) {
	d, one, first := desk(t, nil)
	two, second := d.Consume("jobs", &client.ConsumeOptions{Lease: time.Minute})
	put(t, d, append(deliveries(first, false, 1, 3), deliveries(second, false, 2, 4)...))
	a, b := next(t, one, 1, 3), next(t, two, 2, 4)
	_, _, _, _ = a[0].Ack(), b[0].Ack(), a[1].Ack(), b[1].Ack()
	if got := d.Settles(); len(got) != 4 {
		t.Fatalf("got %+v", got)
	}
	d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 3, Sub: second, Code: wire.CodeLeaseLost})
	put(t, d, wire.AppendSettled(nil, 4))
	if err := one.Flush(testContext(t)); err != nil {
		t.Error(err)
	}
	wantVain(t, two.Flush(testContext(t)), 2)
}
