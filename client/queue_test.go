package client_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// eachSocket runs a test with a client of scripts, over both socket types.
func eachSocket(t *testing.T, run func(t *testing.T, l *listener, c *client.Client, s *script)) {
	for _, network := range []string{"unixpacket", "unix"} {
		t.Run(network, func(t *testing.T) {
			checkGoroutines(t)
			l := listen(t, network)
			c, s := l.dial(client.Options{ReconnectMin: time.Millisecond, ReconnectMax: 5 * time.Millisecond}, nil)
			run(t, l, c, s)
		})
	}
}

// called runs a call that asks the broker, and answers it as the script does meanwhile.
func called(answer func(), call func() error) error {
	err := make(chan error)
	go func() { err <- call() }()
	answer()
	return <-err
}

func TestDeclare(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		options := &client.QueueOptions{
			Level: "disk", Bind: []string{"build/#", "test/+"}, MaxMessages: 10, MaxBytes: 1 << 20, WhenFull: "block",
			Lease: time.Minute, MaxTries: 3, DeadLetter: "dead", TTL: time.Hour, Dedup: 1500 * time.Microsecond, SyncInterval: time.Second,
		}
		want := &wire.QueueSettings{
			Level: "disk", Bind: []string{"build/#", "test/+"}, MaxMessages: 10, MaxBytes: 1 << 20, WhenFull: "block",
			LeaseMS: 60_000, MaxTries: 3, DeadLetter: "dead", TTLMS: 3_600_000, DedupMS: 2, SyncMS: 1000,
		}
		var info client.QueueInfo
		err := called(func() {
			q := s.request(wire.OpDeclare)
			if q.Queue != "jobs" || !reflect.DeepEqual(q.Settings, want) {
				t.Errorf("got %+v, want %+v", q.Settings, want)
			}
			s.answer(q, wire.Queued{Queues: []wire.QueueInfo{{Name: "jobs", Ready: 3, Settings: *q.Settings}}})
		}, func() (err error) {
			info, err = c.Queue("jobs").Declare(testContext(t), options)
			return err
		})
		if err != nil || info.Name != "jobs" || info.Ready != 3 || info.Settings.Level != "disk" {
			t.Errorf("got %+v, %v", info, err)
		}
		err = called(func() {
			q := s.request(wire.OpDeclare)
			if !reflect.DeepEqual(*q.Settings, wire.QueueSettings{MaxTries: -1, DedupMS: -1}) {
				t.Errorf("got %+v", q.Settings)
			}
			s.fail(q, wire.CodeConflict, "queue jobs is there with level disk")
		}, func() error {
			_, err := c.Queue("jobs").Declare(testContext(t), &client.QueueOptions{MaxTries: -5, Dedup: -time.Hour})
			return err
		})
		wantError(t, err, client.ErrConflict)
		if coded, ok := errors.AsType[*wire.Error](err); !ok || coded.Text != "queue jobs is there with level disk" {
			t.Errorf("the broker's words are not in %v", err)
		}
	})
}

// Each operation asks what it should and gives the answer on.
func TestQueueOps(t *testing.T) {
	info := []wire.QueueInfo{{Name: "jobs"}}
	for name, test := range map[string]struct {
		call   func(context.Context, *client.Queue) (int, error)
		want   wire.Queue
		answer wire.Queued
	}{
		"info": {func(ctx context.Context, q *client.Queue) (int, error) { _, err := q.Info(ctx); return 0, err },
			wire.Queue{Op: "info"}, wire.Queued{Queues: info}},
		"declare": {func(ctx context.Context, q *client.Queue) (int, error) { _, err := q.Declare(ctx, nil); return 0, err },
			wire.Queue{Op: "declare", Settings: &wire.QueueSettings{}}, wire.Queued{Queues: info}},
		"delete": {func(ctx context.Context, q *client.Queue) (int, error) { return 0, q.Delete(ctx) }, wire.Queue{Op: "delete"}, wire.Queued{}},
		"pause":  {func(ctx context.Context, q *client.Queue) (int, error) { return 0, q.Pause(ctx) }, wire.Queue{Op: "pause"}, wire.Queued{}},
		"resume": {func(ctx context.Context, q *client.Queue) (int, error) { return 0, q.Resume(ctx) }, wire.Queue{Op: "resume"}, wire.Queued{}},
		"drain":  {func(ctx context.Context, q *client.Queue) (int, error) { return 0, q.Drain(ctx) }, wire.Queue{Op: "drain"}, wire.Queued{}},
		"purge": {func(ctx context.Context, q *client.Queue) (int, error) { return q.Purge(ctx, "") },
			wire.Queue{Op: "purge"}, wire.Queued{Count: 7}},
		"purge dead": {func(ctx context.Context, q *client.Queue) (int, error) { return q.Purge(ctx, "dead") },
			wire.Queue{Op: "purge", State: "dead"}, wire.Queued{Count: 8}},
		"requeue": {func(ctx context.Context, q *client.Queue) (int, error) { return q.Requeue(ctx, 5) },
			wire.Queue{Op: "requeue", Limit: 5}, wire.Queued{Count: 5}},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := scripted(t, nil)
			for _, code := range []wire.Code{0, wire.CodeNotFound} {
				n := 0
				err := called(func() {
					q := s.request(test.want.Op)
					test.want.Token, test.want.Queue = q.Token, "jobs"
					if !reflect.DeepEqual(q, test.want) {
						t.Errorf("got %+v, want %+v", q, test.want)
					}
					if code != 0 {
						s.fail(q, code, "no queue jobs")
						return
					}
					s.answer(q, test.answer)
				}, func() (err error) {
					n, err = test.call(testContext(t), c.Queue("jobs"))
					return err
				})
				switch {
				case code != 0:
					wantError(t, err, client.ErrNotFound)
				case err != nil || int64(n) != test.answer.Count:
					t.Errorf("got %d, %v", n, err)
				}
			}
		})
	}
}

