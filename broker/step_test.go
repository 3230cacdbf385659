package broker_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/wire"
)

// rig is a loop turned by hand with raw connections to it.
type rig struct {
	t    testing.TB
	loop *broker.Stepper
	buf  []byte
}

func newRig(t testing.TB, opts *broker.Options) *rig {
	loop, err := broker.NewStepper(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(loop.Close)
	return &rig{t: t, loop: loop, buf: make([]byte, 1<<20)}
}

// join returns the client's end of a connection that has sent frames.
func (r *rig) join(kind int, frames []byte) int {
	r.t.Helper()
	fd := r.connect(kind)
	hello := wire.AppendCold(nil, wire.TypeHello, &wire.Hello{Version: 1})
	r.send(fd, append(hello, frames...))
	r.turn()
	r.drain(fd)
	return fd
}

// connect returns the client's end of a connection that has said nothing.
func (r *rig) connect(kind int) int {
	r.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { unix.Close(fds[0]) })
	r.loop.Join(fds[1], kind == unix.SOCK_SEQPACKET)
	return fds[0]
}

func (r *rig) turn() {
	if err := r.loop.Turn(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) send(fd int, b []byte) {
	if n, err := unix.Write(fd, b); err != nil || n != len(b) {
		r.t.Fatalf("write: %d of %d, %v", n, len(b), err)
	}
}

// drain reads what is there and returns how much that was.
func (r *rig) drain(fd int) int {
	total := 0
	for {
		b := r.read(fd)
		if len(b) == 0 {
			return total
		}
		total += len(b)
	}
}

// read reads once what is there. The result is good until the next read.
func (r *rig) read(fd int) []byte {
	n, err := unix.Read(fd, r.buf)
	if err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return r.buf[:n]
}

// settle turns the loop until it has nothing to do before the clock goes on.
func (r *rig) settle() {
	r.t.Helper()
	for turns := 0; r.loop.Ready(); turns++ {
		if turns == 10_000 {
			r.t.Fatal("the loop turns and turns, with nothing to do")
		}
		r.turn()
	}
}

// say sends frames, of any size and however long the broker takes to read them.
func (r *rig) say(fd int, frames []byte) {
	r.t.Helper()
	for len(frames) > 0 {
		n, _ := wire.CutAt(frames, wire.DefaultMaxPacket)
		for whole := frames[:n]; len(whole) > 0; { // one larger than a packet goes in several
			k := min(len(whole), wire.DefaultMaxPacket)
			r.part(fd, whole[:k])
			whole = whole[k:]
		}
		frames = frames[n:]
	}
	r.settle()
}

// part sends b, which fits a packet.
func (r *rig) part(fd int, b []byte) {
	r.t.Helper()
	for {
		n, err := unix.Write(fd, b)
		if err == nil && n == len(b) {
			return
		}
		if err != nil && err != unix.EAGAIN {
			r.t.Fatal(err)
		}
		if b = b[max(n, 0):]; !r.loop.Ready() {
			r.loop.Advance(5 * time.Millisecond) // it yields
			if !r.loop.Ready() {
				r.t.Fatal("the broker does not read on")
			}
		}
		r.settle()
	}
}

// said returns what the broker has to say to fd, every frame in short.
func (r *rig) said(fd int) []string {
	r.t.Helper()
	var all []string
	var rest []byte
	for r.settle(); ; r.settle() {
		b := r.read(fd)
		if len(b) == 0 {
			break
		}
		rest = append(rest, b...)
		for {
			payload, size, err := wire.Split(rest, 1<<26)
			if err == wire.ErrShort {
				break
			}
			if err != nil {
				r.t.Fatalf("after %d frames: %v", len(all), err)
			}
			all = append(all, inShort(payload))
			rest = rest[size:]
		}
	}
	if len(rest) > 0 {
		r.t.Fatalf("the broker ends after %d bytes of a frame", len(rest))
	}
	return all
}

// expect checks the frames that the broker has to say to fd.
func (r *rig) expect(fd int, want ...string) {
	r.t.Helper()
	if got := r.said(fd); !slices.Equal(got, want) {
		r.t.Fatalf("got %q, want %q", got, want)
	}
}

// inShort shows a frame of the broker's.
func inShort(payload []byte) string {
	typ, _ := wire.PeekType(payload)
	var err error
	text := ""
	switch typ {
	case wire.TypeTarget:
		var sub uint32
		sub, err = wire.DecodeTarget(payload)
		text = fmt.Sprint(sub)
	case wire.TypeMessage:
		var m wire.Message
		err = m.Decode(payload)
		text = fmt.Sprint(m.Seq, " ", string(m.Topic), " ", len(m.Body))
	case wire.TypeAck:
		var a wire.Ack
		err = a.Decode(payload)
		text = fmt.Sprintf("%d by %d", a.UpTo, a.Subscribers)
	case wire.TypePong:
		var token uint64
		token, err = wire.DecodePing(payload)
		text = fmt.Sprint(token)
	case wire.TypeGap:
		var g wire.Gap
		err = g.Decode(payload)
		text = fmt.Sprintf("%d-%d %v", g.First, g.Last, g.Reason)
	default:
		text, err = coldInShort(typ, payload)
	}
	if err != nil {
		return fmt.Sprintf("%v %q: %v", typ, payload, err)
	}
	return fmt.Sprintf("%v %s", typ, text)
}

func coldInShort(typ wire.Type, payload []byte) (text string, err error) {
	switch typ {
	case wire.TypeSubscribed:
		var f wire.Subscribed
		err = wire.DecodeCold(payload, &f)
		text = fmt.Sprint(f.Sub)
	case wire.TypeUnsubscribed:
		var f wire.Unsubscribed
		err = wire.DecodeCold(payload, &f)
		text = fmt.Sprintf("%d %d/%d/%d", f.Sub, f.Delivered, f.Dropped, f.Discarded)
	case wire.TypeAwaited:
		var f wire.Awaited
		err = wire.DecodeCold(payload, &f)
		text = fmt.Sprintf("%d by %d", f.Token, f.Subscribers)
	case wire.TypeError:
		var f wire.ErrorBody
		err = wire.DecodeCold(payload, &f)
		text = fmt.Sprint(f.Code)
	case wire.TypeGoodbye:
		var f wire.Goodbye
		err = wire.DecodeCold(payload, &f)
		text = fmt.Sprintf("%v %d", f.Code, f.Seq)
	}
	return text, err
}

// The frames that the tests say.
func subscribe(f wire.Subscribe) []byte { return wire.AppendCold(nil, wire.TypeSubscribe, &f) }
func publish(topic string, size int) []byte {
	return wire.AppendPublish(nil, &wire.Publish{Topic: []byte(topic), Body: make([]byte, size)})
}
func ping(token uint64) []byte { return wire.AppendPing(nil, token) }
func credit(sub uint32, bytes uint64) []byte {
	return wire.AppendCredit(nil, wire.Credit{Sub: sub, Bytes: bytes})
}
func unsubscribe(sub uint32, drain bool) []byte {
	return wire.AppendCold(nil, wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: sub, Drain: drain})
}

