package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// queueRig is a rig with one queue and one connection that consumes it as 1.
type queueRig struct {
	*rig
	fd     int
	answer []string // what came since the last look, a word a frame
}

func newQueueRig(t *testing.T, settings wire.QueueSettings, prefetch int) *queueRig {
	t.Helper()
	r := &queueRig{rig: newRig(t, nil)}
	r.fd = r.join(unix.SOCK_STREAM, wire.AppendCold(nil, wire.TypeQueue, &wire.Queue{Op: wire.OpDeclare, Queue: "q", Settings: &settings}))
	r.do(wire.AppendCold(nil, wire.TypeConsume, &wire.Consume{Sub: 1, Queue: "q", Prefetch: prefetch}))
	r.answer = nil
	return r
}

// do sends frames and lets the broker do all it has to do at this time.
func (r *queueRig) do(frames []byte) {
	r.t.Helper()
	if len(frames) > 0 {
		r.send(r.fd, frames)
	}
	r.settle()
	for buf := r.read(r.fd); len(buf) > 0; buf = r.read(r.fd) {
		for len(buf) > 0 {
			payload, size, err := wire.Split(buf, 1<<20)
			if err != nil {
				r.t.Fatal(err)
			}
			buf = buf[size:]
			r.note(payload)
		}
		r.settle()
	}
}

func (r *queueRig) note(payload []byte) {
	switch typ, _ := wire.PeekType(payload); typ {
	case wire.TypeMessage:
		var m wire.Message
		var info wire.MessageInfo
		if err := m.Decode(payload); err != nil {
			r.t.Fatal(err)
		}
		if err := wire.DecodeOptions(m.Info, &info); err != nil {
			r.t.Fatal(err)
		}
		word := string(m.Body)
		if info.Tries > 1 {
			word += fmt.Sprint("*", info.Tries)
		}
		r.answer = append(r.answer, word)
	case wire.TypeError:
		var e wire.ErrorBody
		if err := wire.DecodeCold(payload, &e); err != nil {
			r.t.Fatal(err)
		}
		r.answer = append(r.answer, "error:"+e.Code.String())
	case wire.TypeAck:
		r.answer = append(r.answer, "ack")
	case wire.TypeSettled:
		r.answer = append(r.answer, "settled")
	}
}

// expect lets time pass and compares what came, acks of pushes apart.
func (r *queueRig) expect(after time.Duration, want string) {
	r.t.Helper()
	r.loop.Advance(after)
	r.do(nil)
	got := slices.DeleteFunc(r.answer, func(word string) bool { return word == "ack" })
	r.answer = nil
	if s := strings.Join(got, " "); s != want {
		r.t.Errorf("got %q, want %q", s, want)
	}
}

func (r *queueRig) push(body string, o wire.PublishOptions) {
	r.t.Helper()
	r.do(wire.AppendPublish(nil, &wire.Publish{Topic: []byte("@queue/q"), Body: []byte(body), Options: wire.AppendOptions(nil, &o)}))
}

func (r *queueRig) settleOne(verb wire.Verb, seq uint64, arg time.Duration) {
	r.t.Helper()
	r.do(wire.AppendSettle(nil, &wire.Settle{Sub: 1, Verb: verb, First: seq, Last: seq, Arg: arg.Milliseconds()}))
}

func TestQueueLeaseEnds(t *testing.T) {
	r := newQueueRig(t, wire.QueueSettings{LeaseMS: 10_000}, 0)
	r.push("a", wire.PublishOptions{})
	r.expect(9*time.Second, "a")
	r.settleOne(wire.VerbExtend, 1, 5*time.Second)
	r.expect(4*time.Second, "settled")
	r.expect(2*time.Second, "a*2")
	r.expect(10*time.Second, "a*3")
	r.settleOne(wire.VerbAck, 1, 0)
	r.expect(time.Minute, "settled")
	r.settleOne(wire.VerbAck, 1, 0)
	r.expect(0, "error:lease-lost settled")
}

func TestQueueDelay(t *testing.T) {
	r := newQueueRig(t, wire.QueueSettings{}, 0)
	r.push("late", wire.PublishOptions{DelayMS: 5000})
	r.push("soon", wire.PublishOptions{DelayMS: 1000})
	r.push("now", wire.PublishOptions{})
	r.expect(0, "now")
	r.expect(time.Second, "soon")
	r.settleOne(wire.VerbNack, 2, 2*time.Second)
	r.expect(time.Second, "settled")
	r.expect(time.Second, "soon*2")
	r.expect(2*time.Second, "late")
}

func TestQueuePriorityAndKey(t *testing.T) {
	r := newQueueRig(t, wire.QueueSettings{}, 1)
	r.push("first", wire.PublishOptions{Key: "k"})
	r.push("second", wire.PublishOptions{Key: "k", Priority: 9})
	r.push("low", wire.PublishOptions{})
	r.push("high", wire.PublishOptions{Priority: 5})
	r.expect(0, "first")
	r.settleOne(wire.VerbNack, 1, time.Second)
	r.expect(0, "settled high")
	r.settleOne(wire.VerbAck, 4, 0)
	r.expect(0, "settled low")
	r.settleOne(wire.VerbAck, 3, 0)
	r.expect(0, "settled")
	r.expect(time.Second, "first*2")
	r.settleOne(wire.VerbAck, 1, 0)
	r.expect(0, "settled second")
}

func TestQueueTTLAndDedup(t *testing.T) {
	r := newQueueRig(t, wire.QueueSettings{TTLMS: 1000, DedupMS: 5000}, 1)
	r.push("a", wire.PublishOptions{ID: "1"})
	r.push("b", wire.PublishOptions{ID: "2"})
	r.push("b", wire.PublishOptions{ID: "2"})
	r.push("c", wire.PublishOptions{ID: "3", TTLMS: 60_000})
	r.expect(2*time.Second, "a")
	r.settleOne(wire.VerbAck, 1, 0)
	r.expect(0, "settled c")
	r.settleOne(wire.VerbAck, 3, 0)
	r.expect(0, "settled")
	r.push("a", wire.PublishOptions{ID: "1"})
	r.expect(0, "")
	r.expect(4*time.Second, "")
	r.push("a", wire.PublishOptions{ID: "1"})
	r.expect(0, "a")
}

func TestQueueBadPush(t *testing.T) {
	r := newQueueRig(t, wire.QueueSettings{}, 0)
	for name, o := range map[string]wire.PublishOptions{
		"priority": {Priority: 10}, "negative priority": {Priority: -1}, "id": {ID: strings.Repeat("x", 129)}, "key": {Key: strings.Repeat("x", 257)},
		"delay": {DelayMS: 1 << 50}, "negative ttl": {TTLMS: -1}, "far": {AtMS: 1 << 60}, "both": {AtMS: 1, DelayMS: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r.push("x", o)
			r.loop.Advance(time.Second)
			r.expect(0, "error:bad-option")
		})
	}
	r.do(wire.AppendPublish(nil, &wire.Publish{Topic: []byte("@queue/none"), Body: []byte("x")}))
	r.expect(time.Second, "error:not-found")
}
