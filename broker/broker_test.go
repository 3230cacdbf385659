package broker_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

func TestPublishReachesSubscribers(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus := brokertest.Start(t, nil)
		a, b, p := greet(t, bus, network), greet(t, bus, network), greet(t, bus, "unix")
		a.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"build/#"}})
		b.subscribe(wire.Subscribe{Sub: 9, Filters: []string{"build/+/done", "build/linux/+"}})
		p.publish("build/linux/done", "ok").publish("build", "start").publish("test", "").ping(5).flush()
		p.expectAck(1, 2)
		p.expectAck(2, 1)
		p.expectAck(3, 0)
		p.expectPong(5)

		if sub, err := wire.DecodeTarget(a.expect(wire.TypeTarget)); err != nil || sub != 1 {
			t.Fatalf("TARGET %d, %v", sub, err)
		}
		m := a.expectMessage("build/linux/done", "ok")
		if m.Seq != 1 || m.UID != uint32(os.Getuid()) || m.GID != uint32(os.Getgid()) || m.PID != uint32(os.Getpid()) {
			t.Fatalf("stamped %+v", m)
		}
		if d := time.Since(time.Unix(0, m.Time)); d < 0 || d > time.Minute {
			t.Fatalf("stamped %v ago", d)
		}
		a.expectMessage("build", "start")

		b.expect(wire.TypeTarget) // matched by two filters, sent once
		b.expectMessage("build/linux/done", "ok")
		b.ping(1).flush()
		b.expectPong(1)
	})
}

func TestVerdictsComeInOrder(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus := brokertest.Start(t, &broker.Options{MaxMessage: 1000})
		p := greet(t, bus, network)
		p.publish("a/b", "1").publish("a//b", "2").publish("@sys/x", "3").publish("a/+", "4")
		p.publish("a", strings.Repeat("x", 1001))
		p.out = wire.AppendPublish(p.out, &wire.Publish{Topic: []byte("a"), Options: wire.AppendOptions(nil, &wire.PublishOptions{RequireSub: true})})
		p.publish("a", "7").ping(1).flush()
		p.expectAck(1, 0)
		for i, code := range []wire.Code{wire.CodeBadTopic, wire.CodeNotAllowed, wire.CodeBadTopic, wire.CodeTooLarge, wire.CodeNoSubscriber} {
			if e := p.expectError(code); e.Publish != uint64(i+2) {
				t.Fatalf("%v is the verdict of publish %d, want %d", code, e.Publish, i+2)
			}
		}
		p.expectAck(7, 0)
		p.expectPong(1)
	})
}

func TestVerdictsComeWithoutPing(t *testing.T) {
	bus := brokertest.Start(t, nil)
	p := greet(t, bus, "unixpacket")
	p.publish("a", "x").flush()
	p.expectAck(1, 0)
}

func TestSubscribeRefused(t *testing.T) {
	bus := brokertest.Start(t, &broker.Options{MaxSubscriptions: 2})
	s := greet(t, bus, "unixpacket")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a"}})
	for _, c := range []struct {
		name string
		f    wire.Subscribe
		code wire.Code
	}{
		{"number in use", wire.Subscribe{Sub: 1, Filters: []string{"a"}}, wire.CodeExists},
		{"number 0", wire.Subscribe{Filters: []string{"a"}}, wire.CodeBadOption},
		{"no filter", wire.Subscribe{Sub: 2}, wire.CodeBadFilter},
		{"bad filter", wire.Subscribe{Sub: 2, Filters: []string{"a", "a/#/b"}}, wire.CodeBadFilter},
		{"65 filters", wire.Subscribe{Sub: 2, Filters: make([]string, 65)}, wire.CodeBadFilter},
		{"unknown policy", wire.Subscribe{Sub: 2, Filters: []string{"a"}, Policy: "drop-all"}, wire.CodeBadOption},
		{"negative buffer", wire.Subscribe{Sub: 2, Filters: []string{"a"}, Messages: -1}, wire.CodeBadOption},
	} {
		s.cold(wire.TypeSubscribe, &c.f).flush()
		if e := s.expectError(c.code); e.Sub != c.f.Sub {
			t.Errorf("%s: the error is for %d", c.name, e.Sub)
		}
	}
	s.subscribe(wire.Subscribe{Sub: 2, Filters: []string{"a"}})
	s.cold(wire.TypeSubscribe, &wire.Subscribe{Sub: 3, Filters: []string{"a"}}).flush()
	s.expectError(wire.CodeLimit)
	s.cold(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 3}).flush()
	s.expectError(wire.CodeNotFound)
}

