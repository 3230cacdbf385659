package broker_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

// Both kinds of sockets, for loops turned by hand.
var kinds = map[string]int{"packet": unix.SOCK_SEQPACKET, "stream": unix.SOCK_STREAM}

// smallest is the least that a broker whose messages are of 64 KiB keeps for a
// connection or a uid.
const smallest = 4 * (64<<10 + wire.FrameOverhead)

// A publisher that has no subscriptions is stopped before block subscriptions have
// taken all that a connection or a uid may take, and nothing is lost.
func TestBlockStaysWithinBounds(t *testing.T) {
	for name, c := range map[string]struct {
		opts broker.Options
		most int // for both of the connections that do not read
	}{
		"connection": {broker.Options{MaxMessage: 64 << 10, MaxConnectionBytes: 1}, 2 * smallest},
		"user":       {broker.Options{MaxMessage: 64 << 10, MaxUserBytes: 1}, smallest},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, &c.opts)
			var slow []int
			for range 2 {
				slow = append(slow, r.join(unix.SOCK_STREAM, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a"}, Policy: "block", Messages: 1, Credit: 1})))
			}
			p := r.join(unix.SOCK_STREAM, nil)
			const n, size = 1000, 1000 // within the window
			sent := 0
			for sent < n && r.write(p, publish("a", size)) {
				sent++
				r.settle()
			}
			before := r.loop.Stats()
			if before.Buffered > c.most || before.Published >= uint64(sent) || before.Ended > 0 {
				t.Fatalf("%d were sent; the counters are %+v", sent, before)
			}
			got := make(map[int]int)
			for range n {
				for _, fd := range slow {
					r.say(fd, credit(1, 1<<20))
					for _, frame := range r.said(fd) {
						if strings.HasPrefix(frame, "MESSAGE") {
							got[fd]++
						}
					}
				}
			}
			if got[slow[0]] != sent || got[slow[1]] != sent {
				t.Errorf("got %v of %d", got, sent)
			}
		})
	}
}

// write sends b and reports whether the socket took it.
func (r *rig) write(fd int, b []byte) bool {
	r.t.Helper()
	n, err := unix.Write(fd, b)
	if err != nil && err != unix.EAGAIN || n > 0 && n < len(b) {
		r.t.Fatalf("write: %d of %d, %v", n, len(b), err)
	}
	return err == nil
}

// What the publisher may not be stopped for ends the subscriber: a publisher that has
// subscriptions is read on, and a single message can be too much for many.
func TestBlockAboveBoundsIsEnded(t *testing.T) {
	for name, c := range map[string]struct {
		subs, size int
		subscribes bool // the publisher
	}{
		"publisher with subscriptions": {2, 1000, true},
		"many at once":                 {200, 60_000, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, &broker.Options{MaxMessage: 64 << 10, MaxConnectionBytes: 1})
			slow := r.join(unix.SOCK_STREAM, nil)
			for i := range c.subs {
				r.say(slow, subscribe(wire.Subscribe{Sub: uint32(i + 1), Filters: []string{"a"}, Policy: "block", Messages: 1, Credit: 1}))
			}
			p := r.join(unix.SOCK_STREAM, nil)
			if c.subscribes {
				r.say(p, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"other"}}))
			}
			sent := 0
			for ; r.loop.Stats().Ended == 0 && sent < 1000; sent++ {
				r.say(p, publish("a", c.size))
				if got := r.loop.Stats().Buffered; got > 2*smallest {
					t.Fatalf("%d bytes are buffered, the bound is %d", got, smallest)
				}
			}
			if got := r.said(slow); !strings.HasPrefix(got[len(got)-1], "GOODBYE limit") {
				t.Errorf("after %d messages the slow one got %.200q", sent, got)
			}
			if got := r.loop.Stats(); got.Ended != 1 || got.Connections != 1 {
				t.Errorf("after %d messages: %+v", sent, got)
			}
			r.say(p, ping(1)) // and the publisher goes on
			if got := r.said(p); !slices.Contains(got, fmt.Sprintf("ACK %d by %d", sent, c.subs)) || got[len(got)-1] != "PONG 1" {
				t.Errorf("after %d messages the publisher got %q", sent, got)
			}
		})
	}
}

