package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// A subscription that is never read holds up neither the others nor receipts.
func TestUnreadSubscription(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c := connect(nil)
		unread := subscribe(t, c, "#", &client.SubscribeOptions{Credit: 16 << 10})
		s := subscribe(t, c, "flood", &client.SubscribeOptions{Policy: client.Block})
		body := strings.Repeat("x", 1000)
		const messages = 2000
		go func() {
			for range messages {
				_ = c.Publish(t.Context(), "flood", []byte(body), nil)
			}
		}()
		for range messages {
			want(t, s, body)
		}
		if _, err := c.PublishWait(testContext(t), "other", nil, nil); err != nil {
			t.Fatal(err)
		}
		if n := unread.Buffered(); n == 0 || n > 17 {
			t.Errorf("%d messages wait unread, want what 16 KiB of credit lets through", n)
		}
		for range messages {
			want(t, unread, body)
		}
	})
}

// Credit comes back when half of it was consumed, and counts whole frames.
func TestCredit(t *testing.T) {
	c, s := scripted(t, nil)
	opened := make(chan wire.Subscribe)
	go func() { opened <- s.open(0) }()
	sub := subscribe(t, c, "topic", &client.SubscribeOptions{Credit: 1000})
	number := (<-opened).Sub
	size := 0
	for seq := range uint64(10) {
		size = s.message(number, seq+1, "topic", strings.Repeat("x", 150))
	}
	half := (500 + size - 1) / size
	for range half {
		want(t, sub, strings.Repeat("x", 150))
	}
	var credit wire.Credit
	if err := credit.Decode(s.expect(wire.TypeCredit, nil)); err != nil {
		t.Fatal(err)
	}
	if credit != (wire.Credit{Sub: number, Bytes: uint64(half * size)}) {
		t.Errorf("got %+v, want %d bytes for %d", credit, half*size, number)
	}
}

// What a slow subscription received and what its gaps tell make up everything.
func TestGaps(t *testing.T) {
	for policy, reason := range map[client.Policy]client.Reason{
		client.DropOld: client.ReasonDropOld,
		client.DropNew: client.ReasonDropNew,
		client.Latest:  client.ReasonLatest,
	} {
		t.Run(policy.String(), func(t *testing.T) {
			_, connect := start(t, "unixpacket", nil)
			c := connect(nil)
			s := subscribe(t, c, "flood", &client.SubscribeOptions{Policy: policy, BufferMessages: 10, Credit: 1})
			const messages = 1000
			publish(t, c, "flood", numbered(messages)...)
			flush(t, c)
			publish(t, c, "flood", "last")
			if err := c.Drain(testContext(t)); err != nil {
				t.Fatal(err)
			}
			var got, missing, last uint64
			for m, err := range s.Messages(testContext(t)) {
				var gap *client.Gap
				switch {
				case errors.As(err, &gap):
					if gap.Reason != reason || gap.First > gap.Last || gap.Count == 0 || gap.Count > gap.Last-gap.First+1 {
						t.Errorf("got %+v", gap)
					}
					missing += gap.Count
				case err != nil:
					t.Fatal(err)
				case m.Seq <= last:
					t.Errorf("seq %d after %d", m.Seq, last)
				default:
					got++
					last = m.Seq
				}
			}
			if got+missing != messages+1 || missing == 0 {
				t.Errorf("%d received and %d told as missing, of %d", got, missing, messages+1)
			}
		})
	}
}

func TestGapInPlace(t *testing.T) {
	c, s := scripted(t, nil)
	opened := make(chan wire.Subscribe)
	go func() { opened <- s.open(0) }()
	sub := subscribe(t, c, "topic", nil)
	number := (<-opened).Sub
	s.message(number, 1, "topic", "one")
	s.send(wire.AppendGap(nil, wire.Gap{Sub: number, First: 2, Last: 4, Count: 3, Reason: wire.ReasonDropOld}))
	s.message(number, 5, "topic", "five")
	want(t, sub, "one")
	if gap := wantGap(t, sub); *gap != (client.Gap{First: 2, Last: 4, Count: 3, Reason: client.ReasonDropOld}) {
		t.Errorf("got %+v", gap)
	}
	want(t, sub, "five")
}

// Messages for several subscriptions of one connection find theirs.
func TestManySubscriptions(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c := connect(nil)
		var subs []*client.Subscription
		for i := range 5 {
			subs = append(subs, subscribe(t, c, "all", nil), subscribe(t, c, fmt.Sprint("only/", i), nil))
		}
		for _, body := range numbered(300) {
			publish(t, c, "all", body)
			for i := range 5 {
				publish(t, c, fmt.Sprint("only/", i), body)
			}
		}
		for _, s := range subs {
			want(t, s, numbered(300)...)
			if n := s.Buffered(); n != 0 {
				t.Errorf("%d messages too many", n)
			}
		}
	})
}

