package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

func TestPublishSubscribe(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		s := subscribe(t, connect(nil), "build/#", nil)
		publisher := connect(nil)
		before := time.Now()
		headers := map[string]string{"host": "alpha", "": "empty"}
		if err := publisher.Publish(testContext(t), "build/linux", []byte("ok"), &client.PublishOptions{Headers: headers}); err != nil {
			t.Fatal(err)
		}
		publish(t, publisher, "build/linux/amd64", numbered(1000)...)

		m, err := s.Next(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		self := client.Peer{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: uint32(os.Getpid())}
		switch {
		case m.Topic != "build/linux", string(m.Body) != "ok", m.Redelivered:
			t.Errorf("got %+v", m)
		case m.From != self:
			t.Errorf("from %+v, want %+v", m.From, self)
		case m.Time.Before(before.Add(-time.Second)) || m.Time.After(time.Now().Add(time.Second)):
			t.Errorf("accepted at %v, published at %v", m.Time, before)
		case !maps.Equal(m.Headers(), headers):
			t.Errorf("headers %v, want %v", m.Headers(), headers)
		}
		last := m.Seq
		for _, body := range numbered(1000) {
			m, err := s.Next(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			if string(m.Body) != body || m.Seq <= last || m.Headers() != nil {
				t.Fatalf("want %q above %d, got %+v", body, last, m)
			}
			last = m.Seq
		}
	})
}

func TestSizes(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		const limit = 5 << 20
		_, connect := start(t, network, &broker.Options{MaxMessage: limit})
		c := connect(nil)
		s := subscribe(t, c, "size", nil)
		if got := c.Server().MaxMessage; got != limit {
			t.Errorf("the broker's limit is %d, want %d", got, limit)
		}
		for _, size := range []int{0, 1, 255, 256, wire.DefaultMaxPacket, 256 << 10, limit} {
			body := bytes.Repeat([]byte{byte(size), 'x'}, size)[:size]
			if err := c.Publish(testContext(t), "size", body, nil); err != nil {
				t.Fatal(err)
			}
			m, err := s.Next(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.Body, body) {
				t.Errorf("%d bytes arrived as %d", size, len(m.Body))
			}
		}
		err := c.Publish(testContext(t), "size", make([]byte, limit+1), nil)
		wantError(t, err, client.ErrTooLarge)
		if !strings.Contains(err.Error(), fmt.Sprint(limit)) {
			t.Errorf("the error does not name the limit: %v", err)
		}
		flush(t, c)
	})
}

func TestReceipt(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c := connect(nil)
		subscribe(t, c, "two", nil)
		subscribe(t, connect(nil), "+", nil)
		for topic, n := range map[string]int{"two": 2, "one": 1, "none/at/all": 0} {
			r, err := c.PublishWait(testContext(t), topic, nil, nil)
			if err != nil || r.Subscribers != n {
				t.Errorf("%s: got %+v, %v, want %d subscribers", topic, r, err, n)
			}
		}
	})
}

func TestRefused(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c := connect(nil)
		require := &client.PublishOptions{RequireSubscriber: true}

		_, err := c.PublishWait(testContext(t), "nobody", nil, require)
		wantError(t, err, client.ErrNoSubscriber)
		var coded *wire.Error
		if !errors.As(err, &coded) || coded.Code != wire.CodeNoSubscriber {
			t.Errorf("no *wire.Error in %v", err)
		}
		_, err = c.PublishWait(testContext(t), "@sys/mine", nil, nil)
		wantError(t, err, client.ErrNotAllowed)
		flush(t, c) // these were told

		for range 3 {
			if err := c.Publish(testContext(t), "nobody/here", nil, require); err != nil {
				t.Fatal(err)
			}
			publish(t, c, "fine", "")
		}
		err = c.Flush(testContext(t))
		wantError(t, err, client.ErrNoSubscriber)
		var refused *client.RefusedError
		if !errors.As(err, &refused) || refused.Count != 3 || refused.Topic != "nobody/here" {
			t.Errorf("want 3 refusals, got %#v", err)
		}
		flush(t, c)

		if err := c.Publish(testContext(t), "nobody", nil, require); err != nil {
			t.Fatal(err)
		}
		if err := c.Ping(testContext(t)); err != nil {
			t.Fatal(err)
		}
		wantError(t, c.Close(), client.ErrNoSubscriber)
	})
}

