package client_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// An orderly restart under load: nothing is lost, nothing comes twice unmarked, and
// nobody is told of a gap.
func TestRestart(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		checkGoroutines(t)
		dir := filepath.Join(t.TempDir(), "bus")
		bus := brokertest.StartAt(t, dir, nil)
		options := &client.Options{Address: bus.Address(network), ReconnectMin: time.Millisecond}
		s := subscribe(t, dial(t, options), "count", &client.SubscribeOptions{Policy: client.Block})
		publisher := dial(t, options)
		const messages = 20_000
		bodies := numbered(messages)
		var all sync.WaitGroup
		all.Go(func() {
			publish(t, publisher, "count", bodies...)
			flush(t, publisher)
		})
		ctx := testContext(t)
		for next := 0; next < messages; {
			m, err := s.Next(ctx)
			if err != nil {
				t.Fatalf("message %d: %v", next, err)
			}
			switch {
			case string(m.Body) == bodies[next]:
				next++
			case !m.Redelivered || !contains(bodies[:next], string(m.Body)):
				t.Fatalf("want %q, got %q, redelivered %v", bodies[next], m.Body, m.Redelivered)
			}
			if next == messages/10 {
				all.Go(func() {
					_ = bus.Shutdown(ctx)
					_ = bus.Wait()
					brokertest.StartAt(t, dir, nil)
				})
			}
		}
		all.Wait()
	})
}

func contains(bodies []string, body string) bool {
	for i := len(bodies) - 1; i >= 0; i-- {
		if bodies[i] == body {
			return true
		}
	}
	return false
}

// A broker that is gone without a word: everybody is told that something may be missing.
func TestCrash(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		checkGoroutines(t)
		dir := filepath.Join(t.TempDir(), "bus")
		bus := brokertest.StartAt(t, dir, nil)
		c := dial(t, &client.Options{Address: bus.Address(network), ReconnectMin: time.Millisecond})
		first, second := subscribe(t, c, "a", nil), subscribe(t, c, "b", nil)
		publish(t, c, "a", "before")
		flush(t, c)
		old := c.Server()
		_ = bus.Close()
		_ = bus.Wait()
		publish(t, c, "b", "meanwhile")
		brokertest.StartAt(t, dir, nil)
		flush(t, c)
		publish(t, c, "a", "after")

		want(t, first, "before")
		for _, s := range []*client.Subscription{first, second} {
			if gap := wantGap(t, s); *gap != (client.Gap{Reason: client.ReasonReconnect}) {
				t.Errorf("got %+v", gap)
			}
		}
		want(t, first, "after")
		want(t, second, "meanwhile")
		if now := c.Server(); now.Bus == old.Bus || now.Address != old.Address {
			t.Errorf("server %+v after %+v", now, old)
		}
	})
}

// The second connection of a client: what it says, and in which order.
func TestResend(t *testing.T) {
	for _, network := range []string{"unixpacket", "unix"} {
		t.Run(network, func(t *testing.T) { resend(t, network) })
	}
}

func resend(t *testing.T, network string) {
	checkGoroutines(t)
	l := listen(t, network)
	c, s := l.dial(client.Options{ReconnectMin: time.Millisecond}, &wire.Welcome{Bus: "one", Window: 1 << 20})
	opened := make(chan wire.Subscribe)
	go func() { opened <- s.open(0) }()
	sub := subscribe(t, c, "topic", nil)
	first := <-opened

	receipts := make(chan client.Receipt)
	publish(t, c, "topic", "0", "1")
	s.publish()
	s.publish()
	s.ack(1, 1)
	go func() {
		r, err := c.PublishWait(testContext(t), "topic", []byte("2"), &client.PublishOptions{RequireSubscriber: true})
		if err != nil {
			t.Error(err)
		}
		receipts <- r
	}()
	s.publish()
	s.expect(wire.TypePing, nil)
	s.message(first.Sub, 7, "topic", "seen")
	want(t, sub, "seen")
	_ = s.conn.Close()

	s = l.accept()
	hello := s.greet(&wire.Welcome{Bus: "one", Window: 1 << 20})
	if hello.Restore != 1 || len(hello.Session) != 16 {
		t.Errorf("got %+v", hello)
	}
	again := s.open(9)
	if again.Sub != first.Sub || again.Filters[0] != "topic" || again.Credit == first.Credit && first.Credit == 0 {
		t.Errorf("got %+v after %+v", again, first)
	}
	for i := 1; i <= 2; i++ {
		p, options, _ := s.publish()
		if string(p.Body) != fmt.Sprint(i) || !options.Redelivered || options.RequireSub != (i == 2) {
			t.Errorf("want %d, redelivered, got %q with %+v", i, p.Body, options)
		}
	}
	s.expect(wire.TypePing, nil)
	s.ack(2, 3)
	if r := <-receipts; r.Subscribers != 3 {
		t.Errorf("got %+v", r)
	}
	publish(t, c, "topic", "new")
	if p, options, _ := s.publish(); string(p.Body) != "new" || options.Redelivered {
		t.Errorf("got %q with %+v", p.Body, options)
	}
	s.ack(3, 0)
	if gap := wantGap(t, sub); *gap != (client.Gap{First: 8, Last: 9, Reason: client.ReasonReconnect}) {
		t.Errorf("got %+v", gap)
	}
	flush(t, c)
}

