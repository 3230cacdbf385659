package bench

import (
	"encoding/binary"
	"fmt"
)

// What a message's body begins with: a tag (who sent it, and as which), and when.
// The rest is filling.
//
//	bit 63       the publisher's last message
//	bits 48-62   the publisher
//	bits 0-47    its messages, counted from 0
type tag uint64

const (
	lastTag      tag = 1 << 63
	publisherAt      = 48
	numberMask   tag = 1<<publisherAt - 1
	maxPublisher     = 1<<15 - 1
)

func newTag(publisher int, number uint64) tag {
	return tag(publisher)<<publisherAt | tag(number)&numberMask
}

func (t tag) publisher() int { return int(t>>publisherAt) & maxPublisher }
func (t tag) number() uint64 { return uint64(t & numberMask) }
func (t tag) last() bool     { return t&lastTag != 0 }

// stampBody writes tag and time into a body.
func stampBody(body []byte, t tag, at int64) {
	_ = body[MinSize-1]
	binary.LittleEndian.PutUint64(body, uint64(t))
	binary.LittleEndian.PutUint64(body[8:], uint64(at))
}

// readBody reads what stampBody wrote.
func readBody(body []byte) (tag, int64, error) {
	if len(body) < MinSize {
		return 0, 0, fmt.Errorf("a message of %d bytes arrived that this bench did not send", len(body))
	}
	return tag(binary.LittleEndian.Uint64(body)), int64(binary.LittleEndian.Uint64(body[8:])), nil
}

// tally checks what one subscriber gets: each publisher's messages in order and,
// where nothing may be dropped, every one.
type tally struct {
	next     []uint64 // per publisher: the number expected
	received uint64
	missing  uint64 // skipped in between
	ended    int    // publishers whose last message came
}

func newTally(publishers int) *tally {
	return &tally{next: make([]uint64, publishers)}
}

// take counts one message.
func (c *tally) take(t tag) error {
	p, n := t.publisher(), t.number()
	if p >= len(c.next) {
		return fmt.Errorf("a message of publisher %d arrived, and there are only %d: does another bench run on this broker?", p, len(c.next))
	}
	if n < c.next[p] {
		return fmt.Errorf("message %d of publisher %d arrived twice or out of order: %d was next", n, p, c.next[p])
	}
	c.missing += n - c.next[p]
	c.next[p] = n + 1
	c.received++
	if t.last() {
		c.ended++
	}
	return nil
}

// complete reports whether every publisher's last message has come.
func (c *tally) complete() bool { return c.ended == len(c.next) }
