package broker_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

// What consumers and pushers on connections of their own see of a queue is what they
// would see of one to which it all happens one after the other: FIFO but for priority,
// keys and delays, one lease at a time, nothing lost, nothing invented, every return
// counted as a try.
func TestQueueLinearizable(t *testing.T) {
	rounds := 6
	if broker.RaceEnabled {
		rounds = 3
	}
	if os.Getenv("POSTBUS_FULL") == "1" {
		rounds *= 50
	}
	for level := range levels {
		t.Run(level, func(t *testing.T) {
			bus := queueBus(t, broker.Options{})
			for round := range rounds {
				var all sync.WaitGroup
				for range 3 { // histories at a time
					h := newHistory(t, bus, level, rand.Uint64())
					all.Go(h.record)
				}
				all.Wait()
				if t.Failed() {
					t.Fatalf("round %d of %d", round, rounds)
				}
			}
		})
	}
}

// history is what clients of one queue did and saw.
type history struct {
	t     *testing.T
	bus   *brokertest.Bus
	name  string
	seed  uint64
	begin time.Time
	ended atomic.Bool

	mu        sync.Mutex
	ops       []porcupine.Operation
	pushes    map[string][]int  // places in ops of what is said of the message with this body
	numbers   map[string]uint16 // by body, of what was delivered
	consumers byte              // how many there were
}

const (
	pushers = 2
	pushed  = 14 // by each
	slots   = 3  // consumers at a time
)

var queueNumber atomic.Uint64

func newHistory(t *testing.T, bus *brokertest.Bus, level string, seed uint64) *history {
	h := &history{t: t, bus: bus, seed: seed, begin: time.Now(), pushes: map[string][]int{}, numbers: map[string]uint16{}, name: fmt.Sprint("q", queueNumber.Add(1))}
	greet(t, bus, "unix").declare(h.name, wire.QueueSettings{Level: level, MaxTries: -1})
	return h
}

// now is a moment of the history.
func (h *history) now() int64 { return time.Since(h.begin).Nanoseconds() }

// never is when what may happen at any time later has happened.
const never = math.MaxInt64

func (h *history) add(call, ret int64, a action) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{Input: a, Call: call, Return: ret})
	return len(h.ops) - 1
}

// record has clients use the queue until it is empty, and judges what they saw.
func (h *history) record() {
	var pushing, consuming sync.WaitGroup
	for i := range pushers {
		pushing.Go(func() { h.try(func(r *rand.Rand) error { return h.push(r, i) }, uint64(i)) })
	}
	for i := range slots {
		consuming.Go(func() { h.try(h.consume, uint64(100+i)) })
	}
	pushing.Wait()
	h.try(func(*rand.Rand) error { return h.watch() }, 200)
	h.ended.Store(true)
	consuming.Wait()
	if !h.t.Failed() {
		h.judge()
	}
}

// try reports what went wrong in a client.
func (h *history) try(client func(*rand.Rand) error, n uint64) {
	if err := client(rand.New(rand.NewPCG(h.seed, n))); err != nil {
		h.t.Errorf("seed %d, client %d: %v", h.seed, n, err)
		h.ended.Store(true)
	}
}

func (h *history) judge() {
	ops := h.hindsight()
	begin := time.Now()
	switch porcupine.CheckOperationsTimeout(queueModel, ops, time.Minute) {
	case porcupine.Illegal:
		h.t.Errorf("seed %d: the history of %d operations is impossible (%s):\n%s", h.seed, len(ops), h.t.Name(), explain(ops))
	case porcupine.Unknown:
		h.t.Logf("seed %d: the history of %d operations could not be judged in %v", h.seed, len(ops), time.Since(begin))
	}
	if wrong := exchanged(ops); wrong != nil && porcupine.CheckOperationsTimeout(queueModel, wrong, time.Minute) == porcupine.Ok {
		h.t.Errorf("seed %d: with two deliveries exchanged the history passes too", h.seed)
	}
}

// explain tells how far the checker comes, and what then has no place.
func explain(ops []porcupine.Operation) string {
	_, info := porcupine.CheckOperationsVerbose(queueModel, ops, time.Minute)
	var longest []int
	for _, l := range info.PartialLinearizations()[0] {
		if len(l) > len(longest) {
			longest = l
		}
	}
	var text strings.Builder
	state := queueModel.Init()
	for _, i := range longest {
		_, state = queueModel.Step(state, ops[i].Input, nil)
		fmt.Fprintf(&text, "%9d %9d %v\n", ops[i].Call/1000, ops[i].Return/1000, ops[i].Input)
	}
	fmt.Fprintf(&text, "-- then the queue is %s, and there is no place for\n", queueModel.DescribeState(state))
	for i, op := range ops {
		if !slices.Contains(longest, i) {
			fmt.Fprintf(&text, "%9d %9d %v\n", op.Call/1000, op.Return/1000, op.Input)
		}
	}
	return text.String()
}