// A smaller window holds for what is sent again, and new messages wait behind it.
func TestResendWithinWindow(t *testing.T) {
	checkGoroutines(t)
	l := listen(t, "unix")
	c, s := l.dial(client.Options{ReconnectMin: time.Millisecond}, &wire.Welcome{Bus: "one", Window: 1 << 20})
	body := strings.Repeat("x", 1000)
	publish(t, c, "topic", body, body, body, body)
	for range 4 {
		s.publish()
	}
	_ = s.conn.Close()

	s = l.accept()
	s.greet(&wire.Welcome{Bus: "one", Window: 2500})
	s.publish()
	s.publish()
	published := make(chan struct{})
	go func() {
		defer close(published)
		publish(t, c, "topic", "new")
	}()
	waitFor(t, "the new message to wait", func() bool { return client.Turns(c) == 1 })
	s.ack(1, 0)
	s.publish()
	s.ack(2, 0)
	s.publish()
	s.ack(4, 0)
	if p, _, _ := s.publish(); string(p.Body) != "new" {
		t.Errorf("got %q", p.Body)
	}
	<-published
	s.ack(5, 0)
	flush(t, c)
}

// When a gap is due after a reconnection, and which.
func TestReconnectGap(t *testing.T) {
	shutdown := &wire.Goodbye{Code: wire.CodeShutdown, Seq: 20}
	for name, test := range map[string]struct {
		goodbye *wire.Goodbye
		bus     string
		seq     uint64
		want    client.Gap // the zero Gap for none
	}{
		"in order, nothing since":       {shutdown, "one", 20, client.Gap{}},
		"in order, something since":     {shutdown, "one", 25, client.Gap{First: 21, Last: 25}},
		"in order, another bus":         {shutdown, "two", 0, client.Gap{}},
		"lost, nothing since":           {nil, "one", 10, client.Gap{}},
		"lost, something since":         {nil, "one", 20, client.Gap{First: 11, Last: 20}},
		"too slow":                      {&wire.Goodbye{Code: wire.CodeSlow, Seq: 20}, "one", 20, client.Gap{First: 11, Last: 20}},
		"timed out":                     {&wire.Goodbye{Code: wire.CodeTimeout, Seq: 20}, "one", 20, client.Gap{First: 11, Last: 20}},
		"the broker's fault, other bus": {&wire.Goodbye{Code: wire.CodeInternal}, "two", 3, client.Gap{}},
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			l := listen(t, "unix")
			c, s := l.dial(client.Options{ReconnectMin: time.Millisecond}, &wire.Welcome{Bus: "one"})
			go s.open(5)
			sub := subscribe(t, c, "a", nil)
			s.message(1, 10, "a", "before")
			if test.goodbye != nil {
				s.cold(wire.TypeGoodbye, test.goodbye)
			}
			_ = s.conn.Close()

			s = l.accept()
			s.greet(&wire.Welcome{Bus: test.bus})
			s.open(test.seq)
			s.message(1, test.seq+1, "a", "after")
			want(t, sub, "before")
			test.want.Reason = client.ReasonReconnect
			if test.bus != "one" || test.want.Last != 0 {
				if gap := wantGap(t, sub); *gap != test.want {
					t.Errorf("got %+v, want %+v", gap, test.want)
				}
			}
			want(t, sub, "after")
		})
	}
}