// A list may come in parts.
func TestQueues(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		var names []string
		err := called(func() {
			q := s.request(wire.OpList)
			s.answer(q, wire.Queued{Queues: []wire.QueueInfo{{Name: "a"}, {Name: "b"}}, More: true})
			s.answer(q, wire.Queued{More: true})
			s.answer(q, wire.Queued{Queues: []wire.QueueInfo{{Name: "c"}}})
		}, func() error {
			queues, err := c.Queues(testContext(t))
			for _, q := range queues {
				names = append(names, q.Name)
			}
			return err
		})
		if err != nil || strings.Join(names, "") != "abc" {
			t.Errorf("got %v, %v", names, err)
		}
	})
}

// Mistakes that do not reach the broker.
func TestQueueChecks(t *testing.T) {
	c, _ := scripted(t, nil)
	ctx := testContext(t)
	for _, name := range []string{"", "-", ".hidden", "a/b", "ä", strings.Repeat("x", wire.MaxQueueName+1)} {
		q := c.Queue(name)
		_, err := q.Push(ctx, nil, nil)
		wantError(t, err, client.ErrBadOption)
		wantError(t, q.PushAsync(ctx, nil, nil), client.ErrBadOption)
		wantError(t, q.Pause(ctx), client.ErrBadOption)
		_, err = q.Consume(ctx, nil)
		wantError(t, err, client.ErrBadOption)
		for _, err := range q.Peek(ctx, nil) {
			wantError(t, err, client.ErrBadOption)
		}
	}
	q := c.Queue("jobs")
	for _, o := range []client.QueueOptions{{MaxMessages: -1}, {MaxBytes: -1}, {Lease: -1}, {TTL: -1}, {SyncInterval: -1}} {
		_, err := q.Declare(ctx, &o)
		wantError(t, err, client.ErrBadOption)
	}
	_, err := q.Declare(ctx, &client.QueueOptions{Bind: []string{"a/#/b"}})
	wantError(t, err, client.ErrBadFilter)
	_, err = q.Declare(ctx, &client.QueueOptions{Bind: slices.Repeat([]string{strings.Repeat("x", wire.MaxTopic)}, 64)})
	wantError(t, err, client.ErrTooLarge)
	for _, o := range []client.ConsumeOptions{{Prefetch: -1}, {Prefetch: wire.MaxPrefetch + 1}, {Lease: -1}} {
		_, err := q.Consume(ctx, &o)
		wantError(t, err, client.ErrBadOption)
	}
	for _, o := range []client.PushOptions{
		{ID: strings.Repeat("x", wire.MaxID+1)}, {Key: strings.Repeat("x", wire.MaxKey+1)}, {Priority: -1}, {Priority: 10},
		{Delay: -1}, {TTL: -1}, {Delay: 1, At: time.Now()},
	} {
		wantError(t, q.PushAsync(ctx, nil, &o), client.ErrBadOption)
	}
	large := &client.PushOptions{Headers: map[string]string{"k": strings.Repeat("v", wire.MaxHeaders)}}
	wantError(t, q.PushAsync(ctx, nil, large), client.ErrTooLarge)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	wantError(t, q.Pause(ended), context.Canceled)
	if client.Requests(c) != 0 {
		t.Error("something was asked")
	}
}

