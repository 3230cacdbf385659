package broker_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

// session is a client's that had subscriptions when the broker before stopped.
const session = "0123456789abcdef"

// restarted is a loop that goes on where another has stopped, after seq 41, with a
// session to wait for.
func restarted(t *testing.T, stopped time.Duration, subs int) *rig {
	r := newRig(t, nil)
	r.loop.Take(&broker.Restart{Bus: "before", Seq: 41, Stopped: time.Now().Add(-stopped), Sessions: map[string]int{session: subs}})
	return r
}

// back is the session's client, which is going to restore so many subscriptions.
func (r *rig) back(restore int) int {
	fd := r.connect(unix.SOCK_STREAM)
	r.say(fd, wire.AppendCold(nil, wire.TypeHello, &wire.Hello{Version: 1, Session: []byte(session), Restore: restore}))
	r.drain(fd)
	return fd
}

// After a restart publishes wait until the sessions are back with their subscriptions;
// all else is handled meanwhile.
func TestPublishesWaitForSessions(t *testing.T) {
	r := restarted(t, 0, 2)
	p, early := r.join(unix.SOCK_STREAM, nil), r.join(unix.SOCK_STREAM, nil)
	r.say(p, publish("a", 1))
	r.say(early, ping(1))
	r.expect(early, "PONG 1")
	s := r.back(2)
	r.say(s, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a"}}))
	r.loop.Advance(1900 * time.Millisecond)
	r.expect(s, "SUBSCRIBED 1")
	r.expect(p)
	r.say(s, subscribe(wire.Subscribe{Sub: 2, Filters: []string{"a"}}))
	r.expect(s, "SUBSCRIBED 2", "TARGET 1", "MESSAGE 42 a 1", "TARGET 2", "MESSAGE 42 a 1")
	r.loop.Advance(5 * time.Millisecond)
	r.expect(p, "ACK 1 by 2")
}

// They do not wait for longer than 2 s, nor for what a client no longer wants, nor
// long after the stop.
func TestPublishesDoNotWaitForEver(t *testing.T) {
	for _, c := range []struct {
		name    string
		stopped time.Duration
		back    int // subscriptions to restore, -1: it does not come back
		wait    time.Duration
	}{
		{"not back", 0, -1, 2 * time.Second},
		{"not back with all", 0, 2, 2 * time.Second},
		{"back with none", 0, 0, 0},
		{"stopped long ago", time.Minute, -1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := restarted(t, c.stopped, 2)
			p := r.join(unix.SOCK_STREAM, nil)
			if c.back >= 0 {
				r.back(c.back)
			}
			r.say(p, slices.Concat(publish("a", 1), ping(1)))
			if c.wait > 0 {
				r.loop.Advance(c.wait - time.Millisecond)
				r.expect(p)
				r.loop.Advance(time.Millisecond)
			}
			r.expect(p, "ACK 1 by 0", "PONG 1")
			if got := r.loop.Seq(); got != 42 {
				t.Errorf("the publish has seq %d", got)
			}
		})
	}
}

// A publisher that waits for long is not taken for one that does not complete a frame.
func TestWaitingIsNoHalfFrame(t *testing.T) {
	r := newRig(t, &broker.Options{FrameTimeout: time.Second})
	r.loop.Take(&broker.Restart{Bus: "before", Stopped: time.Now(), Sessions: map[string]int{session: 1}})
	p := r.join(unix.SOCK_STREAM, nil)
	r.say(p, slices.Concat(publish("a", 1), ping(1)))
	for range 4 {
		r.loop.Advance(500 * time.Millisecond)
		r.settle()
	}
	r.expect(p, "ACK 1 by 0", "PONG 1")
}

