package broker_test

import (
	"strings"
	"testing"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// A push whose id is that of another one in the same turn is not kept when the other is
// not: both are refused, or both wait until there is room.
func TestQueueDuplicateOfUnkept(t *testing.T) {
	body := strings.Repeat("x", 4000)
	fill := func(t *testing.T, bus *brokertest.Bus, settings wire.QueueSettings) (n int) {
		s, look := greet(t, bus, "unix"), greet(t, bus, "unix")
		settings.Level = "kernel"
		s.declare("q", settings)
		for look.info("q").Trouble == "" {
			if n++; n > 100_000 {
				t.Skip("this kernel's queues are too large to fill")
			}
			s.push("q", body, nil).ping(1).flush()
			for typ, _ := s.next(); typ != wire.TypePong; typ, _ = s.next() {
			}
		}
		return n
	}
	twice := &wire.PublishOptions{ID: "a"}
	t.Run("reject", func(t *testing.T) {
		bus := queueBus(t, broker.Options{})
		fill(t, bus, wire.QueueSettings{})
		s := greet(t, bus, "unix")
		s.push("q", body, twice).push("q", body, twice).flush()
		for i := range 2 {
			if e := s.expectError(wire.CodeFull); e.Publish != uint64(i+1) {
				t.Errorf("refused: %+v", e)
			}
		}
	})
	t.Run("block", func(t *testing.T) {
		bus := queueBus(t, broker.Options{})
		n := fill(t, bus, wire.QueueSettings{WhenFull: "block"})
		s, c := greet(t, bus, "unix"), greet(t, bus, "unix")
		s.push("q", "first", twice).push("q", "second", twice).ping(2).flush()
		s.expectPong(2) // both wait
		c.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: 100})
		last := ""
		for i := range n + 1 {
			d := c.delivery(1)
			last = string(d.Body)
			c.ack(1, d.Seq, d.Seq).flush()
			c.confirmed(uint64(i + 1))
		}
		if last != "first" {
			t.Errorf("the last is %.20q", last)
		}
		for ack := (wire.Ack{}); ack.UpTo < 2; {
			if err := ack.Decode(s.expect(wire.TypeAck)); err != nil {
				t.Fatal(err)
			}
		}
		if info := greet(t, bus, "unix").info("q"); info.Acked != uint64(n+1) || info.Ready+info.Leased != 0 {
			t.Errorf("afterwards: %+v", info)
		}
	})
}

// A kill between a message and the mark of its id leaves the message alone: its id is
// remembered from then on, beyond its ack and another kill.
func TestQueueMarkLost(t *testing.T) {
	for _, level := range []string{"kernel", "disk"} {
		t.Run(level, func(t *testing.T) {
			dir := stateDir(t)
			bus := queueBus(t, broker.Options{StateDir: dir})
			s := greet(t, bus, "unix")
			s.declare("q", wire.QueueSettings{Level: level})
			s.push("q", "x", &wire.PublishOptions{ID: "a"}).flush()
			s.expectKept(1, levels[level])
			bus.Close()
			forgetMarks(t, dir, level)

			bus = queueBus(t, broker.Options{StateDir: dir})
			s = greet(t, bus, "unix")
			s.consume(wire.Consume{Sub: 1, Queue: "q"})
			d := s.delivery(1)
			s.ack(1, d.Seq, d.Seq).flush()
			s.confirmed(1)
			bus.Close()

			bus = queueBus(t, broker.Options{StateDir: dir})
			s = greet(t, bus, "unix")
			s.push("q", "x", &wire.PublishOptions{ID: "a"}).flush()
			s.expectKept(1, levels[level])
			if info := s.info("q"); info.Duplicates != 1 || info.Ready != 0 {
				t.Errorf("pushed again: %+v", info)
			}
		})
	}
}

// forgetMarks removes all marks from the store of queue q.
func forgetMarks(t *testing.T, dir, level string) {
	t.Helper()
	open := map[string]func() (store.Store, error){
		"kernel": func() (store.Store, error) { return store.OpenSysV(dir, "q", nil) },
		"disk":   func() (store.Store, error) { return store.OpenDisk(dir, "q", nil) },
	}
	st, err := open[level]()
	if err != nil {
		t.Fatal(err)
	}
	if st.Stats().Marks != 1 {
		t.Fatalf("the store has %+v", st.Stats())
	}
	if err := st.Forget(store.MaxSeq); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
}