// A broker that has no queues is not asked, for it would end the connection.
func TestNoQueues(t *testing.T) {
	c, s := scripted(t, &wire.Welcome{Bus: "old", Features: []string{}})
	_, err := c.Queues(testContext(t))
	wantError(t, err, client.ErrUnsupported)
	_, err = c.Queue("jobs").Consume(testContext(t), &client.ConsumeOptions{Lease: time.Second})
	wantError(t, err, client.ErrUnsupported)
	go s.pong()
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// A caller that gives up is told so; the answer that comes later does no harm.
func TestRequestContext(t *testing.T) {
	c, s := scripted(t, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	drained := make(chan error)
	go func() { drained <- c.Queue("jobs").Drain(ctx) }()
	q := s.request(wire.OpDrain)
	cancel()
	err := <-drained
	wantError(t, err, context.Canceled)
	if !strings.Contains(err.Error(), `drain queue "jobs"`) {
		t.Errorf("got %v", err)
	}
	s.answer(q, wire.Queued{})
	go s.pong()
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
	if n := client.Requests(c); n != 0 {
		t.Errorf("%d requests are left", n)
	}
}

// After a reconnection what changes nothing is asked again; of the rest nobody knows.
func TestRequestReconnect(t *testing.T) {
	eachSocket(t, func(t *testing.T, l *listener, c *client.Client, s *script) {
		ctx := testContext(t)
		asked := func(op string, call func() error) chan error {
			err := make(chan error, 1)
			go func() { err <- call() }()
			s.request(op)
			return err
		}
		jobs := c.Queue("jobs")
		infoed := asked(wire.OpInfo, func() error { _, err := jobs.Info(ctx); return err })
		purged := asked(wire.OpPurge, func() error { _, err := jobs.Purge(ctx, ""); return err })
		declared := asked(wire.OpDeclare, func() error { _, err := jobs.Declare(ctx, nil); return err })
		given, cancel := context.WithCancel(ctx)
		abandoned := asked(wire.OpList, func() error { _, err := c.Queues(given); return err })
		cancel()
		wantError(t, <-abandoned, context.Canceled)
		_ = s.conn.Close()

		for _, done := range []chan error{purged, declared} {
			err := <-done
			wantError(t, err, client.ErrDisconnected)
			if !strings.Contains(err.Error(), "not known") {
				t.Errorf("got %v", err)
			}
		}
		// What is asked while there is no connection cannot have been done.
		paused := make(chan error)
		go func() { paused <- jobs.Pause(ctx) }()
		waitFor(t, "Pause to wait", func() bool { return client.Requests(c) == 2 })
		s = l.accept()
		s.greet(nil)
		for range 2 {
			var q wire.Queue
			s.expect(wire.TypeQueue, &q)
			switch q.Op {
			case wire.OpInfo:
				s.answer(q, wire.Queued{Queues: []wire.QueueInfo{{}}})
			case wire.OpPause:
				s.answer(q, wire.Queued{})
			default:
				t.Errorf("got %+v", q)
			}
		}
		for _, done := range []chan error{infoed, paused} {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// What was asked and not sent yet is forgotten with its caller.
func TestRequestNotSent(t *testing.T) {
	d := client.NewDesk(t)
	d.Lose()
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error)
	go func() { done <- d.Queue("jobs").Delete(ctx) }()
	waitFor(t, "Delete to wait", func() bool { return client.Requests(d.Client) == 1 })
	cancel()
	wantError(t, <-done, context.Canceled)
	d.Connect()
	if frames := d.Take(); len(frames) != 0 {
		t.Errorf("got %q", frames)
	}
}

// A broker that came back without queues.
func TestReconnectNoQueues(t *testing.T) {
	checkGoroutines(t)
	l := listen(t, "unix")
	c, s := l.dial(client.Options{ReconnectMin: time.Millisecond}, nil)
	go s.openConsumer()
	consumer, err := c.Queue("jobs").Consume(testContext(t), &client.ConsumeOptions{Lease: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	listed := make(chan error)
	go func() { _, err := c.Queues(testContext(t)); listed <- err }()
	s.request(wire.OpList)
	_ = s.conn.Close()
	s = l.accept()
	s.greet(&wire.Welcome{Bus: "old", Features: []string{}})
	wantError(t, <-listed, client.ErrUnsupported)
	_, err = consumer.Next(testContext(t))
	wantError(t, err, client.ErrUnsupported)
}

func TestQueueClosed(t *testing.T) {
	c, s := scripted(t, nil)
	asked := make(chan error)
	go func() { asked <- c.Queue("jobs").Resume(testContext(t)) }()
	s.request(wire.OpResume)
	go func() { _ = c.Close() }()
	wantError(t, <-asked, client.ErrClosed)
	wantError(t, c.Queue("jobs").Resume(testContext(t)), client.ErrClosed)
	_, err := c.Queue("jobs").Push(testContext(t), nil, nil)
	wantError(t, err, client.ErrClosed)
	_, err = c.Queue("jobs").Consume(testContext(t), &client.ConsumeOptions{Lease: time.Second})
	wantError(t, err, client.ErrClosed)
}