// A receipt that nobody waits for any more is as good as a plain Publish.
func TestRefusedAfterTheWait(t *testing.T) {
	c, s := scripted(t, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	waited := make(chan error)
	go func() {
		_, err := c.PublishWait(ctx, "late", nil, nil)
		waited <- err
	}()
	s.publish()
	cancel()
	wantError(t, <-waited, context.Canceled)
	s.expect(wire.TypePing, nil)
	s.cold(wire.TypeError, &wire.ErrorBody{Code: wire.CodeNotAllowed, Text: "too late", Publish: 1})
	wantError(t, c.Flush(testContext(t)), client.ErrNotAllowed)
}

func TestPublishChecks(t *testing.T) {
	c, _ := scripted(t, nil)
	ctx := testContext(t)
	for _, topic := range []string{"", "a//b", "/a", "a/+", "a/#", "a\nb", strings.Repeat("x", wire.MaxTopic+1)} {
		wantError(t, c.Publish(ctx, topic, nil, nil), client.ErrBadTopic)
	}
	large := &client.PublishOptions{Headers: map[string]string{"k": strings.Repeat("v", wire.MaxHeaders)}}
	wantError(t, c.Publish(ctx, "a", nil, large), client.ErrTooLarge)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	wantError(t, c.Publish(ended, "a", nil, nil), context.Canceled)
}

func TestWindow(t *testing.T) {
	const window = 8 << 10
	c, s := scripted(t, &wire.Welcome{Window: window})
	ctx, cancel := context.WithCancel(testContext(t))
	stopped := make(chan error)
	body := make([]byte, 1000)
	go func() {
		for {
			if err := c.Publish(ctx, "topic", body, nil); err != nil {
				stopped <- err
				return
			}
		}
	}()
	_, _, size := s.publish()
	fit := window / size
	for range fit - 1 {
		s.publish()
	}
	// Half is answered, and so as much comes again; then the publisher waits.
	s.ack(uint64(fit/2), 0)
	for range fit / 2 {
		s.publish()
	}
	cancel()
	wantError(t, <-stopped, context.Canceled)

	// Commands pass the full window.
	pinged := make(chan error)
	go func() { pinged <- c.Ping(testContext(t)) }()
	s.pong()
	if err := <-pinged; err != nil {
		t.Error(err)
	}
	s.ack(uint64(fit+fit/2), 0)
	flush(t, c)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A message above the window goes alone, and those behind it do not slip past.
func TestWindowTurns(t *testing.T) {
	const window = 4 << 10
	c, s := scripted(t, &wire.Welcome{Window: window})
	publish(t, c, "topic", "small")
	var published sync.WaitGroup
	published.Go(func() { publish(t, c, "topic", strings.Repeat("x", 2*window)) })
	waitFor(t, "the large message to wait", func() bool { return client.Turns(c) == 1 })
	published.Go(func() { publish(t, c, "topic", "behind") })
	waitFor(t, "the other to wait", func() bool { return client.Turns(c) == 2 })

	for i, length := range []int{len("small"), 2 * window, len("behind")} {
		if p, _, _ := s.publish(); len(p.Body) != length {
			t.Errorf("publish %d has %d bytes, want %d", i+1, len(p.Body), length)
		}
		s.ack(uint64(i+1), 0)
	}
	published.Wait()
}

// Many publishers share one window, in small steps; none loses its order.
func TestManyPublishers(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		s := subscribe(t, connect(nil), "many/+", &client.SubscribeOptions{Policy: client.Block, Credit: 4 << 10})
		c := connect(&client.Options{Window: 4 << 10})
		const publishers, messages = 8, 500
		var all sync.WaitGroup
		for p := range publishers {
			all.Go(func() { publish(t, c, fmt.Sprint("many/", p), numbered(messages)...) })
		}
		next := make(map[string]int)
		for range publishers * messages {
			m, err := s.Next(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprint("message ", next[m.Topic]); string(m.Body) != want {
				t.Fatalf("%s: got %q, want %q", m.Topic, m.Body, want)
			}
			next[m.Topic]++
		}
		all.Wait()
		flush(t, c)
	})
}

// Receipts asked for together cost one PING.
func TestPingsCoalesce(t *testing.T) {
	c, s := scripted(t, nil)
	publish(t, c, "fill", strings.Repeat("x", 900<<10)) // more than the socket takes, so that the rest gathers
	const receipts = 50
	var all sync.WaitGroup
	for range receipts {
		all.Go(func() {
			if r, err := c.PublishWait(testContext(t), "topic", nil, nil); err != nil || r.Subscribers != 7 {
				t.Errorf("got %+v, %v", r, err)
			}
		})
	}
	waitFor(t, "all to wait", func() bool { return client.Verdicts(c) == receipts })
	for range 1 + receipts {
		s.publish()
	}
	s.expect(wire.TypePing, nil)
	s.ack(1+receipts, 7)
	all.Wait()
}

func TestPublishAllocates(t *testing.T) {
	if raceEnabled {
		return // it allocates itself
	}
	_, connect := start(t, "unix", nil)
	c := connect(nil)
	ctx, body := testContext(t), make([]byte, 128)
	const batch = 10_000
	allocs := testing.AllocsPerRun(10, func() {
		for range batch {
			if err := c.Publish(ctx, "topic/of/some/length/that/does/not/fit/a/small/buffer", body, nil); err != nil {
				t.Fatal(err)
			}
		}
	})
	if allocs > batch/100 {
		t.Errorf("%d publishes allocate %v times", batch, allocs)
	}
}

func TestAwaitSubscribers(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c := connect(nil)
		short, cancel := context.WithCancel(testContext(t))
		cancel()
		_, err := c.AwaitSubscribers(short, "room/1", 2)
		wantError(t, err, context.Canceled)

		got := make(chan int)
		go func() {
			n, err := c.AwaitSubscribers(testContext(t), "room/1", 2)
			if err != nil {
				t.Error(err)
			}
			got <- n
		}()
		subscribe(t, c, "room/+", nil)
		subscribe(t, connect(nil), "room/#", nil)
		if n := <-got; n != 2 {
			t.Errorf("got %d subscribers, want 2", n)
		}
		// One that was given up is the same question, so that it does not use up the 64.
		for i := range 100 {
			_, err := c.AwaitSubscribers(short, "room/1", 5)
			wantError(t, err, context.Canceled)
			_, err = c.AwaitSubscribers(testContext(t), "room/2", 1+i%2)
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}
