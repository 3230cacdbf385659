package broker_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

// lasting runs a test with a queue of each level that outlives the broker.
func lasting(t *testing.T, test func(t *testing.T, level string)) {
	for _, level := range []string{"kernel", "disk"} {
		t.Run(level, func(t *testing.T) { test(t, level) })
	}
}

// allKept reads acks up to publish upto.
func (s *speaker) allKept(upto uint64) {
	s.t.Helper()
	for a := (wire.Ack{}); a.UpTo < upto; {
		if err := a.Decode(s.expect(wire.TypeAck)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// pushBodies pushes n bodies and waits until they are kept.
func (s *speaker) pushBodies(queue, body string, n int) {
	s.t.Helper()
	for range n {
		s.push(queue, body, nil)
	}
	s.flush()
	s.allKept(uint64(n))
}

// take reads n deliveries, that many of one consumer.
func (s *speaker) take(sub uint32, n int) {
	s.t.Helper()
	for range n {
		s.delivery(sub)
	}
}

// leave closes the connection and waits until the broker has seen that one is left.
func (s *speaker) leave(bus *brokertest.Bus) {
	s.t.Helper()
	s.conn.Close()
	bus.Eventually(s.t, "one connection is left", func(st broker.Stats) bool { return st.Connections == 1 })
}

// stopAndStart stops the broker in order and starts it again.
func stopAndStart(t *testing.T, bus *brokertest.Bus, dir string) *speaker {
	t.Helper()
	if err := bus.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := bus.Wait(); !errors.Is(err, broker.ErrClosed) {
		t.Fatal(err)
	}
	return greet(t, queueBus(t, broker.Options{StateDir: dir}), "unix")
}

// A dead letter for a queue whose store is just being made is kept, once.
func TestQueueHostileBuryOpening(t *testing.T) {
	lasting(t, func(t *testing.T, level string) {
		bus := queueBus(t, broker.Options{})
		s := greet(t, bus, "unix")
		s.declare("a", wire.QueueSettings{DeadLetter: "b"})
		s.push("a", "x", nil).flush()
		s.expectKept(1, wire.LevelMemory)
		s.consume(wire.Consume{Sub: 1, Queue: "a"})
		s.expectDelivery(1, "x", 1)
		s.cold(wire.TypeQueue, &wire.Queue{Token: 5, Op: wire.OpDeclare, Queue: "b", Settings: &wire.QueueSettings{Level: level}})
		s.settle(wire.Settle{Sub: 1, Verb: wire.VerbReject, First: 1, Last: 1}).flush()
		answers := map[wire.Type]int{}
		for range 2 {
			typ, _ := s.next()
			answers[typ]++
		}
		if answers[wire.TypeQueued] != 1 || answers[wire.TypeSettled] != 1 {
			t.Fatalf("the answers are %v", answers)
		}
		bus.Eventually(t, "one dead letter", func(broker.Stats) bool {
			a, b := s.info("a"), s.info("b")
			return a.Ready+a.Leased == 0 && a.Dead+b.Ready == 1
		})
	})
}

// A duplicate of a push that the store did not keep is not acked.
func TestQueueHostileDuplicateOfUnkept(t *testing.T) {
	s := greet(t, queueBus(t, broker.Options{}), "unix")
	s.declare("q", wire.QueueSettings{Level: "kernel"})
	body := strings.Repeat("x", 60_000)
	for i := uint64(1); i < 2000; i += 2 {
		o := &wire.PublishOptions{ID: fmt.Sprint(i)}
		s.push("q", body, o).push("q", body, o).flush()
		for upto := uint64(0); upto < i+1; {
			switch typ, payload := s.next(); typ {
			case wire.TypeAck:
				var a wire.Ack
				if err := a.Decode(payload); err != nil {
					t.Fatal(err)
				}
				upto = a.UpTo
			case wire.TypeError: // then both are refused
				var e wire.ErrorBody
				if err := wire.DecodeCold(payload, &e); err != nil || e.Code != wire.CodeFull || e.Publish != i {
					t.Fatalf("got %+v, %v; want push %d refused", e, err, i)
				}
				if e := s.expectError(wire.CodeFull); e.Publish != i+1 {
					t.Errorf("got %+v; want its duplicate refused", e)
				}
				return
			default:
				t.Fatalf("got %v %.100q", typ, payload)
			}
		}
	}
	t.Skip("this kernel's queues are too large to fill")
}

// askInfo asks for the info of a queue in this turn of the loop's.
func (r *rig) askInfo(fd int, name string) wire.QueueInfo {
	r.t.Helper()
	r.drain(fd)
	r.send(fd, wire.AppendCold(nil, wire.TypeQueue, &wire.Queue{Token: 1, Op: wire.OpInfo, Queue: name}))
	for buf := []byte(nil); ; buf = r.read(fd) {
		for len(buf) > 0 {
			payload, size, err := wire.Split(buf, 1<<20)
			if err != nil {
				r.t.Fatal(err)
			}
			buf = buf[size:]
			var a wire.Queued
			if typ, _ := wire.PeekType(payload); typ != wire.TypeQueued {
				continue
			} else if err := wire.DecodeCold(payload, &a); err != nil || len(a.Queues) != 1 {
				r.t.Fatalf("info is %+v, %v", a, err)
			}
			return a.Queues[0]
		}
		r.turn()
	}
}

// A time to live is of the queue that has it, not of others that take the same topic,
// and goes on over a restart.
func TestQueueHostileTTL(t *testing.T) {
	for level := range levels {
		t.Run(level, func(t *testing.T) {
			dir := stateDir(t)
			opts := broker.Options{StateDir: dir}
			short := wire.QueueSettings{Level: level, Bind: []string{"t"}, TTLMS: time.Hour.Milliseconds()}
			long := wire.QueueSettings{Level: level, Bind: []string{"t"}}
			var r *rig
			var fd int
			if level == "memory" {
				r = newRig(t, &opts)
				fd = r.join(unix.SOCK_STREAM, nil)
				for name, s := range map[string]wire.QueueSettings{"short": short, "long": long} {
					r.say(fd, wire.AppendCold(nil, wire.TypeQueue, &wire.Queue{Op: wire.OpDeclare, Queue: name, Settings: &s}))
				}
				r.say(fd, wire.AppendPublish(nil, &wire.Publish{Topic: []byte("t"), Body: []byte("x")}))
			} else {
				bus := queueBus(t, opts)
				s := greet(t, bus, "unix")
				s.declare("short", short)
				s.declare("long", long)
				s.publish("t", "x").flush()
				s.allKept(1)
				bus.Close()
				if err := bus.Wait(); !errors.Is(err, broker.ErrClosed) {
					t.Fatal(err)
				}
				r = newRig(t, &opts)
				fd = r.join(unix.SOCK_STREAM, nil)
			}
			for _, c := range []struct {
				after time.Duration
				short int64
			}{{59 * time.Minute, 1}, {2 * time.Minute, 0}, {30 * 24 * time.Hour, 0}} {
				r.loop.Advance(c.after)
				r.settle()
				if got := r.askInfo(fd, "short"); got.Ready != c.short || got.Expired != uint64(1-c.short) {
					t.Errorf("%v later the queue with a time to live is %+v", c.after, got)
				}
				if got := r.askInfo(fd, "long"); got.Ready != 1 || got.Expired != 0 {
					t.Errorf("%v later the queue without is %+v", c.after, got)
				}
			}
		})
	}
}

// A queue can be deleted while its dead letters are requeued: both are answered, and the
// name is free again.
func TestQueueHostileRequeueDelete(t *testing.T) {
	s := greet(t, queueBus(t, broker.Options{}), "unix")
	s.declare("q", wire.QueueSettings{Level: "disk"})
	s.pushBodies("q", "x", 600)
	s.cold(wire.TypeQueue, &wire.Queue{Token: 5, Op: wire.OpRequeue, Queue: "q"})
	s.cold(wire.TypeQueue, &wire.Queue{Token: 6, Op: wire.OpDelete, Queue: "q"}).flush()
	answered := map[uint64]wire.Type{}
	for range 2 {
		switch typ, payload := s.next(); typ {
		case wire.TypeQueued:
			var a wire.Queued
			if err := wire.DecodeCold(payload, &a); err != nil {
				t.Fatal(err)
			}
			answered[a.Token] = typ
		case wire.TypeError:
			var e wire.ErrorBody
			if err := wire.DecodeCold(payload, &e); err != nil {
				t.Fatal(err)
			}
			answered[e.Token] = typ
		default:
			t.Fatalf("got %v %q", typ, payload)
		}
	}
	if answered[5] == 0 || answered[6] != wire.TypeQueued {
		t.Errorf("the answers are %v", answered)
	}
	if info := s.declare("q", wire.QueueSettings{Level: "disk"}); info.Ready+info.Dead != 0 {
		t.Errorf("declared anew it is %+v", info)
	}
}

// A client that ends its side of the connection still gets the answer that waits for a
// store.
func TestQueueHostileHalfClose(t *testing.T) {
	lasting(t, func(t *testing.T, level string) {
		s := greet(t, queueBus(t, broker.Options{}), "unix")
		s.cold(wire.TypeQueue, &wire.Queue{Token: 5, Op: wire.OpDeclare, Queue: "q", Settings: &wire.QueueSettings{Level: level}}).flush()
		if err := s.conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var a wire.Queued
		if s.expectCold(wire.TypeQueued, &a); a.Token != 5 {
			t.Errorf("the answer is %+v", a)
		}
	})
}

// Rejects that are confirmed are dead letters after an orderly stop, each once.
func TestQueueHostileRejectShutdown(t *testing.T) {
	const n = 50
	lasting(t, func(t *testing.T, level string) {
		dir := stateDir(t)
		bus := queueBus(t, broker.Options{StateDir: dir})
		s := greet(t, bus, "unix")
		s.declare("dead", wire.QueueSettings{Level: level})
		s.declare("q", wire.QueueSettings{Level: level, DeadLetter: "dead"})
		s.pushBodies("q", "x", n)
		s.consume(wire.Consume{Sub: 1, Queue: "q"})
		s.take(1, n)
		s.settle(wire.Settle{Sub: 1, Verb: wire.VerbReject, First: 1, Last: n}).flush()
		s.confirmed(1)
		s = stopAndStart(t, bus, dir)
		if q, dead := s.info("q"), s.info("dead"); q.Ready != 0 || q.Dead+dead.Ready != n {
			t.Errorf("of %d rejected %d are ready again, %d dead letters here and %d there", n, q.Ready, q.Dead, dead.Ready)
		}
	})
}

// A message whose last try an orderly stop ends is a dead letter, and not tried again.
func TestQueueHostileMaxTriesShutdown(t *testing.T) {
	lasting(t, func(t *testing.T, level string) {
		dir := stateDir(t)
		bus := queueBus(t, broker.Options{StateDir: dir})
		s := greet(t, bus, "unix")
		s.declare("dead", wire.QueueSettings{Level: level})
		s.declare("q", wire.QueueSettings{Level: level, DeadLetter: "dead", MaxTries: 1})
		s.push("q", "x", nil).flush()
		s.expectKept(1, levels[level])
		s.consume(wire.Consume{Sub: 1, Queue: "q"})
		s.expectDelivery(1, "x", 1)
		s = stopAndStart(t, bus, dir)
		if q, dead := s.info("q"), s.info("dead"); q.Ready != 0 || q.Dead+dead.Ready != 1 {
			t.Errorf("ready %d, dead letters %d here and %d there", q.Ready, q.Dead, dead.Ready)
		}
	})
}

// A stop in the middle of a requeue leaves each message in one of the two queues.
func TestQueueHostileRequeueShutdown(t *testing.T) {
	const n = 1500
	dir := stateDir(t)
	bus := queueBus(t, broker.Options{StateDir: dir})
	s, look := greet(t, bus, "unix"), greet(t, bus, "unix")
	s.declare("dead", wire.QueueSettings{Level: "disk"})
	s.declare("q", wire.QueueSettings{Level: "disk", DeadLetter: "dead"})
	s.pushBodies("q", "x", n)
	s.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: n})
	s.take(1, n)
	s.cold(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 1, Drain: true})
	s.settle(wire.Settle{Sub: 1, Verb: wire.VerbReject, First: 1, Last: n}).flush()
	bus.Eventually(t, "all have moved", func(broker.Stats) bool { return look.info("q").Bytes == 0 })
	if info := look.info("dead"); info.Ready != n {
		t.Fatalf("the dead letters are %+v", info)
	}
	s.cold(wire.TypeQueue, &wire.Queue{Token: 6, Op: wire.OpRequeue, Queue: "dead"}).flush()
	bus.Eventually(t, "some are back", func(broker.Stats) bool { return look.info("q").Ready >= 200 })
	look = stopAndStart(t, bus, dir)
	if q, dead := look.info("q"), look.info("dead"); q.Ready+dead.Ready != n || q.Dead+dead.Dead != 0 {
		t.Errorf("of %d messages %d are in the queue, %d among the dead letters", n, q.Ready, dead.Ready)
	}
}