// Filters are charged to the connection for about what they take, and given back.
func TestFiltersAreCharged(t *testing.T) {
	const subs, perSub = 100, 64
	deep := func(i int) []byte {
		f := wire.Subscribe{Sub: uint32(i)}
		for j := range perSub {
			f.Filters = append(f.Filters, fmt.Sprintf("%d/%d", i, j)+strings.Repeat("/a", 30))
		}
		return subscribe(f)
	}
	for name, c := range map[string]struct {
		opts *broker.Options
		all  bool
	}{"default": {nil, true}, "a smaller bound": {&broker.Options{MaxConnectionBytes: 1}, false}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.opts)
			fd := r.join(unix.SOCK_STREAM, nil)
			refused := 0
			for i := 1; i <= subs; i++ {
				r.say(fd, deep(i))
				if got := r.said(fd); got[0] == "ERROR limit" {
					refused++
				}
			}
			if c.all != (refused == 0) {
				t.Errorf("%d of %d were refused", refused, subs)
			}
			open := subs - refused
			if got, least := r.loop.Stats().Buffered, open*perSub*32*100; got < least || got > 4*least {
				t.Errorf("%d bytes are charged for %d filters of 32 levels", got, open*perSub)
			}
			r.close(fd)
			if got := r.loop.Stats(); got.Buffered != 0 || got.Subscriptions != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// close closes fd and lets the broker notice.
func (r *rig) close(fd int) {
	r.t.Helper()
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil { // newRig closes it
		r.t.Fatal(err)
	}
	r.settle()
}

// A subscription to everything takes nothing from topics that are not published to
// after it came, nor does its end.
func TestWideSubscriptionsAreCheap(t *testing.T) {
	var topics broker.Topics
	for i := range broker.MaxRoutes {
		topics.Hit(fmt.Appendf(nil, "t/%d", i))
	}
	before := topics.CachedBytes()
	const n = 100
	var from, to runtime.MemStats
	runtime.ReadMemStats(&from)
	for id := range n {
		topics.Subscribe(id, "#")
	}
	runtime.ReadMemStats(&to)
	if got := to.TotalAlloc - from.TotalAlloc; got > 1<<20 {
		t.Errorf("%d bytes were allocated for %d subscriptions to #", got, n)
	}
	if got := topics.CachedBytes(); got != before || topics.Cached() != broker.MaxRoutes {
		t.Errorf("%d topics of %d bytes are cached, before %d subscriptions came %d", topics.Cached(), got, n, before)
	}
	if got := topics.Hit([]byte("t/7")); got != n {
		t.Errorf("a topic has %d subscriptions, want %d", got, n)
	}
	if got := topics.CachedBytes(); got > before+16*n {
		t.Errorf("one topic published to takes %d bytes more", got-before)
	}
	for id := range n {
		topics.Unsubscribe(id)
	}
	if got := topics.Hit([]byte("t/7")); got != 0 {
		t.Errorf("a topic has %d subscriptions that are gone", got)
	}
}

// A broker that is set to messages of 64 MiB takes one.
func TestLargestMessage(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		bus := brokertest.Start(t, &broker.Options{MaxMessage: wire.LargestMaxMessage})
		s, p := greet(t, bus, network), greet(t, bus, network)
		s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})
		body := make([]byte, wire.LargestMaxMessage)
		body[0], body[len(body)-1] = 1, 2
		done := make(chan error, 1)
		go func() {
			frame := wire.AppendPublish(nil, &wire.Publish{Topic: []byte("a"), Body: body})
			done <- wire.WriteFrames(p.conn, frame, wire.DefaultMaxPacket)
		}()
		s.expect(wire.TypeTarget)
		var m wire.Message
		if err := m.Decode(s.expect(wire.TypeMessage)); err != nil || len(m.Body) != len(body) || m.Body[0] != 1 || m.Body[len(body)-1] != 2 {
			t.Errorf("got a body of %d bytes, %v", len(m.Body), err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		p.expectAck(1, 1)
	})
}

// A client may send by the limits that hold before WELCOME with its HELLO; what it is
// sent keeps to the smaller packets it asked for.
func TestSmallPackets(t *testing.T) {
	r := newRig(t, nil)
	fd := r.connect(unix.SOCK_SEQPACKET)
	const small = 4096
	r.send(fd, append(wire.AppendCold(nil, wire.TypeHello, &wire.Hello{Version: 1, MaxPacket: small}),
		subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})...))
	sizes := []int{20_000, 0, 100, 4000, 4050, 4096, 60_000, 1000, 1000, 1000, 1000, 1000}
	want := 0
	for _, size := range sizes {
		r.send(fd, publish("a", size)) // before WELCOME was read
		want += size
	}
	r.settle()
	var all []byte
	for b := r.read(fd); len(b) > 0; b = r.read(fd) {
		if len(b) > small {
			t.Fatalf("a packet of %d bytes, the limit is %d", len(b), small)
		}
		all = append(all, b...)
		r.settle()
	}
	messages := 0
	for len(all) > 0 {
		payload, size, err := wire.Split(all, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		var m wire.Message
		if m.Decode(payload) == nil {
			messages++
			want -= len(m.Body)
		}
		all = all[size:]
	}
	if messages != len(sizes) || want != 0 {
		t.Errorf("%d of %d messages came, %d bytes are missing", messages, len(sizes), want)
	}
}
