package broker_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

// One slow subscriber of each policy among 16 fast ones, a publisher at full
// speed: the fast ones lose nothing, and of what was published to a slow one it
// received the rest of what it was told is lost, exactly.
func TestOverloadIsTold(t *testing.T) {
	for _, policy := range []wire.Policy{wire.DropOld, wire.DropNew, wire.Latest, wire.Block} {
		t.Run(policy.String(), func(t *testing.T) {
			for run := range 20 {
				network := []string{"unix", "unixpacket"}[run%2]
				overload(t, network, policy)
			}
		})
	}
}

func overload(t *testing.T, network string, policy wire.Policy) {
	const messages, topics = 4000, 7
	bus := brokertest.Start(t, nil)
	defer bus.Close()
	p := greet(t, bus, network)
	slow := greet(t, bus, network)
	slow.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Policy: policy.String(), Messages: 100, Credit: 1 << 12})
	var wg sync.WaitGroup
	for range 16 {
		s := greet(t, bus, network)
		s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}, Policy: "block"})
		wg.Go(func() {
			tally := &tally{s: s, sub: 1}
			tally.until(messages)
			if tally.lost > 0 {
				t.Errorf("a fast subscriber lost %d", tally.lost)
			}
		})
	}
	if policy == wire.Block {
		// The publisher will not end before the slow one has read: it reads, slowly.
		wg.Go(func() { (&tally{s: slow, sub: 1, stingy: true}).until(messages) })
	}
	for i := range messages {
		p.publish(fmt.Sprint("t/", i%topics), fmt.Sprintf("%0128d", i))
	}
	wg.Go(func() { _ = wire.WriteFrames(p.conn, wire.AppendPing(p.out, 1), wire.DefaultMaxPacket) })
	for {
		if typ, _ := p.next(); typ == wire.TypePong && policy != wire.Block {
			break
		} else if typ == wire.TypeAck && policy == wire.Block {
			break // held back at least once; the fast ones read on by themselves
		}
	}
	if policy != wire.Block {
		(&tally{s: slow, sub: 1}).until(messages)
	}
	wg.Wait()
	slow.cold(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 1}).flush()
	var u wire.Unsubscribed
	slow.expectCold(wire.TypeUnsubscribed, &u)
	if u.Delivered+u.Dropped != messages || policy == wire.Block && u.Dropped > 0 || policy != wire.Block && u.Dropped == 0 {
		t.Errorf("the broker counts %+v of %d", u, messages)
	}
	bus.Eventually(t, "the counters agree", func(s broker.Stats) bool {
		return s.Published == messages && s.Dropped == u.Dropped && s.Delivered == u.Delivered+16*messages
	})
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