// What clients had waiting for room goes with their connections.
func TestQueueHostileParkedClosed(t *testing.T) {
	const most = 8 << 20
	bus := queueBus(t, broker.Options{MaxUserBytes: most, MaxConnectionBytes: most})
	s := greet(t, bus, "unix")
	s.declare("q", wire.QueueSettings{MaxMessages: 1, WhenFull: "block"})
	s.push("q", "x", nil).push("q", "waits first", nil).ping(1).flush()
	s.expectPong(1)
	body := strings.Repeat("x", 1<<20)
	before := heap()
	for range 20 {
		c := greet(t, bus, "unix")
		c.push("q", body, nil).push("q", body, nil).ping(1).flush()
		c.expectPong(1)
		c.out, c.r = nil, nil
		c.leave(bus)
	}
	if kept := heap() - before; kept > most {
		t.Errorf("%d bytes are kept for clients that have gone", kept)
	}
	runtime.KeepAlive(body)
}

// returned makes a disk queue whose messages were delivered once and came back, so that
// their bodies are on disk alone.
func returned(t *testing.T, bus *brokertest.Bus, settings wire.QueueSettings, size, n int) *speaker {
	t.Helper()
	s := greet(t, bus, "unix")
	settings.Level = "disk"
	s.declare("q", settings)
	s.pushBodies("q", strings.Repeat("x", size), n)
	c := greet(t, bus, "unix")
	c.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: n})
	c.take(1, n)
	c.leave(bus)
	return s
}

