package broker_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// Dead letters go to the queue named for them, say where they come from, and go back.
func TestQueueDeadLetterQueue(t *testing.T) {
	eachLevel(t, func(t *testing.T, network, level string) {
		bus := queueBus(t, broker.Options{})
		s := greet(t, bus, network)
		s.declare("dead", wire.QueueSettings{Level: level})
		s.declare("jobs", wire.QueueSettings{Level: level, DeadLetter: "dead", MaxTries: 1})
		s.push("jobs", "bad", &wire.PublishOptions{Key: "k", Priority: 3}).push("jobs", "worse", nil).flush()
		s.expectKept(2, levels[level])
		c := greet(t, bus, network)
		c.consume(wire.Consume{Sub: 1, Queue: "jobs"})
		c.expectDelivery(1, "bad", 1)
		c.expectDelivery(1, "worse", 1)
		c.settle(wire.Settle{Sub: 1, Verb: wire.VerbReject, First: 1, Last: 1, Reason: []byte("no such file")})
		c.settle(wire.Settle{Sub: 1, Verb: wire.VerbNack, First: 2, Last: 2}).flush()
		c.expectSettled(2)

		d := greet(t, bus, network)
		d.consume(wire.Consume{Sub: 2, Queue: "dead"})
		first := d.delivery(2)
		if string(first.Body) != "bad" || first.Origin != "jobs" || first.Reason != "rejected: no such file" || first.Key != "k" || first.Priority != 3 || string(first.Topic) != "@queue/jobs" {
			t.Errorf("the dead letter is %+v %+v", first.Message, first.MessageInfo)
		}
		if second := d.delivery(2); string(second.Body) != "worse" || !strings.HasPrefix(second.Reason, "max-tries: 1 deliveries") {
			t.Errorf("the second is %+v", second.MessageInfo)
		}
		d.conn.Close()
		bus.Eventually(t, "the dead letters are back in their queue", func(broker.Stats) bool { return s.info("dead").Ready == 2 })
		if info := s.info("jobs"); info.Dead+info.Ready+info.Leased != 0 {
			t.Errorf("the queue they came from: %+v", info)
		}
		if a := s.ask(wire.Queue{Op: wire.OpRequeue, Queue: "dead"}); a.Count != 2 {
			t.Errorf("requeue: %+v", a)
		}
		c.expectDelivery(1, "bad", 1)
		if again := c.expectDelivery(1, "worse", 1); again.Origin != "" {
			t.Errorf("requeued it still is %+v", again.MessageInfo)
		}
	})
}

func TestQueueDrainPauseDelete(t *testing.T) {
	eachLevel(t, func(t *testing.T, network, level string) {
		bus := queueBus(t, broker.Options{})
		s, c := greet(t, bus, network), greet(t, bus, network)
		s.declare("q", wire.QueueSettings{Level: level})
		s.push("q", "1", nil).push("q", "2", nil).flush()
		s.expectKept(2, levels[level])
		s.ask(wire.Queue{Op: wire.OpPause, Queue: "q"})
		c.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: 1})
		if info := s.info("q"); !info.Paused || info.Ready != 2 || info.Consumers != 1 {
			t.Errorf("paused: %+v", info)
		}
		s.ask(wire.Queue{Op: wire.OpResume, Queue: "q"})
		c.expectDelivery(1, "1", 1)

		waiter := greet(t, bus, network)
		waiter.cold(wire.TypeQueue, &wire.Queue{Token: 5, Op: wire.OpDrain, Queue: "q"}).ping(1).flush()
		waiter.expectPong(1)
		s.push("q", "3", nil).ping(2).flush()
		if e := s.expectError(wire.CodeDraining); e.Publish != 3 {
			t.Errorf("a push while draining: %+v", e)
		}
		s.expectPong(2)
		c.ack(1, 1, 1).flush()
		c.confirmed(1)
		c.expectDelivery(1, "2", 1)
		c.ack(1, 2, 2).flush()
		c.confirmed(2)
		var a wire.Queued
		if waiter.expectCold(wire.TypeQueued, &a); a.Token != 5 {
			t.Errorf("drained: %+v", a)
		}
		s.ask(wire.Queue{Op: wire.OpResume, Queue: "q"})
		s.push("q", "4", nil).flush()
		s.expectKept(4, levels[level])
		c.expectDelivery(1, "4", 1)
		s.ask(wire.Queue{Op: wire.OpDelete, Queue: "q"})
		if e := c.expectError(wire.CodeNotFound); e.Sub != 1 {
			t.Errorf("a consumer of a deleted queue is told %+v", e)
		}
		c.ack(1, 3, 3).flush()
		c.expectError(wire.CodeLeaseLost)
		c.expectSettled(3)
		s.push("q", "5", nil).ping(3).flush()
		s.expectError(wire.CodeNotFound)
		s.expectPong(3)
	})
}