// Policy Disconnect: the broker ends the connection of who is too slow, and the client
// comes back and tells.
func TestTooSlow(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c, publisher := connect(&client.Options{ReconnectMin: time.Millisecond}), connect(nil)
		s := subscribe(t, c, "flood", &client.SubscribeOptions{Policy: client.Disconnect, BufferMessages: 10, Credit: 1})
		publish(t, publisher, "flood", numbered(1000)...)
		flush(t, publisher)
		want(t, s, "message 0")
		for ctx := testContext(t); ; {
			_, err := s.Next(ctx)
			if gap, ok := errors.AsType[*client.Gap](err); ok && gap.Reason == client.ReasonReconnect {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if c.Err() != nil {
			t.Error(c.Err())
		}
	})
}

// Reconnections that nobody looks at are one gap, and credit is what is left of it.
func TestReconnectUnread(t *testing.T) {
	checkGoroutines(t)
	l := listen(t, "unix")
	c, s := l.dial(client.Options{ReconnectMin: time.Millisecond}, &wire.Welcome{Bus: "one"})
	go s.open(0)
	sub := subscribe(t, c, "a", &client.SubscribeOptions{Credit: 1000})
	size := uint64(s.message(1, 1, "a", "unread"))
	for i := range uint64(3) {
		_ = s.conn.Close()
		s = l.accept()
		s.greet(&wire.Welcome{Bus: "one"})
		if got := s.open(10 * (i + 1)); got.Credit != 1000-size {
			t.Errorf("credit of %d, want %d", got.Credit, 1000-size)
		}
	}
	s.message(1, 31, "a", strings.Repeat("x", 2000))
	waitFor(t, "the message", func() bool { return sub.Buffered() == 2 })
	_ = s.conn.Close()
	s = l.accept()
	s.greet(&wire.Welcome{Bus: "one"})
	if got := s.open(31); got.Credit != 1 {
		t.Errorf("credit of %d, want 1: 0 would mean no limit", got.Credit)
	}
	want(t, sub, "unread")
	if gap := wantGap(t, sub); *gap != (client.Gap{First: 2, Last: 30, Reason: client.ReasonReconnect}) {
		t.Errorf("got %+v", gap)
	}
	want(t, sub, strings.Repeat("x", 2000))
	var credit wire.Credit
	if err := credit.Decode(s.expect(wire.TypeCredit, nil)); err != nil || credit.Bytes != 999 {
		t.Errorf("got %+v, %v, want what makes it 1000 again", credit, err)
	}
}