// A consumer of large bodies gets them all, however much its prefetch is above what the
// broker keeps for a connection.
func TestQueueHostilePrefetchBig(t *testing.T) {
	const n, size = 40, 512 << 10
	bus := queueBus(t, broker.Options{MaxConnectionBytes: 8 << 20})
	returned(t, bus, wire.QueueSettings{}, size, n)
	c := greet(t, bus, "unix")
	c.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: wire.MaxPrefetch})
	for i := range n {
		if d := c.delivery(1); len(d.Body) != size || d.Seq != uint64(i+1) || d.Tries != 2 {
			t.Fatalf("delivery %d is message %d of %d bytes, try %d", i, d.Seq, len(d.Body), d.Tries)
		}
		if got := bus.Stats().Buffered; got > 4<<20 {
			t.Fatalf("%d bytes are buffered", got)
		}
	}
	c.ack(1, 1, n).flush()
	c.expectSettled(1)
}

// What a consumer that goes away was never sent counts as no try.
func TestQueueHostileNeverSent(t *testing.T) {
	const n, size, tries = 24, 512 << 10, 4
	bus := queueBus(t, broker.Options{})
	s := returned(t, bus, wire.QueueSettings{MaxTries: tries}, size, n)
	for range tries - 1 {
		c := greet(t, bus, "unix")
		c.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: wire.MaxPrefetch})
		c.leave(bus)
	}
	if info := s.info("q"); info.Dead > n/4 || info.Ready+info.Dead != n {
		t.Errorf("of %d messages %d are dead letters after consumers that read nothing, %d are ready", n, info.Dead, info.Ready)
	}
}

