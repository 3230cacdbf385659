package broker_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

// speaker is a client of few words: it sends the frames it is told to.
type speaker struct {
	t    testing.TB
	conn *net.UnixConn
	r    *wire.Reader
	out  []byte

	target  uint32 // subscription of the last TARGET that collect read
	held    []got  // deliveries that came while something else was waited for
	settled uint64 // settles confirmed
}

// dial connects without a word.
func dial(t testing.TB, bus *brokertest.Bus, network string) *speaker {
	t.Helper()
	a, err := wire.ParseAddress(bus.Address(network))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Net: network, Name: a[0].Path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &speaker{t: t, conn: conn, r: wire.NewReader(conn, true)}
}

// greet connects and says HELLO.
func greet(t testing.TB, bus *brokertest.Bus, network string) *speaker {
	t.Helper()
	s := dial(t, bus, network)
	s.cold(wire.TypeHello, &wire.Hello{Version: wire.Version, Client: t.Name()}).flush()
	var w wire.Welcome
	s.expectCold(wire.TypeWelcome, &w)
	s.r.SetLimits(wire.FrameLimit(w.MaxMessage), w.MaxPacket)
	return s
}

func (s *speaker) cold(t wire.Type, body any) *speaker {
	s.out = wire.AppendCold(s.out, t, body)
	return s
}

func (s *speaker) publish(topic, body string) *speaker {
	s.out = wire.AppendPublish(s.out, &wire.Publish{Topic: []byte(topic), Body: []byte(body)})
	return s
}

func (s *speaker) ping(token uint64) *speaker {
	s.out = wire.AppendPing(s.out, token)
	return s
}

func (s *speaker) credit(sub uint32, bytes uint64) *speaker {
	s.out = wire.AppendCredit(s.out, wire.Credit{Sub: sub, Bytes: bytes})
	return s
}

// flush sends what was said.
func (s *speaker) flush() {
	s.t.Helper()
	if err := wire.WriteFrames(s.conn, s.out, wire.DefaultMaxPacket); err != nil {
		s.t.Fatal(err)
	}
	s.out = s.out[:0]
}

// subscribe opens a subscription and waits for it.
func (s *speaker) subscribe(f wire.Subscribe) {
	s.t.Helper()
	s.cold(wire.TypeSubscribe, &f).flush()
	var got wire.Subscribed
	s.expectCold(wire.TypeSubscribed, &got)
	if got.Sub != f.Sub {
		s.t.Fatalf("SUBSCRIBED is for %d, not %d", got.Sub, f.Sub)
	}
}

// next returns the next frame.
func (s *speaker) next() (wire.Type, []byte) {
	s.t.Helper()
	payload, err := s.r.Next()
	if err != nil {
		s.t.Fatalf("next frame: %v", err)
	}
	t, err := wire.PeekType(payload)
	if err != nil {
		s.t.Fatal(err)
	}
	return t, payload
}

// expect returns the next frame, which is of type want.
func (s *speaker) expect(want wire.Type) []byte {
	s.t.Helper()
	t, payload := s.next()
	if t != want {
		s.t.Fatalf("got %v (%q), want %v", t, payload, want)
	}
	return payload
}

func (s *speaker) expectCold(t wire.Type, body any) {
	s.t.Helper()
	if err := wire.DecodeCold(s.expect(t), body); err != nil {
		s.t.Fatal(err)
	}
}

func (s *speaker) expectMessage(topic, body string) wire.Message {
	s.t.Helper()
	var m wire.Message
	if err := m.Decode(s.expect(wire.TypeMessage)); err != nil {
		s.t.Fatal(err)
	}
	if string(m.Topic) != topic || string(m.Body) != body {
		s.t.Fatalf("got message %q %.80q, want %q %.80q", m.Topic, m.Body, topic, body)
	}
	return m
}

func (s *speaker) expectAck(upto uint64, subscribers uint32) {
	s.t.Helper()
	var a wire.Ack
	if err := a.Decode(s.expect(wire.TypeAck)); err != nil {
		s.t.Fatal(err)
	}
	if a != (wire.Ack{UpTo: upto, Subscribers: subscribers}) {
		s.t.Fatalf("got %+v, want up to %d by %d subscribers", a, upto, subscribers)
	}
}

func (s *speaker) expectError(code wire.Code) wire.ErrorBody {
	s.t.Helper()
	var e wire.ErrorBody
	s.expectCold(wire.TypeError, &e)
	if e.Code != code || e.Text == "" {
		s.t.Fatalf("got error %v (%s), want %v", e.Code, e.Text, code)
	}
	return e
}

func (s *speaker) expectPong(token uint64) {
	s.t.Helper()
	if got, err := wire.DecodePing(s.expect(wire.TypePong)); err != nil || got != token {
		s.t.Fatalf("PONG %d, %v; want %d", got, err, token)
	}
}

// expectGoodbye reads to the end: a GOODBYE of that code, and nothing behind it.
func (s *speaker) expectGoodbye(code wire.Code) {
	s.t.Helper()
	var g wire.Goodbye
	for {
		payload, err := s.r.Next()
		if err != nil {
			if g.Code != code || g.Text == "" && code != 0 {
				s.t.Fatalf("the connection ended (%v) with GOODBYE %v (%s), want %v", err, g.Code, g.Text, code)
			}
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				s.t.Fatal("the connection was not closed")
			}
			return
		}
		if t, _ := wire.PeekType(payload); t == wire.TypeGoodbye {
			if err := wire.DecodeCold(payload, &g); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}
