package broker_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

// prefix is the length prefix of a frame of n bytes.
func prefix(n uint32) string { return string(binary.LittleEndian.AppendUint32(nil, n)) }

// frame is a frame with that payload.
func frame(payload string) string { return prefix(uint32(len(payload))) + payload }

// hostile is what breaks the rules, and the code with which it ends.
var hostile = []struct {
	name string
	open bool // HELLO first
	send string
	code wire.Code
}{
	{"garbage", false, "GET / HTTP/1.1\r\nHost: postbus\r\n\r\n", wire.CodeTooLarge},
	{"a frame of 4 GiB", false, prefix(1<<32 - 1), wire.CodeTooLarge},
	{"a frame of 4 GiB, later", true, prefix(1<<32-1) + "\x95\x03", wire.CodeTooLarge},
	{"a frame of nothing", true, prefix(0), wire.CodeMalformed},
	{"not an array", true, frame("hello"), wire.CodeMalformed},
	{"an unknown type", true, frame("\x91\x7f"), wire.CodeUnknownFrame},
	{"a broker's frame", true, string(wire.AppendAck(nil, wire.Ack{UpTo: 1})), wire.CodeUnknownFrame},
	{"no HELLO", false, string(wire.AppendPing(nil, 1)), wire.CodeUnknownFrame},
	{"HELLO twice", true, string(wire.AppendCold(nil, wire.TypeHello, &wire.Hello{Version: 1})), wire.CodeUnknownFrame},
	{"version 0", false, string(wire.AppendCold(nil, wire.TypeHello, &wire.Hello{})), wire.CodeVersion},
	{"PUBLISH without body", true, frame("\x95\x03\xa1a\xc0\xc0"), wire.CodeMalformed},
	{"PUBLISH with a body as str", true, frame("\x95\x03\xa1a\xc0\xc0\xa1x"), wire.CodeMalformed},
	{"SUBSCRIBE of nonsense", true, frame("\x92\x07\xc0"), wire.CodeMalformed},
	{"a bomb", true, frame("\x92\x07" + strings.Repeat("\x91", 5000)), wire.CodeMalformed},
	{"a huge announced array", true, frame("\x92\x07\x81\xa7filters\xdd\xff\xff\xff\xff"), wire.CodeMalformed},
}

// A client that breaks the rules is told why and dropped; another one, beside it,
// notices nothing.
func TestHostileClientsAreDropped(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus := brokertest.Start(t, nil)
		witness := greet(t, bus, network)
		witness.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})
		for _, c := range hostile {
			t.Run(c.name, func(t *testing.T) {
				connect := dial
				if c.open {
					connect = greet
				}
				s := connect(t, bus, network)
				if _, err := s.conn.Write([]byte(c.send)); err != nil {
					t.Fatal(err)
				}
				s.expectGoodbye(c.code)
			})
		}
		if network == "unixpacket" {
			hostilePackets(t, bus)
		}
		bus.Eventually(t, "only the witness is left", func(s broker.Stats) bool { return s.Connections == 1 && s.Subscriptions == 1 })
		witness.publish("a", "x").flush()
		witness.expect(wire.TypeTarget)
		witness.expectMessage("a", "x")
	})
}

// hostilePackets sends what only SOCK_SEQPACKET can.
func hostilePackets(t *testing.T, bus *brokertest.Bus) {
	t.Run("a packet above max_packet", func(t *testing.T) {
		s := greet(t, bus, "unixpacket")
		if _, err := s.conn.Write(make([]byte, wire.DefaultMaxPacket+1)); err != nil {
			t.Fatal(err)
		}
		s.expectGoodbye(wire.CodeTooLarge)
	})
	t.Run("an empty packet", func(t *testing.T) {
		s := greet(t, bus, "unixpacket")
		if _, err := s.conn.Write(nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.r.Next(); err != io.EOF {
			t.Fatalf("got %v, want the end", err)
		}
	})
}

func TestTimeouts(t *testing.T) {
	const short = 30 * time.Millisecond
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		t.Run("no HELLO", func(t *testing.T) {
			bus := brokertest.Start(t, &broker.Options{HelloTimeout: short})
			dial(t, bus, network).expectGoodbye(wire.CodeTimeout)
		})
		t.Run("half a frame", func(t *testing.T) {
			bus := brokertest.Start(t, &broker.Options{FrameTimeout: short})
			s := greet(t, bus, network)
			if _, err := s.conn.Write([]byte(prefix(100) + "\x95\x03")); err != nil {
				t.Fatal(err)
			}
			s.expectGoodbye(wire.CodeTimeout)
		})
		t.Run("nothing read", func(t *testing.T) {
			bus := brokertest.Start(t, &broker.Options{StallTimeout: short})
			s, p := greet(t, bus, network), greet(t, bus, "unix")
			s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})
			flood(p, 3000)
			bus.Eventually(t, "the one that reads nothing is dropped", func(s broker.Stats) bool { return s.Ended == 1 })
			p.ping(9).flush()
			p.expectPong(9)
		})
	})
}

