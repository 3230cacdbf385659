package broker_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/postbus/postbus/wire"
)

// taking is a consumer. A lazy one has short leases and lets them end, but that it acks a
// message now and then, and hears that it had lost it, or not.
type taking struct {
	*voice
	rnd     *rand.Rand
	number  byte
	lazy    bool
	free    []int64 // since when there is room for another delivery, one for each
	held    []*holding
	sent    []*settling // without an answer, by number
	settles byte
	takes   byte
	refused map[uint64]bool
}

// holding is a delivery that is not settled.
type holding struct {
	seq   uint16
	tries byte
}

type settling struct {
	action
	call int64
}

// consume consumes, on one connection after the other, until there is no more.
func (h *history) consume(rnd *rand.Rand) error {
	for !h.ended.Load() {
		v, err := h.connect([]string{"unix", "unixpacket"}[rnd.IntN(2)])
		if err != nil {
			return err
		}
		h.mu.Lock()
		h.consumers++
		c := &taking{voice: v, rnd: rnd, number: h.consumers, refused: map[uint64]bool{}}
		h.mu.Unlock()
		err = c.work()
		v.conn.Close()
		if err != nil {
			return fmt.Errorf("consumer %d: %w", c.number, err)
		}
	}
	return nil
}

// work consumes until there is no more, or until it leaves in order or dies.
func (c *taking) work() error {
	f := wire.Consume{Sub: 1, Queue: c.name, Prefetch: 1 + c.rnd.IntN(3)}
	if c.lazy = c.number < maxNumbers-slots && c.rnd.IntN(4) == 0; c.lazy {
		f.LeaseMS, f.Prefetch = 5, 1
	}
	c.out = wire.AppendCold(c.out, wire.TypeConsume, &f)
	for range f.Prefetch {
		c.free = append(c.free, c.now())
	}
	for !c.ended.Load() {
		payload, err := c.say(time.Duration(1+c.rnd.IntN(4)) * time.Millisecond)
		if err == nil && payload != nil {
			err = c.heard(payload)
		}
		if err != nil {
			return err
		}
		if c.number < maxNumbers-slots && (c.rnd.IntN(50) == 0 || c.lazy && c.takes > 2) {
			return c.leave()
		}
		for !c.lazy && c.rnd.IntN(2) == 0 && len(c.held) > 0 {
			c.settle(c.held[c.rnd.IntN(len(c.held))])
		}
	}
	return c.finish()
}