// A subscription without credit takes nothing from another's of the same
// connection, and is told what it lost where it lost it.
func TestCreditAndGaps(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus := brokertest.Start(t, nil)
		s, p := greet(t, bus, network), greet(t, bus, network)
		s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a/#"}, Messages: 3, Credit: 1})
		s.subscribe(wire.Subscribe{Sub: 2, Filters: []string{"a/2", "a/9"}})
		for i := 1; i <= 9; i++ {
			p.publish(fmt.Sprintf("a/%d", i), fmt.Sprint(i))
		}
		p.ping(1).flush()
		for range 3 { // a/2 and a/9 have two takers
			p.expect(wire.TypeAck)
		}
		p.expect(wire.TypeAck)
		p.expectPong(1)
		got := s.collect(1)
		if want := "1"; got[1] != want {
			t.Errorf("with credit for one message, subscription 1 got %q", got[1])
		}
		if want := "2 9"; got[2] != want {
			t.Errorf("subscription 2 got %q, want %q", got[2], want)
		}
		s.credit(1, 1<<20).ping(2).flush()
		if got, want := s.collect(2)[1], "[2-6:5 drop-old] 7 8 9"; got != want {
			t.Errorf("after more credit subscription 1 got %q, want %q", got, want)
		}
		s.cold(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 1}).flush()
		var u wire.Unsubscribed
		s.expectCold(wire.TypeUnsubscribed, &u)
		if want := (wire.Unsubscribed{Sub: 1, Delivered: 4, Dropped: 5}); u != want {
			t.Errorf("got %+v, want %+v", u, want)
		}
	})
}

// collect pings, reads up to the PONG and shows what each subscription got.
func (s *speaker) collect(token uint64) map[uint32]string {
	s.t.Helper()
	s.ping(token + 1000).flush()
	got := map[uint32]string{}
	add := func(sub uint32, what string) {
		if got[sub] != "" {
			what = got[sub] + " " + what
		}
		got[sub] = what
	}
	target := s.target
	defer func() { s.target = target }()
	for {
		switch typ, payload := s.next(); typ {
		case wire.TypeTarget:
			target, _ = wire.DecodeTarget(payload)
		case wire.TypeMessage:
			var m wire.Message
			if err := m.Decode(payload); err != nil {
				s.t.Fatal(err)
			}
			add(target, string(m.Body))
		case wire.TypeGap:
			var g wire.Gap
			if err := g.Decode(payload); err != nil {
				s.t.Fatal(err)
			}
			add(g.Sub, fmt.Sprintf("[%d-%d:%d %v]", g.First, g.Last, g.Count, g.Reason))
		case wire.TypePong:
			if n, _ := wire.DecodePing(payload); n == token+2000 {
				return got
			} else if n == token+1000 {
				s.ping(token + 2000).flush() // what was written with the PONG is in now
			}
		default:
			s.t.Fatalf("got %v", typ)
		}
	}
}

func TestPolicyLatest(t *testing.T) {
	bus := brokertest.Start(t, nil)
	s, p := greet(t, bus, "unix"), greet(t, bus, "unix")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Policy: "latest", Credit: 1})
	for i, topic := range strings.Fields("a a b a a b c") {
		p.publish(topic, fmt.Sprint(topic, i+1))
	}
	p.ping(1).flush()
	p.expectAck(7, 1)
	p.expectPong(1)
	s.credit(1, 1<<20).flush()
	if got, want := s.collect(1)[1], "a1 [2-4:3 latest] a5 b6 c7"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPolicyDropNew(t *testing.T) {
	bus := brokertest.Start(t, nil)
	s, p := greet(t, bus, "unix"), greet(t, bus, "unix")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Policy: "drop-new", Messages: 2, Credit: 1})
	for i := range 6 {
		p.publish("a", fmt.Sprint(i+1))
	}
	p.ping(1).flush()
	p.expectAck(6, 1)
	p.expectPong(1)
	s.credit(1, 1<<20).flush()
	if got, want := s.collect(1)[1], "1 2 3 [4-6:3 drop-new]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPolicyDisconnect(t *testing.T) {
	bus := brokertest.Start(t, nil)
	s, p := greet(t, bus, "unixpacket"), greet(t, bus, "unix")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Policy: "disconnect", Messages: 2, Credit: 1})
	for range 4 {
		p.publish("a", "x")
	}
	p.ping(1).flush()
	p.expectAck(4, 1)
	p.expectPong(1)
	s.expectGoodbye(wire.CodeSlow)
	bus.Eventually(t, "the slow subscription is gone", func(s broker.Stats) bool { return s.Subscriptions == 0 })
}