func TestSubscribeOptions(t *testing.T) {
	_, connect := start(t, "unix", nil)
	c := connect(nil)
	s := subscribe(t, c, "a", &client.SubscribeOptions{Filters: []string{"b/#", "+"}, NoLocal: true, Credit: -1})
	other := connect(nil)
	publish(t, c, "a", "own")
	flush(t, c)
	publish(t, other, "a", "1")
	publish(t, other, "b/c/d", "2")
	publish(t, other, "not/this", "3")
	publish(t, other, "c", "4")
	want(t, s, "1", "2", "4")
}

func TestSubscribeRefused(t *testing.T) {
	_, connect := start(t, "unix", nil)
	c := connect(nil)
	long := strings.Repeat("x", wire.MaxTopic)
	many := make([]string, 64)
	for i := range many {
		many[i] = long
	}
	for name, test := range map[string]struct {
		filter string
		opts   client.SubscribeOptions
		want   error
	}{
		"empty filter":    {"", client.SubscribeOptions{}, client.ErrBadFilter},
		"bad filter":      {"a/#/b", client.SubscribeOptions{}, client.ErrBadFilter},
		"bad extra":       {"a", client.SubscribeOptions{Filters: []string{"b+"}}, client.ErrBadFilter},
		"policy":          {"a", client.SubscribeOptions{Policy: 77}, client.ErrBadOption},
		"buffer":          {"a", client.SubscribeOptions{BufferBytes: -1}, client.ErrBadOption},
		"filters":         {"a", client.SubscribeOptions{Filters: many}, client.ErrBadOption},
		"size of filters": {long, client.SubscribeOptions{Filters: many[:63]}, client.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Subscribe(testContext(t), test.filter, &test.opts)
			wantError(t, err, test.want)
		})
	}
}

// The broker's refusal comes back to the one who asked, and nobody else.
func TestSubscribeRefusedByBroker(t *testing.T) {
	c, s := scripted(t, nil)
	refused := make(chan error)
	go func() {
		_, err := c.Subscribe(testContext(t), "secret", nil)
		refused <- err
	}()
	var body wire.Subscribe
	s.expect(wire.TypeSubscribe, &body)
	s.cold(wire.TypeError, &wire.ErrorBody{Code: wire.CodeNotAllowed, Text: "secrets are not for you", Sub: body.Sub})
	wantError(t, <-refused, client.ErrNotAllowed)
	go s.open(0)
	subscribe(t, c, "open", nil)
}