// In the steady state a message costs the broker no allocation, whatever the
// topics, the number of subscribers and the type of socket.
func TestRoutingDoesNotAllocate(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   int
		topics int
		subs   int
		policy string
	}{
		{"stream", unix.SOCK_STREAM, 1, 1, ""},
		{"packet", unix.SOCK_SEQPACKET, 1, 1, ""},
		{"ten topics", unix.SOCK_STREAM, 10, 3, ""},
		{"block", unix.SOCK_STREAM, 1, 3, "block"},
		{"nobody", unix.SOCK_STREAM, 3, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			open := subscribe(wire.Subscribe{Sub: 1, Filters: []string{"t/#"}, Policy: c.policy})
			var subs []int
			for range c.subs {
				subs = append(subs, r.join(c.kind, open))
			}
			p := r.join(c.kind, nil)
			var batch []byte
			for i := range 100 {
				batch = wire.AppendPublish(batch, &wire.Publish{Topic: fmt.Appendf(nil, "t/%d", i%c.topics), Body: make([]byte, 128)})
			}
			turn := func() {
				r.send(p, batch)
				r.turn()
				for _, fd := range subs {
					if n := r.drain(fd); n < 100*128 {
						t.Fatalf("a subscriber got %d bytes", n)
					}
				}
				r.loop.Advance(time.Second) // so that verdicts are due
				r.drain(p)
			}
			before := r.loop.Seq()
			// Measured over batches of 100: less than one in a thousand messages.
			if allocs := testing.AllocsPerRun(200, turn); allocs > 0 {
				t.Errorf("%v allocations for 100 messages", allocs)
			}
			if got := r.loop.Seq() - before; got != 201*100 {
				t.Errorf("%d messages were routed, want %d", got, 201*100)
			}
		})
	}
}

