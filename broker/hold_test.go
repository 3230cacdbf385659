package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/wire"
)

// block is a subscription that is full with one message, which its client has no
// room for either.
func block(filter string) []byte {
	return subscribe(wire.Subscribe{Sub: 1, Filters: []string{filter}, Policy: "block", Messages: 1, Credit: 1})
}

// Verdicts from before a hold do not wait for its end.
func TestVerdictsBeforeAHold(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			s, p := r.join(kind, block("b")), r.join(kind, nil)
			r.say(p, slices.Concat(publish("b", 0), publish("b", 0), ping(1)))
			r.expect(p, "ACK 2 by 1", "PONG 1")
			r.say(p, slices.Concat(publish("a", 0), publish("b", 0), publish("a", 0)))
			r.expect(p)
			r.loop.Advance(5 * time.Millisecond)
			r.expect(p, "ACK 3 by 0")
			r.loop.Advance(time.Second)
			r.expect(p)
			r.say(s, credit(1, 1<<20))
			r.expect(p, "ACK 4 by 1", "ACK 5 by 0")
		})
	}
}

// Two clients that each wait for the other's credit get it: however many verdicts are
// held back, all else they say is read.
func TestHeldByEachOther(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			x, y := r.join(kind, block("to/x")), r.join(kind, block("to/y"))
			const n = 10_000 // and as many that nobody takes, so that verdicts do not merge
			say := func(fd int, topic string) {
				var frames []byte
				for range n {
					frames = append(append(frames, publish(topic, 0)...), publish("nobody", 0)...)
				}
				r.say(fd, frames)
			}
			say(x, "to/y")
			say(y, "to/x")
			read := []int{0, 0} // frames
			got := [][]string{r.said(x), r.said(y)}
			r.say(x, slices.Concat(credit(1, 1<<40), ping(7)))
			r.say(y, slices.Concat(credit(1, 1<<40), ping(7)))
			for more := true; more; { // each is sent the rest when the other has read
				more = false
				for i, fd := range []int{x, y} {
					got[i] = append(got[i], r.said(fd)...)
					more = more || len(got[i]) > read[i]
					read[i] = len(got[i])
				}
			}
			for _, frames := range got {
				messages, acked := 0, ""
				for _, frame := range frames {
					switch frame[0] {
					case 'M':
						messages++
					case 'A':
						acked = frame
					}
				}
				if messages != n || acked != fmt.Sprintf("ACK %d by 0", 2*n) || !slices.Contains(frames, "PONG 7") {
					t.Errorf("%d messages came, and last %s", messages, acked)
				}
			}
		})
	}
}

// A client that dies while it must wait is gone at once, with its subscriptions and
// what they held back.
func TestPausedClientDies(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, &broker.Options{Window: 64 << 10})
			s, p := r.join(kind, block("a")), r.join(kind, nil)
			for range 20 { // to itself, far beyond its window
				if !r.write(s, publish("a", 8000)) {
					break
				}
				r.settle()
			}
			if got := r.loop.Stats().Published; got > 12 {
				t.Fatalf("%d publishes of 8,000 bytes were taken", got)
			}
			r.say(p, slices.Concat(publish("a", 0), ping(1)))
			r.expect(p, "PONG 1")
			r.close(s)
			if got := r.loop.Stats(); got.Connections != 1 || got.Subscriptions != 0 {
				t.Errorf("%+v", got)
			}
			r.expect(p, "ACK 1 by 1")
			r.close(p)
			if got := r.loop.Stats(); got.Connections != 0 || got.Buffered != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// Publishers that are gone are not remembered by those that made them wait.
func TestDeadPublishersAreForgotten(t *testing.T) {
	r := newRig(t, nil)
	r.join(unix.SOCK_STREAM, block("held"))
	busy := r.join(unix.SOCK_STREAM, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"ahead"}, Policy: "block"}))
	for i := range 100 {
		p := r.join(unix.SOCK_STREAM, nil)
		r.say(p, slices.Concat(publish("held", 0), publish("ahead", 50_000)))
		r.close(p)
		r.loop.Advance(5 * time.Millisecond)
		r.settle()
		waiting, yielders := r.loop.References()
		if waiting > 0 || yielders > 1 { // one whose time is over may be forgotten with the next
			t.Fatalf("after %d publishers %d wait and %d yield", i+1, waiting, yielders)
		}
	}
	for range 200 { // in small steps, for the backlog may be written by and by
		r.drain(busy)
		r.settle()
	}
	if waiting, yielders := r.loop.References(); waiting+yielders > 0 || r.loop.Connections() != 2 {
		t.Errorf("%d wait, %d yield, of %d connections", waiting, yielders, r.loop.Connections())
	}
}

// Whoever is held up by a connection that is ended by the clock goes on with that.
func TestHoldEndsByTheClock(t *testing.T) {
	r := newRig(t, &broker.Options{Window: 64 << 10})
	s, p := r.join(unix.SOCK_STREAM, block("a")), r.join(unix.SOCK_STREAM, nil)
	for range 20 {
		r.send(p, publish("a", 8000))
		r.settle()
	}
	r.send(s, ping(1)[:2]) // half a frame
	r.settle()
	if got := r.loop.Stats().Published; got == 20 {
		t.Fatal("the publisher did not have to wait")
	}
	for range 40 {
		r.loop.Advance(time.Second)
		r.settle()
	}
	if got := r.loop.Stats(); got.Connections != 1 || got.Published != 20 {
		t.Errorf("%+v", got)
	}
}

// A client that holds itself up and unsubscribes gets the verdicts that this lets out,
// each.
func TestUnsubscribeReleasesOwnVerdicts(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			s := r.join(kind, block("a"))
			r.say(s, slices.Concat(publish("a", 0), publish("a", 0), ping(1)))
			r.expect(s, "ACK 2 by 1", "PONG 1", "TARGET 1", "MESSAGE 1 a 0")
			r.say(s, slices.Concat(publish("a", 0), publish("a//a", 0), unsubscribe(1, false), publish("a", 0), ping(2)))
			r.expect(s, "ACK 3 by 1", "ERROR bad-topic", "UNSUBSCRIBED 1 1/0/2", "ACK 5 by 0", "PONG 2")
		})
	}
}

// GOODBYE is the last that the broker says, also when what it was to say waits for a
// full socket, and verdicts and AWAITs become due meanwhile.
func TestGoodbyeIsTheLast(t *testing.T) {
	r := newRig(t, nil)
	holder := r.join(unix.SOCK_STREAM, block("held"))
	r.say(holder, publish("held", 0))
	r.say(holder, publish("held", 0))
	s := r.join(unix.SOCK_STREAM, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"flood"}}))
	r.say(s, slices.Concat(publish("held", 0), wire.AppendCold(nil, wire.TypeAwait, &wire.Await{Token: 1, Topic: "later", Subscribers: 1})))
	p := r.join(unix.SOCK_STREAM, nil)
	for range 10 { // more than the socket takes
		r.say(p, publish("flood", 50_000))
	}
	r.say(s, wire.AppendAck(nil, wire.Ack{UpTo: 1})) // which a client must not say
	r.say(holder, credit(1, 1<<20))
	r.say(holder, subscribe(wire.Subscribe{Sub: 2, Filters: []string{"later"}}))
	got := r.said(s)
	if i := slices.IndexFunc(got, func(f string) bool { return strings.HasPrefix(f, "GOODBYE unknown-frame") }); i != len(got)-1 {
		t.Errorf("after GOODBYE comes %q", got[max(i, 0):])
	}
	if got := r.loop.Connections(); got != 2 {
		t.Errorf("%d connections are left", got)
	}
}
