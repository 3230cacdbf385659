package broker_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

var levels = map[string]wire.Level{"memory": wire.LevelMemory, "kernel": wire.LevelKernel, "disk": wire.LevelDisk}

// queueBus starts a broker with a state directory whose kernel queues are removed at the
// test's end.
func queueBus(t *testing.T, opts broker.Options) *brokertest.Bus {
	t.Helper()
	if opts.StateDir == "" {
		opts.StateDir = stateDir(t)
	}
	return brokertest.Start(t, &opts)
}

// stateDir returns a state directory whose queues are removed at the test's end.
func stateDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	t.Cleanup(func() {
		keys, _ := filepath.Glob(filepath.Join(dir, "*.key"))
		for _, key := range keys {
			if err := store.DeleteSysV(dir, strings.TrimSuffix(filepath.Base(key), ".key")); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

// eachLevel runs a test with a queue of each level, on both socket types.
func eachLevel(t *testing.T, test func(t *testing.T, network, level string)) {
	for level := range levels {
		t.Run(level, func(t *testing.T) {
			brokertest.EachTransport(t, func(t *testing.T, network string) { test(t, network, level) })
		})
	}
}

// ask sends a QUEUE frame and returns the answer.
func (s *speaker) ask(f wire.Queue) wire.Queued {
	s.t.Helper()
	f.Token = 77
	s.cold(wire.TypeQueue, &f).flush()
	var a wire.Queued
	s.expectCold(wire.TypeQueued, &a)
	if a.Token != f.Token {
		s.t.Fatalf("QUEUED has token %d", a.Token)
	}
	return a
}

func (s *speaker) declare(name string, settings wire.QueueSettings) wire.QueueInfo {
	s.t.Helper()
	a := s.ask(wire.Queue{Op: wire.OpDeclare, Queue: name, Settings: &settings})
	if len(a.Queues) != 1 || a.Queues[0].Name != name {
		s.t.Fatalf("declare is answered by %+v", a)
	}
	return a.Queues[0]
}

func (s *speaker) info(name string) wire.QueueInfo {
	s.t.Helper()
	return s.ask(wire.Queue{Op: wire.OpInfo, Queue: name}).Queues[0]
}

// refused sends a QUEUE frame and expects an error.
func (s *speaker) refused(f wire.Queue, code wire.Code) string {
	s.t.Helper()
	f.Token = 78
	s.cold(wire.TypeQueue, &f).flush()
	e := s.expectError(code)
	if e.Token != f.Token {
		s.t.Fatalf("the error has token %d", e.Token)
	}
	return e.Text
}

// push pushes with options; nil are none.
func (s *speaker) push(queue, body string, o *wire.PublishOptions) *speaker {
	p := wire.Publish{Topic: []byte(wire.QueueTopic + queue), Body: []byte(body)}
	if o != nil {
		p.Options = wire.AppendOptions(nil, o)
	}
	s.out = wire.AppendPublish(s.out, &p)
	return s
}

func (s *speaker) expectKept(upto uint64, level wire.Level) {
	s.t.Helper()
	var a wire.Ack
	if err := a.Decode(s.expect(wire.TypeAck)); err != nil {
		s.t.Fatal(err)
	}
	if a != (wire.Ack{UpTo: upto, Queues: 1, Level: level}) {
		s.t.Fatalf("got %+v, want up to %d at level %v", a, upto, level)
	}
}

func (s *speaker) consume(c wire.Consume) {
	s.t.Helper()
	s.cold(wire.TypeConsume, &c).flush()
	var got wire.Subscribed
	s.expectCold(wire.TypeSubscribed, &got)
	if got.Sub != c.Sub {
		s.t.Fatalf("SUBSCRIBED is for %d, not %d", got.Sub, c.Sub)
	}
}

// got is a delivery.
type got struct {
	wire.Message
	wire.MessageInfo
}

// delivery reads the next delivery, to sub.
func (s *speaker) delivery(sub uint32) got {
	s.t.Helper()
	if len(s.held) > 0 {
		d := s.held[0]
		s.held = s.held[1:]
		return d
	}
	t, payload := s.next()
	if t == wire.TypeTarget {
		s.target, _ = wire.DecodeTarget(payload)
		t, payload = s.next()
	}
	if t != wire.TypeMessage || s.target != sub {
		s.t.Fatalf("got %v %q for %d, want a delivery to %d", t, payload, s.target, sub)
	}
	return s.decode(payload)
}

func (s *speaker) decode(payload []byte) (d got) {
	s.t.Helper()
	if err := d.Message.Decode(payload); err != nil {
		s.t.Fatal(err)
	}
	d.Body, d.Topic = slices.Clone(d.Body), slices.Clone(d.Topic)
	if err := wire.DecodeOptions(d.Info, &d.MessageInfo); err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *speaker) expectDelivery(sub uint32, body string, tries int) got {
	s.t.Helper()
	d := s.delivery(sub)
	if string(d.Body) != body || max(d.Tries, 1) != tries {
		s.t.Fatalf("got %.80q, try %d; want %q, try %d", d.Body, d.Tries, body, tries)
	}
	return d
}

func (s *speaker) settle(f wire.Settle) *speaker {
	s.out = wire.AppendSettle(s.out, &f)
	return s
}

func (s *speaker) ack(sub uint32, first, last uint64) *speaker {
	return s.settle(wire.Settle{Sub: sub, Verb: wire.VerbAck, First: first, Last: last})
}

func (s *speaker) expectSettled(upto uint64) {
	s.t.Helper()
	if got, err := wire.DecodeSettled(s.expect(wire.TypeSettled)); err != nil || got != upto {
		s.t.Fatalf("SETTLED %d, %v; want %d", got, err, upto)
	}
}

func TestQueuePushConsumeAck(t *testing.T) {
	eachLevel(t, func(t *testing.T, network, level string) {
		bus := queueBus(t, broker.Options{})
		pusher, consumer := greet(t, bus, network), greet(t, bus, network)
		pusher.declare("jobs", wire.QueueSettings{Level: level})
		consumer.consume(wire.Consume{Sub: 1, Queue: "jobs"})
		for i := range 3 {
			pusher.push("jobs", fmt.Sprint("job ", i), nil)
		}
		pusher.flush()
		pusher.expectKept(3, levels[level])
		for i := range 3 {
			d := consumer.expectDelivery(1, fmt.Sprint("job ", i), 1)
			if d.Redelivered || d.Seq != uint64(i+1) || string(d.Topic) != "@queue/jobs" || d.Time == 0 {
				t.Errorf("delivery %d is %+v", i, d)
			}
		}
		consumer.ack(1, 1, 2).ack(1, 3, 3).flush()
		consumer.expectSettled(2)
		if info := pusher.info("jobs"); info.Ready+info.Leased != 0 || info.Acked != 3 || info.Pushed != 3 || info.Bytes != 0 {
			t.Errorf("afterwards: %+v", info)
		}
	})
}

// What was pushed and not acked is there after the broker was started again; what was
// acked is not, and settings and dedup ids are.
func TestQueueOutlivesBroker(t *testing.T) {
	for _, level := range []string{"kernel", "disk"} {
		t.Run(level, func(t *testing.T) {
			dir := stateDir(t)
			bus := queueBus(t, broker.Options{StateDir: dir})
			s := greet(t, bus, "unix")
			s.declare("jobs", wire.QueueSettings{Level: level, MaxTries: 7, Bind: []string{"a/#"}})
			for i := range 4 {
				s.push("jobs", fmt.Sprint("job ", i), &wire.PublishOptions{ID: fmt.Sprint("id ", i)})
			}
			s.flush()
			s.expectKept(4, levels[level])
			s.consume(wire.Consume{Sub: 1, Queue: "jobs", Prefetch: 2})
			s.expectDelivery(1, "job 0", 1)
			s.expectDelivery(1, "job 1", 1)
			s.ack(1, 1, 1).flush()
			s.confirmed(1)
			bus.Close()

			bus = queueBus(t, broker.Options{StateDir: dir})
			s = greet(t, bus, "unix")
			info := s.info("jobs")
			if info.Ready != 3 || info.Settings.MaxTries != 7 || !slices.Equal(info.Settings.Bind, []string{"a/#"}) {
				t.Errorf("after the restart: %+v", info)
			}
			s.push("jobs", "again", &wire.PublishOptions{ID: "id 0"}).push("jobs", "job 4", nil).flush()
			s.expectKept(2, levels[level])
			s.consume(wire.Consume{Sub: 1, Queue: "jobs"})
			if d := s.expectDelivery(1, "job 1", 2); !d.Redelivered {
				t.Error("a message that had been delivered is not marked")
			}
			s.delivery(1) // job 2 may have been delivered or not
			s.expectDelivery(1, "job 3", 1)
			if d := s.expectDelivery(1, "job 4", 1); d.Redelivered {
				t.Error("a new message is marked as redelivered")
			}
		})
	}
}

// confirmed reads until settle upto is confirmed; deliveries that come before it are
// held.
func (s *speaker) confirmed(upto uint64) {
	s.t.Helper()
	for s.settled < upto {
		switch t, payload := s.next(); t {
		case wire.TypeSettled:
			var err error
			if s.settled, err = wire.DecodeSettled(payload); err != nil || s.settled > upto {
				s.t.Fatalf("SETTLED %d, %v; want %d", s.settled, err, upto)
			}
		case wire.TypeMessage:
			s.held = append(s.held, s.decode(payload))
		case wire.TypeTarget:
			s.target, _ = wire.DecodeTarget(payload)
		default:
			s.t.Fatalf("got %v", t)
		}
	}
}

func TestQueueRedelivery(t *testing.T) {
	eachLevel(t, func(t *testing.T, network, level string) {
		bus := queueBus(t, broker.Options{})
		a, b := greet(t, bus, network), greet(t, bus, network)
		a.declare("jobs", wire.QueueSettings{Level: level, MaxTries: 3})
		a.push("jobs", "x", nil).flush()
		a.expectKept(1, levels[level])
		a.consume(wire.Consume{Sub: 5, Queue: "jobs"})
		a.expectDelivery(5, "x", 1)
		a.settle(wire.Settle{Sub: 5, Verb: wire.VerbNack, First: 1, Last: 1}).flush()
		got := 0
		for range 2 { // the confirmation and the delivery come in either order
			switch typ, payload := a.next(); typ {
			case wire.TypeSettled:
			case wire.TypeMessage:
				got++
				var m wire.Message
				if err := m.Decode(payload); err != nil || m.Info == nil {
					t.Errorf("redelivery %+v, %v", m, err)
				}
			}
		}
		if got != 1 {
			t.Fatal("a nacked message did not come again")
		}
		b.consume(wire.Consume{Sub: 1, Queue: "jobs"})
		a.conn.Close()
		b.expectDelivery(1, "x", 3)
		b.settle(wire.Settle{Sub: 1, Verb: wire.VerbNack, First: 1, Last: 1}).flush()
		b.expectSettled(1)
		if info := b.info("jobs"); info.Dead != 1 || info.Ready != 0 {
			t.Errorf("after three tries of three: %+v", info)
		}
		b.cold(wire.TypeQueue, &wire.Queue{Token: 1, Op: wire.OpPeek, Queue: "jobs", Sub: 9, State: "dead", Limit: 10}).flush()
		if d := b.delivery(9); d.State != "dead" || !strings.Contains(d.Reason, "max-tries") || d.Origin != "jobs" || d.Tries != 3 {
			t.Errorf("the dead letter is %+v", d.MessageInfo)
		}
		var q wire.Queued
		if b.expectCold(wire.TypeQueued, &q); q.Count != 1 {
			t.Errorf("peek ends with %+v", q)
		}
		if a := greet(t, bus, network).ask(wire.Queue{Op: wire.OpRequeue, Queue: "jobs"}); a.Count != 1 {
			t.Errorf("requeue: %+v", a)
		}
	})
}

func TestQueueBound(t *testing.T) {
	bus := queueBus(t, broker.Options{})
	s := greet(t, bus, "unixpacket")
	s.declare("logs", wire.QueueSettings{Bind: []string{"log/#"}})
	s.declare("all", wire.QueueSettings{Bind: []string{"#"}, Level: "kernel"})
	s.publish("log/a", "1").publish("log/b", "2").publish("other", "3").ping(1).flush()
	var acks []wire.Ack
	for len(acks) < 2 {
		typ, payload := s.next()
		if typ == wire.TypeAck {
			var a wire.Ack
			if err := a.Decode(payload); err != nil {
				t.Fatal(err)
			}
			acks = append(acks, a)
		}
	}
	want := []wire.Ack{{UpTo: 2, Queues: 2, Level: wire.LevelMemory}, {UpTo: 3, Queues: 1, Level: wire.LevelKernel}}
	if !slices.Equal(acks, want) {
		t.Errorf("acks %+v, want %+v", acks, want)
	}
	s.consume(wire.Consume{Sub: 1, Queue: "logs"})
	if d := s.expectDelivery(1, "1", 1); string(d.Topic) != "log/a" {
		t.Errorf("topic %q", d.Topic)
	}
}

func TestQueueFull(t *testing.T) {
	t.Run("reject", func(t *testing.T) {
		s := greet(t, queueBus(t, broker.Options{}), "unix")
		s.declare("q", wire.QueueSettings{MaxMessages: 2})
		s.push("q", "1", nil).push("q", "2", nil).push("q", "3", nil).ping(1).flush()
		s.expectPong(1)
		s.expectKept(2, wire.LevelMemory)
		if e := s.expectError(wire.CodeFull); e.Publish != 3 || !strings.Contains(e.Text, "q is full") {
			t.Errorf("the error is %+v", e)
		}
	})
	t.Run("block", func(t *testing.T) {
		bus := queueBus(t, broker.Options{})
		s, c := greet(t, bus, "unix"), greet(t, bus, "unix")
		s.declare("q", wire.QueueSettings{MaxMessages: 2, WhenFull: "block"})
		for i := range 5 {
			s.push("q", fmt.Sprint(i), nil)
		}
		s.ping(1).flush()
		s.expectPong(1)
		c.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: 1})
		for i := range 5 {
			d := c.expectDelivery(1, fmt.Sprint(i), 1)
			c.ack(1, d.Seq, d.Seq).flush()
			c.expectSettled(uint64(i + 1))
		}
		for upto := uint64(0); upto < 5; {
			var a wire.Ack
			if err := a.Decode(s.expect(wire.TypeAck)); err != nil {
				t.Fatal(err)
			}
			upto = a.UpTo
		}
	})
	t.Run("drop-old", func(t *testing.T) {
		s := greet(t, queueBus(t, broker.Options{}), "unix")
		s.declare("q", wire.QueueSettings{MaxMessages: 2, WhenFull: "drop-old"})
		s.push("q", "1", nil).push("q", "2", nil).flush()
		s.expectKept(2, wire.LevelMemory)
		s.push("q", "3", nil).flush()
		s.expectKept(3, wire.LevelMemory)
		s.consume(wire.Consume{Sub: 1, Queue: "q"})
		s.expectDelivery(1, "2", 1)
		s.expectDelivery(1, "3", 1)
	})
}

func TestQueueDeclareAgain(t *testing.T) {
	s := greet(t, queueBus(t, broker.Options{}), "unix")
	s.declare("q", wire.QueueSettings{Level: "disk", LeaseMS: 1000})
	s.declare("q", wire.QueueSettings{Level: "disk", LeaseMS: 1000})
	text := s.refused(wire.Queue{Op: wire.OpDeclare, Queue: "q", Settings: &wire.QueueSettings{Level: "disk", MaxTries: 3}}, wire.CodeConflict)
	if !strings.Contains(text, "lease is 1s, not 30s") || !strings.Contains(text, "max-tries is 10, not 3") {
		t.Errorf("the conflict is told as %q", text)
	}
	s.ask(wire.Queue{Op: wire.OpDelete, Queue: "q"})
	s.refused(wire.Queue{Op: wire.OpInfo, Queue: "q"}, wire.CodeNotFound)
	if info := s.declare("q", wire.QueueSettings{Level: "disk"}); info.Settings.LeaseMS != (30 * time.Second).Milliseconds() {
		t.Errorf("declared anew it is %+v", info)
	}
	if a := s.ask(wire.Queue{Op: wire.OpList}); len(a.Queues) != 1 || a.More {
		t.Errorf("list is %+v", a)
	}
}