// The time-outs are the loop's decisions: its clock is an argument.
func TestTimeoutsByTheClock(t *testing.T) {
	r := newRig(t, nil)
	r.connect(unix.SOCK_STREAM) // says nothing
	other := r.join(unix.SOCK_STREAM, nil)
	ping := wire.AppendPing(nil, 1)
	for _, step := range []struct {
		after time.Duration
		left  int
	}{{9 * time.Second, 2}, {2 * time.Second, 1}} {
		r.loop.Advance(step.after)
		r.send(other, ping)
		r.turn()
		if got := r.loop.Connections(); got != step.left {
			t.Errorf("%d connections are left, want %d", got, step.left)
		}
	}
	r.send(other, append(ping, ping[:3]...)) // begins a frame
	r.turn()
	for _, step := range []struct {
		after time.Duration
		left  int
	}{{29 * time.Second, 1}, {2 * time.Second, 0}} {
		r.loop.Advance(step.after)
		r.turn() // the sweep that is due
		if got := r.loop.Connections(); got != step.left {
			t.Errorf("%d connections are left, want %d", got, step.left)
		}
	}
}

// A connection that publishes to its own block subscription gets verdicts between
// its messages, never inside one: also when they are released while its backlog is
// being written, and the socket fills up.
func TestVerdictsReleasedWhileWriting(t *testing.T) {
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		for bound := 3000; bound < 6000; bound += 300 { // where in a write they are released
			releasedWhileWriting(t, kind, bound)
		}
	}
}

func releasedWhileWriting(t *testing.T, kind, bound int) {
	r := newRig(t, nil)
	fd := r.join(kind, wire.AppendCold(nil, wire.TypeSubscribe, &wire.Subscribe{
		Sub: 1, Filters: []string{"#"}, Policy: "block", Messages: bound}))
	const batches, perBatch = 220, 40
	var batch []byte
	for range perBatch {
		batch = wire.AppendPublish(batch, &wire.Publish{Topic: []byte("a"), Body: make([]byte, 128)})
	}
	for range batches {
		r.send(fd, batch)
		r.turn()
	}
	messages, acked := 0, uint64(0)
	var rest []byte
	for messages < batches*perBatch || acked < batches*perBatch {
		r.loop.Advance(time.Second)
		b := r.read(fd)
		if len(b) == 0 {
			r.turn() // there is room: the broker writes
			continue
		}
		rest = append(rest, b...)
		for {
			payload, size, err := wire.Split(rest, 1<<20)
			if err == wire.ErrShort {
				break
			}
			if err != nil {
				t.Fatalf("after %d messages, %d acknowledged: %v", messages, acked, err)
			}
			switch typ, _ := wire.PeekType(payload); typ {
			case wire.TypeMessage:
				messages++
			case wire.TypeAck:
				var a wire.Ack
				if err := a.Decode(payload); err != nil || a.UpTo <= acked {
					t.Fatalf("ack %+v after %d: %v", a, acked, err)
				}
				acked = a.UpTo
			case wire.TypeTarget:
			default:
				t.Fatalf("after %d messages: %q", messages, payload)
			}
			rest = rest[size:]
		}
	}
}

// BenchmarkTurn is a turn of the loop with 100 messages of 128 bytes to one
// subscriber, system calls included.
func BenchmarkTurn(b *testing.B) {
	for _, unrelated := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("unrelated=%d", unrelated), func(b *testing.B) {
			r := newRig(b, &broker.Options{MaxSubscriptions: -1})
			for i := 0; i < unrelated; i += 500 {
				var frames []byte
				for k := range 500 {
					frames = wire.AppendCold(frames, wire.TypeSubscribe, &wire.Subscribe{Sub: 1, Filters: []string{fmt.Sprintf("other/%d/+", i+k)}})
					frames = wire.AppendCold(frames, wire.TypeSubscribe, &wire.Subscribe{Sub: uint32(i + k + 2), Filters: []string{fmt.Sprintf("other/%d/#", i+k)}})
				}
				r.join(unix.SOCK_STREAM, frames)
			}
			sub := r.join(unix.SOCK_STREAM, wire.AppendCold(nil, wire.TypeSubscribe, &wire.Subscribe{Sub: 1, Filters: []string{"t/+"}}))
			p := r.join(unix.SOCK_STREAM, nil)
			var batch []byte
			for i := range 100 {
				batch = wire.AppendPublish(batch, &wire.Publish{Topic: fmt.Appendf(nil, "t/%d", i%10), Body: make([]byte, 128)})
			}
			for b.Loop() {
				r.send(p, batch)
				r.turn()
				r.drain(sub)
			}
		})
	}
}