// Drain requests of clients that have gone leave room for others'.
func TestQueueHostileDrainers(t *testing.T) {
	bus := queueBus(t, broker.Options{})
	s := greet(t, bus, "unix")
	s.declare("q", wire.QueueSettings{})
	s.push("q", "x", nil).flush()
	s.expectKept(1, wire.LevelMemory)
	c := greet(t, bus, "unix")
	for i := range 256 {
		c.cold(wire.TypeQueue, &wire.Queue{Token: uint64(i + 1), Op: wire.OpDrain, Queue: "q"})
	}
	c.ping(1).flush()
	c.expectPong(1)
	c.leave(bus)
	s.cold(wire.TypeQueue, &wire.Queue{Token: 9, Op: wire.OpDrain, Queue: "q"}).ping(2).flush()
	s.expectPong(2)
	s.consume(wire.Consume{Sub: 1, Queue: "q"})
	s.expectDelivery(1, "x", 1)
	s.ack(1, 1, 1).flush()
	s.confirmed(1)
	var a wire.Queued
	if s.expectCold(wire.TypeQueued, &a); a.Token != 9 {
		t.Errorf("drained: %+v", a)
	}
}

// A consumer that drains already is told so when it is to drain once more, and ends by
// its last settle.
func TestQueueHostileUnsubscribeTwice(t *testing.T) {
	s := greet(t, queueBus(t, broker.Options{}), "unix")
	s.declare("q", wire.QueueSettings{})
	s.push("q", "x", nil).flush()
	s.expectKept(1, wire.LevelMemory)
	s.consume(wire.Consume{Sub: 1, Queue: "q"})
	s.expectDelivery(1, "x", 1)
	for range 2 {
		s.cold(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 1, Drain: true})
	}
	s.ping(1).flush()
	if e := s.expectError(wire.CodeNotFound); e.Sub != 1 {
		t.Errorf("the error is %+v", e)
	}
	s.expectPong(1)
	s.ack(1, 1, 1).flush()
	got := map[wire.Type]bool{}
	for range 2 {
		typ, _ := s.next()
		got[typ] = true
	}
	if !got[wire.TypeSettled] || !got[wire.TypeUnsubscribed] {
		t.Errorf("its last settle is answered by %v", got)
	}
}