// With policy block the verdicts wait, while pings are answered; room in the
// buffer lets them out, and nothing is lost.
func TestPolicyBlock(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus := brokertest.Start(t, nil)
		s, p := greet(t, bus, network), greet(t, bus, network)
		s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Policy: "block", Messages: 2, Credit: 1})
		for i := range 4 { // 1 is sent, 2 and 3 fill the buffer
			p.publish("a", fmt.Sprint(i+1)).ping(1).flush()
			if i == 3 {
				break
			}
			p.expectAck(uint64(i+1), 1)
			p.expectPong(1)
		}
		p.expectPong(1)
		p.publish("a", "5").ping(2).flush()
		p.expectPong(2)
		s.credit(1, 1<<20).flush()
		p.expectAck(5, 1)
		if got, want := s.collect(1)[1], "1 2 3 4 5"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// A publisher that ignores its window is not read until there is room again.
func TestWindowIgnored(t *testing.T) {
	bus := brokertest.Start(t, &broker.Options{Window: 64 << 10})
	s, p := greet(t, bus, "unix"), greet(t, bus, "unix")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Policy: "block", Messages: 1, Credit: 1})
	const n = 20000
	go func() {
		for i := range n {
			p.publish("a", fmt.Sprintf("%0100d", i))
		}
		p.out = wire.AppendPing(p.out, 1)
		_ = wire.WriteFrames(p.conn, p.out, wire.DefaultMaxPacket)
	}()
	bus.Eventually(t, "publishes arrive", func(s broker.Stats) bool { return s.Published > 64<<10/120 })
	if got := bus.Stats().Published; got == n {
		t.Errorf("all %d publishes were taken, far beyond the window", got)
	}
	s.credit(1, 1<<40).flush()
	s.expect(wire.TypeTarget)
	for i := range n {
		s.expectMessage("a", fmt.Sprintf("%0100d", i))
	}
	for {
		if typ, _ := p.next(); typ == wire.TypePong {
			break
		}
	}
}

func TestNoLocal(t *testing.T) {
	bus := brokertest.Start(t, nil)
	s := greet(t, bus, "unix")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, NoLocal: true})
	s.publish("a", "x").flush()
	s.expectAck(1, 0)
}

func TestUnsubscribeWithDrain(t *testing.T) {
	bus := brokertest.Start(t, nil)
	s, p := greet(t, bus, "unixpacket"), greet(t, bus, "unix")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Credit: 1})
	p.publish("a", "1").publish("a", "2").publish("a", "3").ping(1).flush()
	p.expectAck(3, 1)
	p.expectPong(1)
	s.cold(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 1, Drain: true}).credit(1, 1<<20).flush()
	s.expect(wire.TypeTarget)
	for _, body := range []string{"1", "2", "3"} {
		s.expectMessage("a", body)
	}
	var u wire.Unsubscribed
	s.expectCold(wire.TypeUnsubscribed, &u)
	if u.Delivered != 3 || u.Dropped+u.Discarded != 0 {
		t.Errorf("got %+v", u)
	}
	p.publish("a", "4").flush()
	p.expectAck(4, 0)
}

func TestAwait(t *testing.T) {
	bus := brokertest.Start(t, nil)
	a, s := greet(t, bus, "unix"), greet(t, bus, "unix")
	a.cold(wire.TypeAwait, &wire.Await{Token: 3, Topic: "a/b", Subscribers: 2}).ping(1).flush()
	a.expectPong(1)
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a/#"}})
	a.ping(2).flush()
	a.expectPong(2)
	s.subscribe(wire.Subscribe{Sub: 2, Filters: []string{"a/b"}})
	var got wire.Awaited
	a.expectCold(wire.TypeAwaited, &got)
	if got != (wire.Awaited{Token: 3, Subscribers: 2}) {
		t.Errorf("got %+v", got)
	}
	for i := range 64 {
		a.cold(wire.TypeAwait, &wire.Await{Token: uint64(i), Topic: "x", Subscribers: 1})
	}
	a.cold(wire.TypeAwait, &wire.Await{Token: 99, Topic: "x", Subscribers: 1}).flush()
	if e := a.expectError(wire.CodeLimit); e.Token != 99 {
		t.Errorf("got %+v", e)
	}
}