// finish waits for the answers that are open: they belong to the history.
func (c *taking) finish() error {
	for len(c.sent) > 0 {
		payload, err := c.say(time.Minute)
		if err == nil {
			err = c.heard(payload)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leave ends the consumer: it dies, or goes in order.
func (c *taking) leave() error {
	call := c.now()
	delays := func(s *settling) bool { return s.delayed }
	if !c.lazy && c.rnd.IntN(2) == 0 && !slices.ContainsFunc(c.sent, delays) {
		if len(c.sent) > 0 {
			call = c.sent[0].call // whether a nack was carried out, or its death was, is the same
		}
		_, err := c.say(time.Nanosecond) // the last settles are on their way; what came is not looked at
		c.conn.Close()
		for _, s := range c.sent {
			if s.verb == wire.VerbAck {
				s.unsure, s.turn = true, 0 // those before it are not all in the history
				c.add(s.call, never, s.action)
			}
		}
		c.add(call, never, action{kind: actLeave, consumer: c.number, unsure: true})
		return err
	}
	if c.lazy && len(c.held) > 0 {
		c.settle(c.held[len(c.held)-1])
		if err := c.finish(); err != nil {
			return err
		}
		call = c.now()
	}
	c.out = wire.AppendCold(c.out, wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 1})
	for {
		payload, err := c.say(time.Minute)
		if err != nil {
			return err
		}
		if t, _ := wire.PeekType(payload); t == wire.TypeUnsubscribed {
			c.add(call, c.now(), action{kind: actLeave, consumer: c.number})
			return c.finish()
		}
		if err := c.heard(payload); err != nil {
			return err
		}
	}
}

// heard takes a frame.
func (c *taking) heard(payload []byte) error {
	switch t, _ := wire.PeekType(payload); t {
	case wire.TypeMessage:
		return c.took(payload)
	case wire.TypeSettled:
		upto, err := wire.DecodeSettled(payload)
		for ; len(c.sent) > 0 && uint64(c.sent[0].turn) <= upto; c.sent = c.sent[1:] {
			c.settled(c.sent[0])
		}
		return err
	case wire.TypeError:
		var e wire.ErrorBody
		if err := wire.DecodeCold(payload, &e); err != nil || e.Code != wire.CodeLeaseLost || len(e.Lost) != 1 {
			return fmt.Errorf("got %+v, %v", e, err)
		}
		c.refused[e.Settle] = true
	case wire.TypeSubscribed, wire.TypeTarget:
	default:
		return fmt.Errorf("got %v", t)
	}
	return nil
}

// took notes a delivery.
func (c *taking) took(payload []byte) error {
	now := c.now()
	var m wire.Message
	var info wire.MessageInfo
	if err := errors.Join(m.Decode(payload), wire.DecodeOptions(m.Info, &info)); err != nil {
		return err
	}
	tries := byte(max(info.Tries, 1))
	if info.Redelivered != (tries > 1) {
		return fmt.Errorf("message %d comes for the %dth time, redelivered %v", m.Seq, tries, info.Redelivered)
	}
	since := slices.Min(c.free) // there is room, or the broker gave too much
	if c.takes++; c.lazy {
		// Its lease may be over at once, as far as we know: the broker's clock is not ours.
		c.add(since, never, action{kind: actOver, consumer: c.number, seq: uint16(m.Seq), tries: tries})
	} else {
		i := slices.Index(c.free, since)
		c.free = slices.Delete(c.free, i, i+1)
	}
	c.add(since, now, action{kind: actTake, consumer: c.number, turn: c.takes, seq: uint16(m.Seq), tries: tries})
	c.held = append(c.held, &holding{uint16(m.Seq), tries})
	for _, s := range c.sent {
		if c.lazy && s.seq == uint16(m.Seq) {
			s.tries = tries // it was given to us again before our ack came there
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n, known := c.numbers[string(m.Body)]; known && n != uint16(m.Seq) {
		return fmt.Errorf("%q is message %d, and message %d too", m.Body, n, m.Seq)
	}
	c.numbers[string(m.Body)] = uint16(m.Seq)
	return nil
}

// settle says what becomes of a delivery.
func (c *taking) settle(d *holding) {
	c.settles++
	s := &settling{call: c.now()}
	s.action = action{kind: actSettle, consumer: c.number, turn: c.settles, seq: d.seq, tries: d.tries, verb: wire.VerbAck}
	f := wire.Settle{Sub: 1, Verb: wire.VerbAck, First: uint64(d.seq), Last: uint64(d.seq)}
	switch n := c.rnd.IntN(8); {
	case c.lazy:
	case n < 3:
		f.Verb = wire.VerbNack
		if n > 0 {
			s.delayed, f.Arg = true, int64(1+c.rnd.IntN(3))
		}
	case n == 3:
		f.Verb = wire.VerbExtend
	}
	s.verb = f.Verb
	c.out = wire.AppendSettle(c.out, &f)
	c.sent = append(c.sent, s)
	if f.Verb != wire.VerbExtend {
		c.held = slices.DeleteFunc(c.held, func(other *holding) bool { return other == d })
		c.free = append(c.free, s.call)
	}
}

// settled notes a settle that was answered.
func (c *taking) settled(s *settling) {
	s.lost = c.refused[uint64(s.turn)]
	c.add(s.call, c.now(), s.action)
	if s.delayed && !s.lost {
		c.add(s.call, never, action{kind: actDue, consumer: c.number, seq: s.seq, tries: s.tries})
	}
}
