package client_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
)

// declare makes a queue.
func declare(t testing.TB, c *client.Client, name string, o *client.QueueOptions) *client.Queue {
	t.Helper()
	q := c.Queue(name)
	if _, err := q.Declare(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	return q
}

// A broker and its queues: everything pushed is worked off, once.
func TestWorkQueue(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		ctx := testContext(t)
		const messages, workers = 3000, 3
		q := declare(t, connect(nil), "jobs", nil)
		consumer, err := connect(nil).Queue("jobs").Consume(ctx, &client.ConsumeOptions{Prefetch: 50})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		pusher := connect(nil)
		all.Go(func() {
			for i := range messages {
				if err := pusher.Queue("jobs").PushAsync(ctx, fmt.Append(nil, i), nil); err != nil {
					t.Error(err)
				}
			}
			flush(t, pusher)
		})
		seen := make(chan string, messages)
		for range workers {
			all.Go(func() {
				for d, err := range consumer.Deliveries(ctx) {
					if err == nil {
						err = d.Ack()
					}
					if err != nil {
						t.Error(err)
						return
					}
					seen <- string(d.Body)
				}
			})
		}
		bodies := make(map[string]bool)
		for len(bodies) < messages {
			body := <-seen
			if bodies[body] {
				t.Errorf("%s came twice", body)
			}
			bodies[body] = true
		}
		if err := consumer.Drain(ctx); err != nil {
			t.Error(err)
		}
		all.Wait()
		info, err := q.Info(ctx)
		if err != nil || info.Ready+info.Leased+info.Dead != 0 || info.Acked != messages || info.Consumers != 0 {
			t.Errorf("got %+v, %v", info, err)
		}
	})
}

// take takes a delivery.
func take(t testing.TB, s *client.Consumer, body string, tries int) *client.Delivery {
	t.Helper()
	d, err := s.Next(testContext(t))
	if err != nil || string(d.Body) != body || d.Tries != tries {
		t.Fatalf("want %s, try %d, got %+v, %v", body, tries, d, err)
	}
	return d
}

// The life of single messages: priorities, ids, nacks, rejects.
func TestQueueMessages(t *testing.T) {
	_, connect := start(t, "unixpacket", nil)
	ctx := testContext(t)
	c := connect(nil)
	q := declare(t, c, "jobs", nil)
	for _, p := range []struct {
		body string
		opts client.PushOptions
	}{{"low", client.PushOptions{ID: "1"}}, {"low again", client.PushOptions{ID: "1"}}, {"high", client.PushOptions{Priority: 9, Key: "k"}}} {
		r, err := q.Push(ctx, []byte(p.body), &p.opts)
		if err != nil || r.Queues != 1 || r.Level != client.LevelMemory {
			t.Errorf("%s: %+v, %v", p.body, r, err)
		}
	}
	consumer, err := q.Consume(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	high := take(t, consumer, "high", 1)
	if high.Priority != 9 || high.Key != "k" || high.ID != "" {
		t.Errorf("got %+v", high)
	}
	_ = take(t, consumer, "low", 1).Nack(0)
	low := take(t, consumer, "low", 2)
	if !low.Redelivered || low.ID != "1" {
		t.Errorf("got %+v", low)
	}
	_ = low.Reject("no good")
	if err := high.AckWait(ctx); err != nil {
		t.Error(err)
	}
	if err := consumer.Flush(ctx); err != nil {
		t.Error(err)
	}
	if n, err := q.Requeue(ctx, 0); n != 1 || err != nil {
		t.Errorf("requeued %d, %v", n, err)
	}
	if err := take(t, consumer, "low", 1).AckWait(ctx); err != nil {
		t.Error(err)
	}
	if err := q.Delete(ctx); err != nil {
		t.Error(err)
	}
	_, err = consumer.Next(ctx)
	wantError(t, err, client.ErrNotFound)
}

// What a broker says of queues that are not there, or otherwise, and what is in them.
func TestQueueAnswers(t *testing.T) {
	_, connect := start(t, "unix", nil)
	ctx := testContext(t)
	c := connect(nil)
	_, err := c.Queue("none").Push(ctx, nil, nil)
	wantError(t, err, client.ErrNotFound)
	_, err = c.Queue("none").Consume(ctx, nil)
	wantError(t, err, client.ErrNotFound)
	q := declare(t, c, "jobs", &client.QueueOptions{MaxMessages: 3})
	_, err = q.Declare(ctx, &client.QueueOptions{MaxMessages: 4})
	wantError(t, err, client.ErrConflict)
	for _, delay := range []time.Duration{0, time.Hour, 0} {
		if _, err := q.Push(ctx, fmt.Append(nil, delay), &client.PushOptions{Delay: delay}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = q.Push(ctx, nil, nil)
	wantError(t, err, client.ErrQueueFull)
	for state, want := range map[string]int{"dead": 0, "delayed": 1, "ready": 2, "": 3} {
		got := 0
		for d, err := range q.Peek(ctx, &client.PeekOptions{State: state}) {
			if err != nil {
				t.Fatal(err)
			}
			if got++; state != "" && d.State != state || d.State == "delayed" && time.Until(d.Due) < time.Minute || d.Tries != 0 {
				t.Errorf("%s: got %+v", state, d)
			}
		}
		if got != want {
			t.Errorf("%s: got %d, want %d", state, got, want)
		}
	}
	if n, err := q.Purge(ctx, ""); n != 3 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	if queues, err := c.Queues(ctx); len(queues) != 1 || queues[0].Name != "jobs" || err != nil {
		t.Errorf("got %+v, %v", queues, err)
	}
}

// A delivery that is closed over comes to the next consumer; queues of level memory end
// with their broker.
func TestQueueRestart(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		checkGoroutines(t)
		dir := filepath.Join(t.TempDir(), "bus")
		bus := brokertest.StartAt(t, dir, nil)
		ctx := testContext(t)
		c := dial(t, &client.Options{Address: bus.Address(network), ReconnectMin: time.Millisecond})
		q := declare(t, c, "jobs", nil)
		if _, err := q.Push(ctx, []byte("body"), nil); err != nil {
			t.Fatal(err)
		}
		first, err := q.Consume(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		d, err := first.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		second, err := q.Consume(ctx, &client.ConsumeOptions{ExtendLeases: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		wantError(t, d.Ack(), client.ErrLeaseLost)
		if d, err = second.Next(ctx); err != nil || d.Tries != 2 {
			t.Fatal(d, err)
		}
		_ = bus.Close()
		_ = bus.Wait()
		brokertest.StartAt(t, dir, nil)
		wantLost(t, second, []uint64{d.Seq}, nil)
		_, err = second.Next(ctx)
		wantError(t, err, client.ErrNotFound)
		_, err = q.Push(ctx, nil, nil)
		if !errors.Is(err, client.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
}