// flood publishes n messages of 1 KiB and waits for the verdicts.
func flood(p *speaker, n int) {
	p.t.Helper()
	for range n {
		p.publish("a", string(make([]byte, 1024)))
	}
	out := p.out
	p.out = nil
	go wire.WriteFrames(p.conn, append(out, wire.AppendPing(nil, 77)...), wire.DefaultMaxPacket)
	for {
		if t, _ := p.next(); t == wire.TypePong {
			return
		}
	}
}

// A client that asks and never reads the answers costs at most a bounded buffer:
// its requests are left unread.
func TestAnswersUnread(t *testing.T) {
	bus := brokertest.Start(t, nil)
	s, other := greet(t, bus, "unix"), greet(t, bus, "unix")
	var pings []byte
	for i := range 10000 {
		pings = wire.AppendPing(pings, uint64(i)+1<<40)
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var err error
	sent := 0
	for range 400 { // 56 MB
		var n int
		n, err = s.conn.Write(pings)
		sent += n
		if err != nil {
			break
		}
	}
	if err == nil {
		t.Fatalf("the broker read %d bytes of requests whose answers nobody reads", sent)
	}
	if got := bus.Stats().Buffered; got > 4<<20 {
		t.Errorf("%d bytes are buffered for it", got)
	}
	other.ping(5).flush()
	other.expectPong(5)
}

// What one uid makes the broker keep is bounded over all its connections.
func TestHalfFramesAreBounded(t *testing.T) {
	bus := brokertest.Start(t, &broker.Options{MaxUserBytes: 1}) // four messages, the least
	dropped := 0
	for range 8 {
		s := greet(t, bus, "unix")
		half := prefix(1<<20) + string(make([]byte, 1<<20-1))
		_, err := s.conn.Write([]byte(half))
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			dropped++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	bus.Eventually(t, "those above the bound are dropped", func(s broker.Stats) bool { return s.Ended >= 3 })
	if got := bus.Stats().Buffered; got > 5<<20 {
		t.Errorf("%d bytes are kept, the bound is a little above 4 MiB", got)
	}
}

func TestConnectionLimit(t *testing.T) {
	bus := brokertest.Start(t, &broker.Options{MaxConnections: 2})
	greet(t, bus, "unix")
	greet(t, bus, "unixpacket")
	dial(t, bus, "unix").expectGoodbye(wire.CodeLimit)
	bus = brokertest.Start(t, &broker.Options{MaxUserConnections: 1})
	greet(t, bus, "unix")
	dial(t, bus, "unixpacket").expectGoodbye(wire.CodeLimit)
}

// Frames cut anywhere give the same as whole ones.
func TestAnyCut(t *testing.T) {
	bus := brokertest.Start(t, nil)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		s := greet(t, bus, "unix")
		s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})
		var want []string
		for i := range 50 {
			topic := []string{"a", "b", "b", "b"}[rnd.IntN(4)]
			body := strings.Repeat(fmt.Sprint(i, " "), rnd.IntN(400))
			if rnd.IntN(40) == 0 {
				body = strings.Repeat(body, 200)
			}
			want = append(want, topic+" "+body)
			s.publish(topic, body)
		}
		go func() {
			for out := s.out; len(out) > 0; {
				n := min(len(out), 1+rnd.IntN(1<<rnd.IntN(17)))
				if _, err := s.conn.Write(out[:n]); err != nil {
					return
				}
				out = out[n:]
			}
		}()
		for i := 0; i < len(want); {
			typ, payload := s.next()
			if typ != wire.TypeMessage {
				continue
			}
			var m wire.Message
			if err := m.Decode(payload); err != nil {
				t.Fatal(err)
			}
			if got := string(m.Topic) + " " + string(m.Body); got != want[i] {
				t.Fatalf("message %d is %.60q, want %.60q", i, got, want[i])
			}
			i++
		}
		s.conn.Close()
	}
}