// voice is a connection in a goroutine: its errors are returned.
type voice struct {
	*history
	conn *net.UnixConn
	r    *wire.Reader
	out  []byte
}

func (h *history) connect(network string) (*voice, error) {
	a, err := wire.ParseAddress(h.bus.Address(network))
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Net: network, Name: a[0].Path})
	if err != nil {
		return nil, err
	}
	v := &voice{history: h, conn: conn, r: wire.NewReader(conn, true)}
	v.out = wire.AppendCold(nil, wire.TypeHello, &wire.Hello{Version: wire.Version, Client: h.name})
	_, err = v.say(time.Minute)
	if err != nil {
		conn.Close()
	}
	return v, err
}

// say sends what is in out, and returns the next frame, nil if none comes in that time.
func (v *voice) say(patience time.Duration) ([]byte, error) {
	if err := wire.WriteFrames(v.conn, v.out, wire.DefaultMaxPacket); err != nil {
		return nil, err
	}
	v.out = v.out[:0]
	if err := v.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	payload, err := v.r.Next()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil
	}
	return payload, err
}

// push pushes some, waiting for each one.
func (h *history) push(rnd *rand.Rand, n int) error {
	v, err := h.connect([]string{"unix", "unixpacket"}[n%2])
	if err != nil {
		return err
	}
	defer v.conn.Close()
	for i := range pushed {
		a := action{kind: actPush}
		body := fmt.Sprintf("%d of %d", i, n)
		var o wire.PublishOptions
		switch rnd.IntN(6) {
		case 0, 1:
			a.key = byte(1 + rnd.IntN(2))
			o.Key = fmt.Sprint(a.key)
		case 2:
			a.priority = byte(rnd.IntN(3))
			o.Priority = int(a.priority)
		case 3:
			a.id = byte(1 + rnd.IntN(8)) // the other one has these too
			o.ID = fmt.Sprint(a.id)
		case 4:
			a.delayed = true
			o.DelayMS = int64(1 + rnd.IntN(3))
		}
		p := wire.Publish{Topic: []byte(wire.QueueTopic + h.name), Body: []byte(body), Options: wire.AppendOptions(nil, &o)}
		v.out = wire.AppendPublish(v.out, &p)
		call := h.now()
		payload, err := v.say(time.Minute)
		if err != nil {
			return err
		}
		var ack wire.Ack
		if err := ack.Decode(payload); err != nil || ack.UpTo != uint64(i+1) || ack.Queues != 1 {
			return fmt.Errorf("push %d is answered by %q: %+v, %v", i, payload, ack, err)
		}
		places := []int{h.add(call, h.now(), a)}
		if a.delayed {
			places = append(places, h.add(call, never, action{kind: actDue}))
		}
		h.mu.Lock()
		h.pushes[body] = places
		h.mu.Unlock()
	}
	return nil
}

// watch looks at the queue until it is empty.
func (h *history) watch() error {
	v, err := h.connect("unix")
	if err != nil {
		return err
	}
	defer v.conn.Close()
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until) && !h.ended.Load(); {
		v.out = wire.AppendCold(v.out, wire.TypeQueue, &wire.Queue{Token: 1, Op: wire.OpInfo, Queue: h.name})
		call := h.now()
		payload, err := v.say(time.Minute)
		if err != nil {
			return err
		}
		var q wire.Queued
		if err := wire.DecodeCold(payload, &q); err != nil || len(q.Queues) != 1 {
			return fmt.Errorf("info is answered by %q, %v", payload, err)
		}
		i := &q.Queues[0]
		counts := [3]int{int(i.Ready), int(i.Delayed), int(i.Leased)}
		h.add(call, h.now(), action{kind: actLook, counts: counts})
		if counts == [3]int{} {
			return nil
		}
		if payload, err := v.say(5 * time.Millisecond); payload != nil || err != nil {
			return fmt.Errorf("unasked: %q, %v", payload, err)
		}
	}
	return errors.New("the queue does not become empty")
}
