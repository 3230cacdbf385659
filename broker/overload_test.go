package broker_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

const (
	overloadMessages = 4000
	overloadFast     = 16
)

// Runs of an overload: enough to meet many interleavings.
func overloadRuns() int {
	if broker.RaceEnabled {
		return 6
	}
	return 20
}

// One slow subscriber of each policy that does not wait among 16 fast ones, a publisher
// at full speed: the fast ones lose nothing; what a slow one received and what it was
// told is lost add up to what was published, and one of policy disconnect gets a
// beginning without a hole and is told why it ends.
func TestOverloadIsTold(t *testing.T) {
	for run := range overloadRuns() {
		network := []string{"unix", "unixpacket"}[run%2]
		t.Run(fmt.Sprint(run, " ", network), func(t *testing.T) { overload(t, network) })
	}
}

func overload(t *testing.T, network string) {
	bus := brokertest.Start(t, nil)
	p := greet(t, bus, network)
	var slow []*tally
	for _, policy := range []wire.Policy{wire.DropOld, wire.DropNew, wire.Latest, wire.Disconnect} {
		s := greet(t, bus, network)
		s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Policy: policy.String(), Messages: 100, Credit: 1 << 12})
		slow = append(slow, &tally{s: s, sub: 1})
	}
	var wg sync.WaitGroup
	fastOnes(t, bus, network, &wg)
	wg.Go(func() { blast(p) })
	for {
		if typ, _ := p.next(); typ == wire.TypePong {
			break
		}
	}
	delivered, dropped := uint64(overloadFast*overloadMessages), uint64(0)
	for _, c := range slow[:3] {
		c.until(overloadMessages)
		u := c.end()
		if u.Dropped == 0 {
			t.Error("the slow one was not slow")
		}
		delivered += u.Delivered
		dropped += u.Dropped
	}
	delivered += slow[3].untilSlow()
	wg.Wait()
	bus.Eventually(t, "the counters agree", func(s broker.Stats) bool {
		return s.Published == overloadMessages && s.Dropped == dropped && s.Delivered == delivered && s.Ended == 1
	})
}

// With policy block the publisher is as slow as the slow one, and nobody loses
// anything.
func TestOverloadBlocks(t *testing.T) {
	for run := range overloadRuns() {
		network := []string{"unix", "unixpacket"}[run%2]
		t.Run(fmt.Sprint(run, " ", network), func(t *testing.T) {
			bus := brokertest.Start(t, nil)
			p, s := greet(t, bus, network), greet(t, bus, network)
			s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Policy: "block", Messages: 100, Credit: 1 << 12})
			var wg sync.WaitGroup
			fastOnes(t, bus, network, &wg)
			c := &tally{s: s, sub: 1, stingy: true}
			wg.Go(func() { c.until(overloadMessages) })
			wg.Go(func() { blast(p) })
			wg.Wait()
			acked := uint64(0)
			for acked < overloadMessages {
				if typ, payload := p.next(); typ == wire.TypeAck {
					var a wire.Ack
					if err := a.Decode(payload); err != nil || a.Subscribers != overloadFast+1 {
						t.Fatalf("%+v, %v", a, err)
					}
					acked = a.UpTo
				}
			}
			if u := c.end(); u.Dropped > 0 {
				t.Errorf("%+v", u)
			}
			bus.Eventually(t, "the counters agree", func(s broker.Stats) bool {
				return s.Published == overloadMessages && s.Dropped == 0 && s.Delivered == (overloadFast+1)*overloadMessages
			})
		})
	}
}

// fastOnes start to read all that comes. Their policy is the default, their buffer holds
// everything.
func fastOnes(t *testing.T, bus *brokertest.Bus, network string, wg *sync.WaitGroup) {
	for range overloadFast {
		s := greet(t, bus, network)
		s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})
		wg.Go(func() {
			c := &tally{s: s, sub: 1}
			c.until(overloadMessages)
			if c.lost > 0 {
				t.Errorf("a fast subscriber lost %d", c.lost)
			}
		})
	}
}

// blast publishes as fast as it can, and pings.
func blast(p *speaker) {
	const topics = 7
	for i := range overloadMessages {
		p.publish(fmt.Sprint("t/", i%topics), fmt.Sprintf("%0128d", i))
	}
	if err := wire.WriteFrames(p.conn, wire.AppendPing(p.out, 1), wire.DefaultMaxPacket); err != nil {
		p.t.Error(err)
	}
}

// tally counts what one subscription gets and is told that it lost, and checks the
// order.
type tally struct {
	s         *speaker
	sub       uint32
	stingy    bool // grant credit in small amounts
	got, lost uint64
	last      uint64
}

// until reads until got and lost add up to n.
func (c *tally) until(n uint64) {
	if !c.stingy {
		c.s.credit(c.sub, 1<<40).flush()
	}
	for c.got+c.lost < n {
		switch typ, payload := c.s.next(); typ {
		case wire.TypeTarget:
		case wire.TypeMessage:
			var m wire.Message
			if err := m.Decode(payload); err != nil || m.Seq <= c.last {
				c.s.t.Errorf("message %d after %d: %v", m.Seq, c.last, err)
			}
			c.last = m.Seq
			c.got++
			if c.stingy && c.got%10 == 0 {
				c.s.credit(c.sub, 2000).flush()
			}
		case wire.TypeGap:
			var g wire.Gap
			if err := g.Decode(payload); err != nil || g.First <= c.last {
				c.s.t.Errorf("gap %+v after %d: %v", g, c.last, err)
			}
			c.lost += g.Count
		default:
			c.s.t.Errorf("got %v", typ)
			return
		}
	}
	if c.got+c.lost != n {
		c.s.t.Errorf("%d received and %d told as lost, of %d", c.got, c.lost, n)
	}
}

// end unsubscribes and compares with what the broker has counted.
func (c *tally) end() (u wire.Unsubscribed) {
	c.s.t.Helper()
	c.s.cold(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: c.sub}).flush()
	c.s.expectCold(wire.TypeUnsubscribed, &u)
	if want := (wire.Unsubscribed{Sub: c.sub, Delivered: c.got, Dropped: c.lost}); u != want {
		c.s.t.Errorf("the broker counts %+v, want %+v", u, want)
	}
	return u
}

// untilSlow reads a beginning without a hole, and then GOODBYE slow at a seq by which
// the buffer was full. It returns the number of messages.
func (c *tally) untilSlow() uint64 {
	c.s.t.Helper()
	for {
		switch typ, payload := c.s.next(); typ {
		case wire.TypeTarget:
		case wire.TypeMessage:
			var m wire.Message
			if err := m.Decode(payload); err != nil || m.Seq != c.last+1 {
				c.s.t.Fatalf("message %d after %d: %v", m.Seq, c.last, err)
			}
			c.last = m.Seq
		case wire.TypeGoodbye:
			var g wire.Goodbye
			if err := wire.DecodeCold(payload, &g); err != nil || g.Code != wire.CodeSlow || g.Seq <= c.last+100 || g.Seq > overloadMessages {
				c.s.t.Fatalf("after message %d, %+v: %v", c.last, g, err)
			}
			if _, err := c.s.r.Next(); err == nil {
				c.s.t.Fatal("there is more after GOODBYE")
			}
			return c.last
		default:
			c.s.t.Fatalf("got %v", typ)
		}
	}
}
