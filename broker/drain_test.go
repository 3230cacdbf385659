package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// After UNSUBSCRIBE with drain the subscription takes nothing more, and is counted
// nowhere; what it had is delivered as credit allows.
func TestDrainTakesNothingMore(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			s, p := r.join(kind, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Credit: 1})), r.join(kind, nil)
			r.say(p, slices.Concat(publish("a", 0), publish("a", 0), publish("a", 0), ping(1)))
			r.expect(p, "ACK 3 by 1", "PONG 1")
			r.expect(s, "TARGET 1", "MESSAGE 1 a 0")
			r.say(s, unsubscribe(1, true))
			r.say(s, unsubscribe(1, true))
			r.expect(s, "ERROR not-found")
			r.say(p, slices.Concat(publish("a", 0), ping(2)))
			r.expect(p, "ACK 4 by 0", "PONG 2")
			r.say(p, wire.AppendCold(nil, wire.TypeAwait, &wire.Await{Token: 5, Topic: "a", Subscribers: 1}))
			r.expect(p)
			r.say(s, subscribe(wire.Subscribe{Sub: 2, Filters: []string{"a"}}))
			r.expect(s, "SUBSCRIBED 2")
			r.expect(p, "AWAITED 5 by 1")
			r.say(s, credit(1, 1))
			r.expect(s) // the first message overshot, so there is still no credit
			r.say(s, credit(1, 1<<20))
			r.expect(s, "MESSAGE 2 a 0", "MESSAGE 3 a 0", "UNSUBSCRIBED 1 3/0/0")
			r.say(p, slices.Concat(publish("a", 0), ping(3)))
			r.expect(p, "ACK 5 by 1", "PONG 3")
			r.expect(s, "TARGET 2", "MESSAGE 5 a 0")
		})
	}
}

// Drains in the turn of the publish: before it takes nothing, after it all.
func TestDrainInTheSameTurn(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			s := r.join(kind, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}}))
			r.say(s, slices.Concat(publish("a", 0), publish("a", 0), unsubscribe(1, true), publish("a", 0), ping(1)))
			got := r.said(s)
			for _, want := range []string{"ACK 2 by 1", "ACK 3 by 0", "PONG 1", "MESSAGE 1 a 0", "MESSAGE 2 a 0", "UNSUBSCRIBED 1 2/0/0"} {
				if !slices.Contains(got, want) {
					t.Errorf("got %q, without %q", got, want)
				}
			}
			if slices.Contains(got, "MESSAGE 3 a 0") {
				t.Errorf("got %q", got)
			}
		})
	}
}

// A gap at the end waits for credit like any other.
func TestGapWaitsForCredit(t *testing.T) {
	r := newRig(t, nil)
	s := r.join(unix.SOCK_STREAM, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a"}, Policy: "drop-new", Messages: 1, Credit: 1}))
	p := r.join(unix.SOCK_STREAM, nil)
	for range 4 {
		r.say(p, publish("a", 100))
	}
	r.expect(s, "TARGET 1", "MESSAGE 1 a 100")
	r.say(s, credit(1, 200))
	r.expect(s, "MESSAGE 2 a 100")
	r.say(s, credit(1, 200))
	r.expect(s, "GAP 3-4 drop-new")
}

// When a large frame meets a full socket and is then thrown away, by UNSUBSCRIBE or
// by policy, what follows on SOCK_SEQPACKET stays in step.
func TestLargeFrameThatMetAFullSocket(t *testing.T) {
	for _, c := range []struct {
		name     string
		messages int
	}{{"unsubscribed", 0}, {"dropped", 1}} {
		for fill := range 12 { // so that the socket is full within the large one, and before
			t.Run(fmt.Sprint(c.name, "/", fill), func(t *testing.T) {
				r := newRig(t, nil)
				s := r.join(unix.SOCK_SEQPACKET, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Messages: c.messages}))
				p := r.join(unix.SOCK_STREAM, nil)
				for range fill {
					r.say(p, publish("a", 40_000))
				}
				r.say(p, publish("a", 200_000))
				for range 3 {
					r.say(p, publish("a", 10))
				}
				r.say(s, unsubscribe(1, false))
				r.say(s, slices.Concat(ping(1), subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})))
				got := r.said(s)
				if i := slices.Index(got, "PONG 1"); i < 1 || !strings.HasPrefix(got[i-1], "UNSUBSCRIBED 1") || got[i+1] != "SUBSCRIBED 1" {
					t.Fatalf("got %q", got)
				}
				r.say(p, publish("b", 100_000))
				r.expect(s, "TARGET 1", fmt.Sprintf("MESSAGE %d b 100000", fill+5))
			})
		}
	}
}

// A subscription with several spans in one turn that is ended in the middle of them
// leaves nothing behind.
func TestDisconnectWithinATurn(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			s := r.join(kind, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"a"}, Policy: "disconnect", Messages: 10, Credit: 1}))
			other, p := r.join(kind, subscribe(wire.Subscribe{Sub: 1, Filters: []string{"b"}})), r.join(unix.SOCK_STREAM, nil)
			frames := publish("a", 1)
			for range 11 {
				frames = append(frames, publish("a", 1)...)
			}
			frames = append(frames, publish("b", 1)...)
			for range 5 {
				frames = append(frames, publish("a", 1500)...)
			}
			r.say(p, frames)
			r.expect(s, "TARGET 1", "MESSAGE 1 a 1", "GOODBYE slow 18")
			r.expect(other, "TARGET 1", "MESSAGE 13 b 1")
			r.say(p, slices.Concat(publish("a", 1), ping(1)))
			if got := r.said(p); !slices.Contains(got, "ACK 19 by 0") {
				t.Errorf("got %q", got)
			}
			r.close(other)
			r.close(p)
			if got := r.loop.Stats(); got.Connections != 0 || got.Subscriptions != 0 || got.Buffered != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}