// The memory of all queues together is bounded, also when one publish goes to many.
func TestQueueHostileMemoryLimit(t *testing.T) {
	const n, most = 40, 8 << 20
	s := greet(t, queueBus(t, broker.Options{MaxQueueMemory: most}), "unix")
	for i := range n {
		s.declare(fmt.Sprint("q", i), wire.QueueSettings{Bind: []string{"#"}})
	}
	body := strings.Repeat("x", 1<<20)
	s.publish("t", body[:most/n*3/4]).publish("t", body).flush()
	s.allKept(1)
	if e := s.expectError(wire.CodeLimit); e.Publish != 2 {
		t.Errorf("the error is %+v", e)
	}
	for i := range n {
		if info := s.info(fmt.Sprint("q", i)); info.Ready != 1 {
			t.Fatalf("queue %d is %+v", i, info)
		}
	}
}

// A full queue of one user does not refuse what another publishes to a topic that it is
// bound to.
func TestQueueHostileOthersFullQueue(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	r := newRig(t, nil)
	publisher := r.join(unix.SOCK_STREAM, nil)
	settings := wire.QueueSettings{Bind: []string{"t"}, MaxMessages: 1}
	var owner int
	as(t, 65534, func() { owner = r.join(unix.SOCK_STREAM, nil) })
	r.say(owner, wire.AppendCold(nil, wire.TypeQueue, &wire.Queue{Op: wire.OpDeclare, Queue: "q", Settings: &settings}))
	if info := r.askInfo(owner, "q"); info.Owner != 65534 {
		t.Fatalf("it is owned by %d", info.Owner)
	}
	message := wire.AppendPublish(nil, &wire.Publish{Topic: []byte("t"), Body: []byte("x")})
	for _, queues := range []uint32{1, 0} {
		r.drain(publisher)
		r.say(publisher, wire.AppendPing(message, 1))
		if want := wire.AppendAck(nil, wire.Ack{UpTo: uint64(2 - queues), Queues: queues, Level: wire.Level(queues) * wire.LevelMemory}); !strings.Contains(string(r.read(publisher)), string(want)) {
			t.Errorf("a publish that %d queues have room for is not acked so", queues)
		}
	}
	if info := r.askInfo(owner, "q"); info.Ready != 1 || info.Dropped != 1 {
		t.Errorf("the full queue is %+v", info)
	}
}

// as runs do as another user, for what the kernel notes of a socket's maker.
func as(t *testing.T, uid int, do func()) {
	t.Helper()
	runtime.LockOSThread() // this one thread is that user's
	defer runtime.UnlockOSThread()
	set := func(uid int) {
		t.Helper()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			t.Fatal(errno)
		}
	}
	set(uid)
	defer set(0)
	do()
}