// A message far above the packet size and an empty one, on both types.
func TestSizes(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus := brokertest.Start(t, &broker.Options{MaxMessage: 24 << 20})
		s, p := greet(t, bus, network), greet(t, bus, network)
		s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})
		big := make([]byte, 20<<20)
		for i := range len(big) / 8 {
			binary.LittleEndian.PutUint64(big[8*i:], uint64(i)*0x9e3779b97f4a7c15)
		}
		go func() {
			p.publish("a", "").publish("a", string(big)).publish("a", "end").ping(1)
			_ = wire.WriteFrames(p.conn, p.out, wire.DefaultMaxPacket)
		}()
		s.expect(wire.TypeTarget)
		s.expectMessage("a", "")
		s.expectMessage("a", string(big))
		s.expectMessage("a", "end")
	})
}

func TestShutdownDeliversAndSaysWhy(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus := brokertest.Start(t, nil)
		s, p, late := greet(t, bus, network), greet(t, bus, network), greet(t, bus, network)
		s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Credit: 1})
		p.publish("a", "1").publish("a", "2").publish("a", "3").ping(1).flush()
		p.expectAck(3, 1)
		p.expectPong(1)
		down := make(chan error, 1)
		go func() { down <- bus.Shutdown(context.Background()) }()
		late.expectGoodbye(wire.CodeShutdown)
		s.credit(1, 1<<20).flush()
		s.expect(wire.TypeTarget)
		for _, body := range []string{"1", "2", "3"} {
			s.expectMessage("a", body)
		}
		s.expectGoodbye(wire.CodeShutdown)
		p.expectGoodbye(wire.CodeShutdown)
		if err := <-down; err != nil {
			t.Fatal(err)
		}
	})
}

func TestShutdownTellsWhatItCouldNotDeliver(t *testing.T) {
	bus := brokertest.Start(t, &broker.Options{DrainTimeout: 20 * time.Millisecond})
	s, p := greet(t, bus, "unixpacket"), greet(t, bus, "unix")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Credit: 1})
	p.publish("a", "1").publish("a", "2").publish("a", "3").ping(1).flush()
	p.expectAck(3, 1)
	p.expectPong(1)
	if err := bus.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.expect(wire.TypeTarget)
	s.expectMessage("a", "1")
	var g wire.Gap
	if err := g.Decode(s.expect(wire.TypeGap)); err != nil {
		t.Fatal(err)
	}
	if want := (wire.Gap{Sub: 1, First: 2, Last: 3, Count: 2, Reason: wire.ReasonShutdown}); g != want {
		t.Errorf("got %+v, want %+v", g, want)
	}
	s.expectGoodbye(wire.CodeShutdown)
}

func TestConnectNeedsNoFile(t *testing.T) {
	b, err := broker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	conn, err := b.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := &speaker{t: t, conn: conn, r: wire.NewReader(conn, true)}
	s.cold(wire.TypeHello, &wire.Hello{Version: 1}).flush()
	s.expect(wire.TypeWelcome)
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})
	s.publish("a", "x").flush()
	s.expect(wire.TypeTarget)
	s.expectMessage("a", "x")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Connect(); err != broker.ErrClosed {
		t.Errorf("Connect after Close: %v", err)
	}
}

func TestIdleExit(t *testing.T) {
	bus := brokertest.Start(t, &broker.Options{IdleExit: 20 * time.Millisecond})
	s := greet(t, bus, "unix")
	s.conn.Close()
	if err := bus.Wait(); err != broker.ErrIdle {
		t.Errorf("the broker ended with %v", err)
	}
}

func TestPeers(t *testing.T) {
	bus := brokertest.Start(t, nil)
	s := greet(t, bus, "unixpacket")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	want := broker.Peer{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: uint32(os.Getpid()),
		Client: t.Name(), Subscriptions: 1}
	for _, g := range groups {
		want.Groups = append(want.Groups, uint32(g))
	}
	if got := bus.Peers(); len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
