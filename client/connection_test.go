package client_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

func TestServer(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus, connect := start(t, network, &broker.Options{Version: "1.2.3"})
		s := connect(nil).Server()
		if s.Version != "1.2.3" || s.Address != bus.Address(network) || s.Bus == "" || s.MaxMessage != wire.DefaultMaxMessage {
			t.Errorf("got %+v", s)
		}
	})
}

func TestClose(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus, connect := start(t, network, nil)
		c := connect(nil)
		s := subscribe(t, c, "a", nil)
		publish(t, c, "a", "one")
		flush(t, c)
		if c.Err() != nil {
			t.Error(c.Err())
		}
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		<-c.Done()
		wantError(t, c.Err(), client.ErrClosed)
		ctx := testContext(t)
		_, err := s.Next(ctx)
		wantError(t, err, client.ErrClosed)
		_, err = c.PublishWait(ctx, "a", nil, nil)
		wantError(t, err, client.ErrClosed)
		_, err = c.Subscribe(ctx, "a", nil)
		wantError(t, err, client.ErrClosed)
		_, err = c.AwaitSubscribers(ctx, "a", 1)
		wantError(t, err, client.ErrClosed)
		wantError(t, c.Ping(ctx), client.ErrClosed)
		wantError(t, s.Drain(ctx), client.ErrClosed)
		bus.Eventually(t, "the broker lets go", func(s broker.Stats) bool {
			return s.Connections == 0 && s.Subscriptions == 0
		})
	})
}

// What was published is written before the connection ends, and Close tells that
// nobody answered.
func TestCloseUnacknowledged(t *testing.T) {
	c, s := scripted(t, nil)
	publish(t, c, "a", numbered(3)...)
	closed := make(chan error)
	go func() { closed <- c.Close() }()
	for range 3 {
		s.publish()
	}
	s.expect(wire.TypeGoodbye, nil)
	s.closed()
	wantError(t, <-closed, client.ErrUnacknowledged)
}

// A broker that reads nothing does not hold Close up.
func TestCloseStuck(t *testing.T) {
	c, _ := scripted(t, nil)
	publish(t, c, "a", strings.Repeat("x", 1000<<10))
	waiting := make(chan error)
	go func() {
		_, err := c.PublishWait(testContext(t), "a", nil, nil)
		waiting <- err
	}()
	waitFor(t, "PublishWait", func() bool { return client.Verdicts(c)+client.Turns(c) == 1 })
	wantError(t, c.Close(), client.ErrUnacknowledged)
	wantError(t, <-waiting, client.ErrClosed)
}

func TestCloseWakes(t *testing.T) {
	c, s := scripted(t, &wire.Welcome{Window: 1024})
	ctx := testContext(t)
	var all sync.WaitGroup
	publish(t, c, "a", strings.Repeat("x", 1000))
	s.publish()
	wait := func(call func() error) {
		all.Go(func() { wantError(t, call(), client.ErrClosed) })
	}
	wait(func() error { return c.Publish(ctx, "a", make([]byte, 500), nil) })
	wait(func() error { return c.Flush(ctx) })
	wait(func() error { return c.Ping(ctx) })
	wait(func() error { _, err := c.AwaitSubscribers(ctx, "a", 1); return err })
	wait(func() error { _, err := c.Subscribe(ctx, "a", nil); return err })
	for got := make(map[wire.Type]bool); len(got) < 3; { // PING for two of them
		frame, _ := s.next()
		got[frame] = true
	}
	waitFor(t, "Publish and Flush", func() bool { return client.Turns(c) == 1 && client.Verdicts(c) == 1 })
	wantError(t, c.Close(), client.ErrUnacknowledged)
	all.Wait()
}

func TestInProcess(t *testing.T) {
	checkGoroutines(t)
	b, err := broker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := b.Connect()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.NewClient(testContext(t), conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := subscribe(t, c, "a", nil)
	publish(t, c, "a", numbered(100)...)
	want(t, s, numbered(100)...)
	flush(t, c)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	wantError(t, c.Err(), client.ErrDisconnected)
	_, err = s.Next(testContext(t))
	wantError(t, err, client.ErrDisconnected)
	wantError(t, s.Drain(testContext(t)), client.ErrDisconnected)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if conn, err := b.Connect(); err == nil {
		t.Error("a closed broker gave out a connection")
		_ = conn.Close()
	}
}

// Frames that a broker must not send end the client, and the broker is told why.
func TestBrokenProtocol(t *testing.T) {
	for name, test := range map[string]struct {
		frame []byte
		code  wire.Code
	}{
		"unknown type":      {[]byte{2, 0, 0, 0, 0x91, 99}, wire.CodeUnknownFrame},
		"a client's frame":  {wire.AppendPing(nil, 1), wire.CodeUnknownFrame},
		"length 0":          {[]byte{0, 0, 0, 0}, wire.CodeMalformed},
		"length 4 GiB":      {[]byte{0xff, 0xff, 0xff, 0xff}, wire.CodeTooLarge},
		"not msgpack":       {[]byte{2, 0, 0, 0, 0xc1, 0xc1}, wire.CodeMalformed},
		"message, no sub":   {wire.AppendMessage(nil, &wire.Message{Seq: 1, Topic: []byte("a")}), wire.CodeMalformed},
		"target, no sub":    {wire.AppendTarget(nil, 1), wire.CodeMalformed},
		"gap, no sub":       {wire.AppendGap(nil, wire.Gap{Sub: 1, Count: 1}), wire.CodeMalformed},
		"ack of nothing":    {wire.AppendAck(nil, wire.Ack{UpTo: 1}), wire.CodeMalformed},
		"refusal too early": {wire.AppendCold(nil, wire.TypeError, &wire.ErrorBody{Publish: 2}), wire.CodeMalformed},
		"unasked sub":       {wire.AppendCold(nil, wire.TypeSubscribed, &wire.Subscribed{Sub: 1}), wire.CodeMalformed},
		"second welcome":    {wire.AppendCold(nil, wire.TypeWelcome, &wire.Welcome{}), wire.CodeUnknownFrame},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := scripted(t, nil)
			s.send(test.frame)
			var body wire.Goodbye
			s.expect(wire.TypeGoodbye, &body)
			if body.Code != test.code || body.Text == "" {
				t.Errorf("got %+v, want %v", body, test.code)
			}
			<-c.Done()
			wantError(t, c.Err(), client.ErrProtocol)
		})
	}
}