func TestSubscribeGivenUp(t *testing.T) {
	c, s := scripted(t, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	refused := make(chan error)
	go func() {
		_, err := c.Subscribe(ctx, "topic", nil)
		refused <- err
	}()
	var body wire.Subscribe
	s.expect(wire.TypeSubscribe, &body)
	cancel()
	wantError(t, <-refused, context.Canceled)
	var unsubscribe wire.Unsubscribe
	s.expect(wire.TypeUnsubscribe, &unsubscribe)
	if unsubscribe.Sub != body.Sub || unsubscribe.Drain {
		t.Errorf("got %+v", unsubscribe)
	}
	// What the broker sent before it knew does no harm.
	s.cold(wire.TypeSubscribed, &wire.Subscribed{Sub: body.Sub})
	s.message(body.Sub, 1, "topic", "late")
	s.cold(wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: body.Sub})
	go s.pong()
	if err := c.Ping(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func TestMessagesLeftEarly(t *testing.T) {
	_, connect := start(t, "unix", nil)
	c := connect(nil)
	s := subscribe(t, c, "a", nil)
	publish(t, c, "a", numbered(3)...)
	for range s.Messages(testContext(t)) {
		break
	}
	for m, err := range s.Messages(testContext(t)) {
		if err != nil || string(m.Body) != "message 1" {
			t.Fatal(m, err)
		}
		break
	}
	want(t, s, "message 2")
}

func TestMessagesEnd(t *testing.T) {
	_, connect := start(t, "unix", nil)
	for name, end := range map[string]func(*client.Client, *client.Subscription) error{
		"close":        func(_ *client.Client, s *client.Subscription) error { return s.Close() },
		"close client": func(c *client.Client, _ *client.Subscription) error { return c.Close() },
		"drain":        func(_ *client.Client, s *client.Subscription) error { return s.Drain(testContext(t)) },
		"drain client": func(c *client.Client, _ *client.Subscription) error { return c.Drain(testContext(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(nil)
			s := subscribe(t, c, "nothing", nil)
			ended := make(chan error, 1)
			go func() {
				defer close(ended)
				for _, err := range s.Messages(testContext(t)) {
					ended <- err
				}
			}()
			waitFor(t, "the loop to wait", func() bool { return client.Waiting(s) == 1 })
			if err := end(c, s); err != nil {
				t.Error(err)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNextContext(t *testing.T) {
	_, connect := start(t, "unix", nil)
	c := connect(nil)
	s := subscribe(t, c, "a", nil)
	ctx, cancel := context.WithCancel(testContext(t))
	waited := make(chan error)
	go func() {
		_, err := s.Next(ctx)
		waited <- err
	}()
	waitFor(t, "Next to wait", func() bool { return client.Waiting(s) == 1 })
	cancel()
	wantError(t, <-waited, context.Canceled)
	publish(t, c, "a", "one")
	flush(t, c)
	_, err := s.Next(ctx)
	wantError(t, err, context.Canceled)
	for _, err := range s.Messages(ctx) {
		wantError(t, err, context.Canceled)
	}
	want(t, s, "one")
}

// Several goroutines share a subscription: each message goes to one of them, none
// stays asleep while there are messages, and all see the end.
func TestNextShared(t *testing.T) {
	_, connect := start(t, "unixpacket", nil)
	c := connect(nil)
	s := subscribe(t, c, "work", &client.SubscribeOptions{Policy: client.Block})
	const workers, messages = 4, 5000
	got := make([]int, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for _, err := range s.Messages(testContext(t)) {
				if err != nil {
					t.Error(err)
				}
				got[w]++
			}
		})
	}
	publish(t, c, "work", numbered(messages)...)
	flush(t, c)
	if err := s.Drain(testContext(t)); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	sum := 0
	for _, n := range got {
		sum += n
	}
	if sum != messages {
		t.Errorf("%d workers got %v, together %d of %d", workers, got, sum, messages)
	}
}

// Drain brings more than the credit lets through, without a reader.
func TestDrain(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c := connect(nil)
		s := subscribe(t, c, "a", &client.SubscribeOptions{Credit: 100})
		publish(t, c, "a", numbered(1000)...)
		flush(t, c)
		if err := s.Drain(testContext(t)); err != nil {
			t.Fatal(err)
		}
		publish(t, c, "a", "too late")
		flush(t, c)
		if n := s.Buffered(); n != 1000 {
			t.Errorf("%d are here, want 1000", n)
		}
		want(t, s, numbered(1000)...)
		for range 2 {
			_, err := s.Next(testContext(t))
			wantError(t, err, client.ErrDrained)
		}
		if err := s.Drain(testContext(t)); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		_, err := s.Next(testContext(t))
		wantError(t, err, client.ErrClosed)
	})
}

func TestDrainClient(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c := connect(nil)
		s := subscribe(t, c, "a", &client.SubscribeOptions{Credit: 100})
		publish(t, c, "a", numbered(500)...)
		flush(t, c)
		if err := c.Publish(testContext(t), "nobody", nil, &client.PublishOptions{RequireSubscriber: true}); err != nil {
			t.Fatal(err)
		}
		wantError(t, c.Drain(testContext(t)), client.ErrNoSubscriber)
		want(t, s, numbered(500)...)
		_, err := s.Next(testContext(t))
		wantError(t, err, client.ErrDrained)
		wantError(t, c.Publish(testContext(t), "a", nil, nil), client.ErrClosed)
	})
}

func TestCloseSubscription(t *testing.T) {
	_, connect := start(t, "unix", nil)
	c := connect(nil)
	s := subscribe(t, c, "a", nil)
	publish(t, c, "a", "one")
	flush(t, c)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	_, err := s.Next(testContext(t))
	wantError(t, err, client.ErrClosed)
	wantError(t, s.Drain(testContext(t)), client.ErrClosed)
	if r, err := c.PublishWait(testContext(t), "a", nil, nil); err != nil || r.Subscribers != 0 {
		t.Errorf("got %+v, %v: the broker still has the subscription", r, err)
	}
}

func TestClone(t *testing.T) {
	_, connect := start(t, "unix", nil)
	c := connect(nil)
	s := subscribe(t, c, "a", nil)
	opts := &client.PublishOptions{Headers: map[string]string{"k": "v"}}
	if err := c.Publish(testContext(t), "a", []byte("body"), opts); err != nil {
		t.Fatal(err)
	}
	m, err := s.Next(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	clone := m.Clone()
	clear(m.Body)
	if string(clone.Body) != "body" || clone.Headers()["k"] != "v" || clone.Topic != "a" || clone.Seq != m.Seq {
		t.Errorf("got %+v", clone)
	}
}