// A backlog far beyond what is kept of bodies in memory comes out whole and in order.
func TestQueueBacklogOnDisk(t *testing.T) {
	bus := queueBus(t, broker.Options{})
	s := greet(t, bus, "unixpacket")
	s.declare("q", wire.QueueSettings{Level: "disk"})
	const n = 3000
	body := strings.Repeat("x", 8000) // three times the cache
	for i := range n {
		s.push("q", fmt.Sprintf("%d %s", i, body), nil)
		if i%100 == 99 {
			s.flush()
			for upto := uint64(0); upto < uint64(i+1); {
				var a wire.Ack
				if err := a.Decode(s.expect(wire.TypeAck)); err != nil {
					t.Fatal(err)
				}
				upto = a.UpTo
			}
		}
	}
	next := 0
	for _, consumer := range []struct{ prefetch, take int }{{7, 500}, {1000, n - 500}} {
		c := greet(t, bus, "unix")
		c.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: consumer.prefetch})
		for i := range consumer.take {
			d := c.delivery(1)
			if want := fmt.Sprintf("%d ", next); !strings.HasPrefix(string(d.Body), want) || d.Seq != uint64(next+1) {
				t.Fatalf("message %d is %d: %.20q", next, d.Seq, d.Body)
			}
			next++
			c.ack(1, d.Seq, d.Seq).flush()
			c.confirmed(uint64(i + 1))
		}
		c.conn.Close()
	}
	bus.Eventually(t, "all is acked", func(broker.Stats) bool { return s.info("q").Acked == n })
}

// Somebody removes a kernel queue under the broker: what is lost is counted and told,
// and the queue goes on.
func TestQueueLostInKernel(t *testing.T) {
	if _, err := exec.LookPath("ipcrm"); err != nil {
		t.Skip("ipcrm is not installed")
	}
	dir := stateDir(t)
	bus := queueBus(t, broker.Options{StateDir: dir})
	s := greet(t, bus, "unix")
	s.declare("q", wire.QueueSettings{Level: "kernel"})
	s.subscribe(wire.Subscribe{Sub: 4, Filters: []string{"@sys/queue/+/lost"}})
	s.push("q", "gone", nil).push("q", "gone too", nil).flush()
	s.expectKept(2, wire.LevelKernel)
	key, err := store.Ftok(filepath.Join(dir, "q.key"), 1)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ipcrm", "-Q", key.String()).CombinedOutput(); err != nil {
		t.Fatalf("ipcrm: %v %s", err, out)
	}
	s.push("q", "kept", nil).flush()
	s.expectKeptAmid(3)
	info := s.info("q")
	if info.Lost != 2 || info.Ready != 1 {
		t.Errorf("afterwards: %+v", info)
	}
	s.consume(wire.Consume{Sub: 1, Queue: "q"})
	s.expectDelivery(1, "kept", 1)
}

// expectKeptAmid reads up to the ACK of publish upto, over messages.
func (s *speaker) expectKeptAmid(upto uint64) {
	s.t.Helper()
	for {
		switch t, payload := s.next(); t {
		case wire.TypeAck:
			var a wire.Ack
			if err := a.Decode(payload); err != nil || a.UpTo != upto {
				s.t.Fatalf("got %+v, %v", a, err)
			}
			return
		case wire.TypeMessage, wire.TypeTarget:
		default:
			s.t.Fatalf("got %v %q", t, payload)
		}
	}
}