// A broker that stops while it still waits leaves the sessions to the next.
func TestSessionsOutliveTwoRestarts(t *testing.T) {
	r := restarted(t, 0, 2)
	other := r.connect(unix.SOCK_STREAM)
	r.say(other, slices.Concat(wire.AppendCold(nil, wire.TypeHello, &wire.Hello{Version: 1, Session: []byte("another, also 16")}),
		subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a"}})))
	r.loop.Drain()
	r.loop.Advance(time.Second)
	r.say(other, ping(1))
	left := r.loop.Left()
	if want := "map[0123456789abcdef:2 another, also 16:1]"; left == nil || left.Bus != "before" || left.Seq != 41 || fmt.Sprint(left.Sessions) != want {
		t.Errorf("left is %+v, want sessions %s", left, want)
	}
	if r.loop.Ended() != broker.ErrClosed {
		t.Errorf("the loop ended with %v", r.loop.Ended())
	}
}

// The same with files: the numbers go on over two restarts, and so does the waiting.
func TestRestartTwice(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bus")
	stop := func(b *brokertest.Bus) {
		t.Helper()
		if err := b.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		b.Wait()
	}
	hello := func(b *brokertest.Bus, restore int) (*speaker, wire.Welcome) {
		s := dial(t, b, "unix")
		s.cold(wire.TypeHello, &wire.Hello{Version: 1, Session: []byte(session), Restore: restore}).flush()
		var w wire.Welcome
		s.expectCold(wire.TypeWelcome, &w)
		return s, w
	}
	b := brokertest.StartAt(t, dir, nil)
	s, first := hello(b, 0)
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a"}})
	s.publish("b", "x").flush()
	s.expectAck(1, 0)
	stop(b)
	b = brokertest.StartAt(t, dir, nil)
	greet(t, b, "unix")
	stop(b)
	b = brokertest.StartAt(t, dir, nil)
	p := greet(t, b, "unixpacket")
	if _, err := os.Stat(filepath.Join(dir, wire.RestartFile)); !os.IsNotExist(err) {
		t.Errorf("the restart file is for one broker: %v", err)
	}
	p.publish("a", "y").ping(1).flush()
	s, again := hello(b, 1)
	if again.Bus != first.Bus {
		t.Errorf("the bus is %q, was %q", again.Bus, first.Bus)
	}
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a"}})
	s.expect(wire.TypeTarget)
	if m := s.expectMessage("a", "y"); m.Seq != 2 {
		t.Errorf("the message has seq %d", m.Seq)
	}
	p.expectAck(1, 1)
	p.expectPong(1)
}

// A broker that is stopped before it serves leaves what it has found.
func TestStoppedBeforeServing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bus")
	var buses []string
	for range 2 {
		b := brokertest.StartAt(t, dir, nil)
		s := dial(t, b, "unix")
		s.cold(wire.TypeHello, &wire.Hello{Version: 1}).flush()
		var w wire.Welcome
		s.expectCold(wire.TypeWelcome, &w)
		buses = append(buses, w.Bus)
		if err := b.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		b.Wait()
		hasty, err := broker.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := hasty.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		d, err := broker.OpenDir(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := hasty.ServeDir(d); err != broker.ErrClosed {
			t.Fatal(err)
		}
	}
	if buses[0] != buses[1] {
		t.Errorf("the bus changed from %s to %s", buses[0], buses[1])
	}
}

// What is in a restart file that is not one harms nobody.
func TestBadRestartFile(t *testing.T) {
	for name, content := range map[string]string{
		"empty":     "",
		"garbage":   "GET / HTTP/1.1\r\n\r\n",
		"no bus":    "\x81\xa3seq\x05",
		"bad types": "\x82\xa3bus\x05\xa3seq\xa1x",
		"a bomb":    "\xdf\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, wire.RestartFile)
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			bus := brokertest.StartAt(t, dir, nil)
			p := greet(t, bus, "unix")
			p.publish("a", "x").ping(1).flush()
			p.expectAck(1, 0)
			p.expectPong(1)
			if _, err := os.Stat(file); !os.IsNotExist(err) {
				t.Errorf("it is still there: %v", err)
			}
		})
	}
}
