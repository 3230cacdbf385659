package broker_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/wire"
)

// Whatever clients do at random, a model that knows no buffers, sockets or turns says
// the same as the broker: each publish has one verdict, in order, with the number of
// subscriptions that match; each subscription gets what was published to it, in order,
// or is told in its place that it lost it, and nothing else; and nothing is left in the
// end.
func TestRandomClients(t *testing.T) {
	seeds := uint64(100)
	if broker.RaceEnabled {
		seeds = 30
	}
	if os.Getenv("POSTBUS_FULL") == "1" {
		seeds *= 100
	}
	for seed := range seeds {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { newWorld(t, seed).live(150) }) {
			return // one is enough to look at
		}
	}
}

// world is a broker, its random clients, and the model of it.
type world struct {
	*rig
	rnd     *rand.Rand
	tracer  broker.Tracer
	clients []*client // by the tracer's id
	seq     uint64
	block   bool // there are block subscriptions: verdicts may be held back
	max     int  // largest body
	window  int
	asked   int // for subscriptions
}

func newWorld(t *testing.T, seed uint64) *world {
	rnd := rand.New(rand.NewPCG(seed, 7))
	w := &world{rnd: rnd, max: 190_000, window: []int{64 << 10, 2 << 20}[rnd.IntN(2)], block: rnd.IntN(2) == 0}
	w.rig = newRig(t, &broker.Options{MaxMessage: w.max, Window: w.window, FrameTimeout: -1, StallTimeout: -1, HelloTimeout: -1})
	w.tracer = broker.Tracer{Publishes: w.alike, Frame: w.frame, Routes: w.routes}
	t.Cleanup(broker.Trace(&w.tracer))
	for range 2 + rnd.IntN(5) {
		w.add()
	}
	return w
}

// add is one client more.
func (w *world) add() {
	kind := []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET}[w.rnd.IntN(2)]
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if kind == unix.SOCK_STREAM && w.rnd.IntN(2) == 0 {
		_ = unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, 4096<<w.rnd.IntN(5))
	}
	c := &client{
		w: w, fd: fds[0], packet: kind == unix.SOCK_SEQPACKET, rude: w.rnd.IntN(4) == 0,
		hearing: hearing{
			subs: make(map[uint32]*stream), live: make(map[uint32]*stream), heard: make(map[uint32]*stream),
			awaits: make(map[uint64]wire.Await),
		},
	}
	w.t.Cleanup(c.close)
	hello := wire.Hello{Version: 1, MaxPacket: 4096 * w.rnd.IntN(2)}
	if c.maxPacket = hello.MaxPacket; c.maxPacket == 0 {
		c.maxPacket = wire.DefaultMaxPacket
	}
	c.id = w.tracer.Add(w.loop, fds[1], c.packet)
	w.clients = append(w.clients, c)
	c.say(wire.AppendCold(nil, wire.TypeHello, &hello), said{typ: wire.TypeHello})
}

// live does so many steps at random and then ends everything in order.
func (w *world) live(steps int) {
	for range steps {
		c := w.clients[w.rnd.IntN(len(w.clients))]
		switch n := w.rnd.IntN(60); {
		case n == 0 && len(w.clients) < 12:
			w.add()
		case n < 8:
			w.loop.Advance(time.Duration(w.rnd.IntN(10)) * time.Millisecond)
		case n < 30:
			c.hear(1 + w.rnd.IntN(1<<w.rnd.IntN(18)))
		default:
			c.act()
		}
		w.check()
	}
	w.finish()
}

// check brings model and broker to the same point.
func (w *world) check() {
	w.t.Helper()
	w.settle()
	w.tracer.Catch()
	if w.t.Failed() {
		w.t.FailNow()
	}
	if got := w.loop.Seq(); got != w.seq {
		w.t.Fatalf("the last seq is %d, want %d", got, w.seq)
	}
}

// finish lets those that still can hear all that is due, and then ends all.
func (w *world) finish() {
	for _, c := range w.clients {
		if c.shut {
			c.close() // it cannot grant credit any more, and may hold others up
		}
	}
	for idle := 0; idle < 3; idle++ {
		for _, c := range w.clients {
			before := len(c.out) + len(c.said)
			c.grantAll()
			c.write(true)
			if c.hear(1<<20) > 0 || len(c.out)+len(c.said) < before {
				idle = 0
			}
			w.loop.Advance(5 * time.Millisecond)
			w.check()
		}
	}
	for _, c := range w.clients {
		c.complete()
	}
	for _, c := range w.clients {
		c.close()
		w.check()
	}
	if got := w.loop.Stats(); got.Connections != 0 || got.Subscriptions != 0 || got.Buffered != 0 || got.Published != w.seq {
		w.t.Errorf("in the end the counters are %+v", got)
	}
}

// topic is one of few.
func (w *world) topic() string {
	t := string("abc"[w.rnd.IntN(3)])
	for w.rnd.IntN(3) == 0 {
		t += "/" + string("abc"[w.rnd.IntN(3)])
	}
	return t
}