// A subscription that the new broker refuses ends with that, the client goes on.
func TestReconnectRefused(t *testing.T) {
	checkGoroutines(t)
	l := listen(t, "unix")
	c, s := l.dial(client.Options{ReconnectMin: time.Millisecond}, nil)
	go s.open(0)
	sub := subscribe(t, c, "a", nil)
	s.message(1, 1, "a", "before")
	_ = s.conn.Close()
	s = l.accept()
	s.greet(nil)
	s.expect(wire.TypeSubscribe, nil)
	s.cold(wire.TypeError, &wire.ErrorBody{Code: wire.CodeNotAllowed, Sub: 1})
	want(t, sub, "before")
	_, err := sub.Next(testContext(t))
	wantError(t, err, client.ErrNotAllowed)
	wantError(t, sub.Drain(testContext(t)), client.ErrNotAllowed)
	go s.pong()
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// Calls that wait for the broker wait for the next one.
func TestReconnectKeepsCalls(t *testing.T) {
	checkGoroutines(t)
	l := listen(t, "unix")
	c, s := l.dial(client.Options{ReconnectMin: time.Millisecond}, nil)
	ctx := testContext(t)
	calls := make(chan error)
	go func() { calls <- c.Ping(ctx) }()
	s.expect(wire.TypePing, nil)
	go func() { _, err := c.AwaitSubscribers(ctx, "a", 1); calls <- err }()
	s.expect(wire.TypeAwait, nil)
	go func() { _, err := c.Subscribe(ctx, "a", nil); calls <- err }()
	s.expect(wire.TypeSubscribe, nil)
	_ = s.conn.Close()

	s = l.accept()
	s.greet(nil)
	s.open(0)
	var await wire.Await
	s.expect(wire.TypeAwait, &await)
	s.cold(wire.TypeAwaited, &wire.Awaited{Token: await.Token, Subscribers: 1})
	s.pong()
	for range 3 {
		if err := <-calls; err != nil {
			t.Error(err)
		}
	}
}

// A drain that the connection does not outlive says so, in the stream and to its caller;
// a broker that stops in order has sent everything.
func TestDrainDisconnected(t *testing.T) {
	for _, code := range []wire.Code{0, wire.CodeShutdown} {
		t.Run(code.String(), func(t *testing.T) {
			checkGoroutines(t)
			l := listen(t, "unix")
			c, s := l.dial(client.Options{ReconnectMin: time.Millisecond}, nil)
			go s.open(0)
			sub := subscribe(t, c, "a", nil)
			drained := make(chan error)
			go func() { drained <- sub.Drain(testContext(t)) }()
			s.expect(wire.TypeCredit, nil)
			s.expect(wire.TypeUnsubscribe, nil)
			s.message(1, 3, "a", "one")
			if code != 0 {
				s.cold(wire.TypeGoodbye, &wire.Goodbye{Code: code, Seq: 3})
			}
			_ = s.conn.Close()
			err := <-drained
			want(t, sub, "one")
			if code == 0 {
				var gap *client.Gap
				if !errors.As(err, &gap) || *gap != *wantGap(t, sub) || gap.First != 4 {
					t.Errorf("got %v", err)
				}
			} else if err != nil {
				t.Error(err)
			}
			_, err = sub.Next(testContext(t))
			wantError(t, err, client.ErrDrained)

			s = l.accept()
			if hello := s.greet(nil); hello.Restore != 0 {
				t.Errorf("got %+v", hello)
			}
		})
	}
}

func TestNoReconnect(t *testing.T) {
	checkGoroutines(t)
	l := listen(t, "unix")
	c, s := l.dial(client.Options{NoReconnect: true}, nil)
	go s.open(0)
	sub := subscribe(t, c, "a", nil)
	publish(t, c, "a", "one")
	s.cold(wire.TypeGoodbye, &wire.Goodbye{Code: wire.CodeShutdown, Text: "for today"})
	<-c.Done()
	wantError(t, c.Err(), client.ErrDisconnected)
	wantError(t, c.Err(), client.ErrShutdown)
	_, err := sub.Next(testContext(t))
	wantError(t, err, client.ErrDisconnected)
	wantError(t, c.Flush(testContext(t)), client.ErrDisconnected)
	wantError(t, c.Publish(testContext(t), "a", nil, nil), client.ErrDisconnected)
	wantError(t, c.Close(), client.ErrUnacknowledged)
}

// The pauses between attempts grow, and the client gives up when it said it would.
// Every attempt fails at once, so that the fake clock stands still but for the pauses.
func TestGiveUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	synctest.Test(t, func(t *testing.T) {
		l := listenAt(t, "unix", path)
		c, s := l.dial(client.Options{ReconnectMin: 10 * time.Millisecond, ReconnectMax: time.Second, ReconnectFor: time.Minute}, nil)
		_ = l.Close()
		_ = s.conn.Close()
		began := time.Now()
		<-c.Done()
		if took := time.Since(began); took != time.Minute {
			t.Errorf("gave up after %v, want 1 min", took)
		}
		wantError(t, c.Err(), client.ErrDisconnected)
		wantError(t, c.Err(), client.ErrNoBroker)
		if !strings.Contains(c.Err().Error(), path) {
			t.Errorf("the address is not in %q", c.Err())
		}
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pause := client.NewBackoff(10*time.Millisecond, time.Second)
		for want := 10 * time.Millisecond; want < 10*time.Second; want *= 2 {
			most := min(want, time.Second)
			began := time.Now()
			if err := pause(context.Background()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took < most/2 || took > most {
				t.Errorf("a pause of %v, want %v to %v", took, most/2, most)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		wantError(t, pause(ctx), context.DeadlineExceeded)
	})
}

func TestCloseWhileReconnecting(t *testing.T) {
	checkGoroutines(t)
	l := listen(t, "unix")
	c, s := l.dial(client.Options{ReconnectMin: time.Hour}, nil)
	_ = s.conn.Close()
	waiting := make(chan error)
	go func() { waiting <- c.Ping(testContext(t)) }()
	waitFor(t, "the loss to be noticed", func() bool { return !client.Connected(c) })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	wantError(t, <-waiting, client.ErrClosed)
}