// A SETTLE with numbers that cannot be is refused, changes nothing, and the connection
// lives.
func TestQueueHostileSettle(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		s := greet(t, queueBus(t, broker.Options{}), network)
		s.declare("q", wire.QueueSettings{})
		s.push("q", "x", nil).flush()
		s.expectKept(1, wire.LevelMemory)
		s.consume(wire.Consume{Sub: 1, Queue: "q"})
		s.expectDelivery(1, "x", 1)
		cases := []struct {
			f    wire.Settle
			code wire.Code
		}{
			{wire.Settle{Sub: 1, Verb: 0, First: 1, Last: 1}, wire.CodeBadOption},
			{wire.Settle{Sub: 1, Verb: 5, First: 1, Last: 1}, wire.CodeBadOption},
			{wire.Settle{Sub: 1, Verb: 255, First: 1, Last: 1}, wire.CodeBadOption},
			{wire.Settle{Sub: 1, Verb: wire.VerbAck, First: 2, Last: 1}, wire.CodeBadOption},
			{wire.Settle{Sub: 1, Verb: wire.VerbAck, First: math.MaxUint64, Last: 0}, wire.CodeBadOption},
			{wire.Settle{Sub: 1, Verb: wire.VerbNack, First: 1, Last: 1, Arg: math.MaxInt64}, wire.CodeBadOption},
			{wire.Settle{Sub: 1, Verb: wire.VerbExtend, First: 1, Last: 1, Arg: 1 << 43}, wire.CodeBadOption},
			{wire.Settle{Sub: 1, Verb: wire.VerbReject, First: 1, Last: 1, Reason: make([]byte, wire.MaxReason+1)}, wire.CodeBadOption},
			{wire.Settle{Sub: 0, Verb: wire.VerbAck, First: 1, Last: 1}, wire.CodeLeaseLost},
			{wire.Settle{Sub: math.MaxUint32, Verb: wire.VerbAck, First: 1, Last: 1}, wire.CodeLeaseLost},
			{wire.Settle{Sub: 1, Verb: wire.VerbAck, First: 0, Last: 0}, wire.CodeLeaseLost},
			{wire.Settle{Sub: 1, Verb: wire.VerbAck, First: 2, Last: math.MaxUint64}, wire.CodeLeaseLost},
			{wire.Settle{Sub: 1, Verb: wire.VerbReject, First: math.MaxUint64, Last: math.MaxUint64}, wire.CodeLeaseLost},
		}
		for i, c := range cases {
			s.settle(c.f).flush()
			if e := s.expectError(c.code); e.Settle != uint64(i+1) || e.Sub != c.f.Sub {
				t.Errorf("%+v is refused with %+v", c.f, e)
			}
			s.expectSettled(uint64(i + 1))
		}
		if info := s.info("q"); info.Leased != 1 {
			t.Errorf("afterwards: %+v", info)
		}
		s.ack(1, 0, math.MaxUint64).flush() // the one it has, and all that it has not
		s.expectError(wire.CodeLeaseLost)
		s.expectSettled(uint64(len(cases) + 1))
		if info := s.info("q"); info.Leased+info.Ready != 0 || info.Acked != 1 {
			t.Errorf("acked, it is %+v", info)
		}
	})
}

// Pushes that came in one packet to a full block queue are acked one by one, each as it
// finds room.
func TestQueueHostileBlockedPair(t *testing.T) {
	eachLevel(t, func(t *testing.T, network, level string) {
		bus := queueBus(t, broker.Options{})
		s, c := greet(t, bus, network), greet(t, bus, network)
		s.declare("q", wire.QueueSettings{Level: level, MaxMessages: 1, WhenFull: "block"})
		s.push("q", "1", nil).flush()
		s.expectKept(1, levels[level])
		s.push("q", "2", nil).push("q", "3", nil).ping(1).flush()
		s.expectPong(1)
		c.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: 1})
		for seq := uint64(1); seq <= 2; seq++ {
			if d := c.delivery(1); string(d.Body) != fmt.Sprint(seq) {
				t.Fatalf("delivery %d is %q", seq, d.Body)
			}
			c.ack(1, seq, seq).flush()
			c.confirmed(seq)
			s.expectKept(seq+1, levels[level])
		}
	})
}

// Many peeks at large bodies, of a client that does not read, take no more memory than
// a few; read, they are all answered.
func TestQueueHostilePeeks(t *testing.T) {
	const peeks, n, size = 400, 8, 32 << 10 // 100 MiB
	bus := queueBus(t, broker.Options{})
	s, c := greet(t, bus, "unix"), greet(t, bus, "unix")
	s.declare("q", wire.QueueSettings{})
	s.pushBodies("q", strings.Repeat("x", size), n)
	for i := range peeks {
		c.cold(wire.TypeQueue, &wire.Queue{Token: uint64(i + 1), Op: wire.OpPeek, Queue: "q", Sub: 9, Limit: n})
	}
	c.flush()
	for range 100 { // it does not read for as many turns
		if got := bus.Stats().Buffered; got > 8<<20 {
			t.Fatalf("%d bytes are buffered", got)
		}
	}
	for i := range peeks {
		messages := 0
		for typ, payload := c.next(); typ != wire.TypeQueued; typ, payload = c.next() {
			switch typ {
			case wire.TypeMessage:
				messages++
			case wire.TypeTarget:
			default:
				t.Fatalf("peek %d: got %v %.100q", i, typ, payload)
			}
		}
		if messages != n {
			t.Fatalf("peek %d shows %d messages of %d", i, messages, n)
		}
	}
}