// A broker's goodbye that another connection would not mend is the end.
func TestGoodbyeForGood(t *testing.T) {
	for code, want := range map[wire.Code]error{
		wire.CodeMalformed:  client.ErrProtocol,
		wire.CodeTooLarge:   client.ErrTooLarge,
		wire.CodeVersion:    client.ErrVersion,
		wire.CodeNotAllowed: client.ErrNotAllowed,
	} {
		t.Run(code.String(), func(t *testing.T) {
			l := listen(t, "unix")
			c, s := l.dial(client.Options{}, nil)
			s.cold(wire.TypeGoodbye, &wire.Goodbye{Code: code, Text: "because"})
			<-c.Done()
			wantError(t, c.Err(), want)
			if !strings.Contains(c.Err().Error(), "because") {
				t.Errorf("the broker's reason is not in %q", c.Err())
			}
		})
	}
}

// Verdicts and messages that a broker sent before it closed are not lost with a write
// that failed.
func TestReadBehindFailedWrite(t *testing.T) {
	for _, network := range []string{"unixpacket", "unix"} {
		t.Run(network, func(t *testing.T) {
			checkGoroutines(t)
			l := listen(t, network)
			c, s := l.dial(client.Options{NoReconnect: true}, nil)
			go s.open(0)
			sub := subscribe(t, c, "a", nil)
			publish(t, c, "a", "one")
			s.publish()
			s.ack(1, 1)
			s.message(1, 1, "a", "one")
			_ = s.conn.Close()
			_ = c.Publish(testContext(t), "a", []byte("two"), nil)
			want(t, sub, "one")
			<-c.Done()
			wantError(t, c.Err(), client.ErrDisconnected)
			if err := c.Close(); err != nil && !strings.Contains(err.Error(), "1 of 2") {
				t.Errorf("want the second to have no answer at most, got %v", err)
			}
		})
	}
}

// Two clients that publish to each other, with policy block and more than fits
// anywhere, do not hold each other up.
func TestMutualBlock(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, &broker.Options{Window: 64 << 10})
		block := &client.SubscribeOptions{Policy: client.Block, BufferMessages: 20, BufferBytes: 20_000, Credit: 1000}
		clients := []*client.Client{connect(nil), connect(nil)}
		var subs []*client.Subscription
		for i, c := range clients {
			subs = append(subs, subscribe(t, c, fmt.Sprint("to/", i), block))
		}
		bodies := numbered(5000)
		var all sync.WaitGroup
		for i, c := range clients {
			all.Go(func() { publish(t, c, fmt.Sprint("to/", 1-i), bodies...) })
			all.Go(func() { want(t, subs[i], bodies...) })
		}
		all.Wait()
		for _, c := range clients {
			flush(t, c)
		}
	})
}

// A program with one thread may publish to itself what fits the buffers, and then read.
func TestSingleThread(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c := connect(nil)
		s := subscribe(t, c, "self", &client.SubscribeOptions{Policy: client.Block, Credit: 10_000})
		for range 3 {
			publish(t, c, "self", numbered(20_000)...)
			want(t, s, numbered(20_000)...)
		}
		if err := c.Drain(testContext(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestErrorTexts(t *testing.T) {
	err := error(&client.RefusedError{Count: 2, Topic: "a", First: client.ErrNotAllowed})
	for _, test := range []struct{ got, want string }{
		{err.Error(), `client: 2 messages were refused, the first, to "a": client: not allowed`},
		{(&client.Gap{First: 3, Last: 9, Count: 4, Reason: client.ReasonLatest}).Error(), "client: 4 messages missing, seq 3 to 9: latest"},
		{(&client.Gap{First: 3, Last: 9, Reason: client.ReasonReconnect}).Error(), "client: messages may be missing, seq 3 to 9: the connection was lost"},
		{(&client.Gap{Reason: client.ReasonReconnect}).Error(), "client: messages may be missing: the connection was lost"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	if !errors.Is(err, client.ErrNotAllowed) {
		t.Error("the reason is not inside")
	}
}