// A kernel queue that is full does what its when-full says.
func TestQueueKernelFull(t *testing.T) {
	body := strings.Repeat("x", 4000)
	fill := func(s *speaker, settings wire.QueueSettings) (n int) {
		settings.Level = "kernel"
		s.declare("q", settings)
		for {
			for range 50 {
				s.push("q", body, nil)
			}
			s.ping(1).flush()
			for pong, acked := false, uint64(n); !pong || acked < uint64(n+50); {
				switch typ, payload := s.next(); typ {
				case wire.TypePong:
					pong = true
					if settings.WhenFull != "reject" && n+50 > 1016 {
						return n + 50
					}
				case wire.TypeAck:
					var a wire.Ack
					if err := a.Decode(payload); err != nil {
						s.t.Fatal(err)
					}
					acked = a.UpTo
				case wire.TypeError:
					var e wire.ErrorBody
					if err := wire.DecodeCold(payload, &e); err != nil || e.Code != wire.CodeFull || !strings.Contains(e.Text, "kernel.msgmnb") {
						s.t.Fatalf("got %+v, %v", e, err)
					}
					return int(e.Publish) - 1
				}
			}
			n += 50
		}
	}
	t.Run("reject", func(t *testing.T) {
		bus := queueBus(t, broker.Options{})
		n := fill(greet(t, bus, "unix"), wire.QueueSettings{WhenFull: "reject"})
		s := greet(t, bus, "unix")
		if info := s.info("q"); info.Ready != int64(n) || n < 500 || info.Trouble == "" {
			t.Errorf("%d were taken: %+v", n, info)
		}
		s.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: 100})
		for range 100 {
			s.delivery(1)
		}
		s.ack(1, 1, 100).flush()
		s.confirmed(1)
		p := greet(t, bus, "unix")
		p.push("q", body, nil).flush()
		p.expectKept(1, wire.LevelKernel)
	})
	t.Run("drop-old", func(t *testing.T) {
		bus := queueBus(t, broker.Options{})
		s := greet(t, bus, "unix")
		n := fill(s, wire.QueueSettings{WhenFull: "drop-old"})
		s = greet(t, bus, "unix")
		bus.Eventually(t, "old ones are dropped", func(broker.Stats) bool {
			info := s.info("q")
			return info.Dropped > 0 && info.Ready+int64(info.Dropped) == int64(n)
		})
	})
	t.Run("block", func(t *testing.T) {
		bus := queueBus(t, broker.Options{})
		pusher := greet(t, bus, "unix")
		n := fill(pusher, wire.QueueSettings{WhenFull: "block"})
		s := greet(t, bus, "unix")
		s.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: 50})
		for i := range n {
			d := s.delivery(1)
			if d.Seq != uint64(i+1) && i == 0 {
				t.Fatalf("delivery %d is message %d", i, d.Seq)
			}
			s.ack(1, d.Seq, d.Seq).flush()
			s.confirmed(uint64(i + 1))
		}
		if info := s.info("q"); info.Ready+info.Leased != 0 || info.Acked != uint64(n) {
			t.Errorf("afterwards: %+v", info)
		}
	})
}

// A queue that cannot be opened is there, says why, and hinders no other.
func TestQueueBrokenAtStart(t *testing.T) {
	dir := stateDir(t)
	bus := queueBus(t, broker.Options{StateDir: dir})
	s := greet(t, bus, "unix")
	s.declare("bad", wire.QueueSettings{Level: "disk"})
	s.push("bad", "x", nil).flush()
	s.expectKept(1, wire.LevelDisk)
	bus.Close()
	files, err := filepath.Glob(filepath.Join(dir, "bad.disk", "*.seg"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if err := os.Truncate(file, 100); err != nil {
			t.Fatal(err)
		}
	}
	bus = queueBus(t, broker.Options{StateDir: dir})
	s = greet(t, bus, "unix")
	if info := s.info("bad"); !strings.Contains(info.Trouble, "damage") {
		t.Errorf("a damaged queue is told as %+v", info)
	}
	s.push("bad", "x", nil).ping(1).flush()
	s.expectError(wire.CodeStore)
	s.expectPong(1)
	s.refused(wire.Queue{Op: wire.OpPurge, Queue: "bad"}, wire.CodeStore)
	s.declare("good", wire.QueueSettings{Level: "disk"})
	s.push("good", "x", nil).flush()
	s.expectKept(2, wire.LevelDisk)
	s.ask(wire.Queue{Op: wire.OpDelete, Queue: "bad"})
	s.declare("bad", wire.QueueSettings{Level: "disk"})
}

// A dead letter whose queue was not there goes to it after a restart.
func TestQueueBuriesAgain(t *testing.T) {
	for _, level := range []string{"kernel", "disk"} {
		t.Run(level, func(t *testing.T) {
			dir := stateDir(t)
			bus := queueBus(t, broker.Options{StateDir: dir})
			s := greet(t, bus, "unix")
			s.declare("jobs", wire.QueueSettings{Level: level, DeadLetter: "dead"})
			s.push("jobs", "bad", nil).flush()
			s.expectKept(1, levels[level])
			s.consume(wire.Consume{Sub: 1, Queue: "jobs"})
			s.expectDelivery(1, "bad", 1)
			s.settle(wire.Settle{Sub: 1, Verb: wire.VerbReject, First: 1, Last: 1}).flush()
			s.confirmed(1)
			if info := s.info("jobs"); info.Dead != 1 {
				t.Errorf("while there is no queue for dead letters: %+v", info)
			}
			s.declare("dead", wire.QueueSettings{Level: level})
			bus.Close()

			bus = queueBus(t, broker.Options{StateDir: dir})
			s = greet(t, bus, "unix")
			bus.Eventually(t, "it is moved", func(broker.Stats) bool { return s.info("dead").Ready == 1 && s.info("jobs").Dead == 0 })
			s.consume(wire.Consume{Sub: 1, Queue: "dead"})
			if d := s.delivery(1); string(d.Body) != "bad" || d.Origin != "jobs" || d.Reason != "rejected" {
				t.Errorf("it is %q, %+v", d.Body, d.MessageInfo)
			}
		})
	}
}
