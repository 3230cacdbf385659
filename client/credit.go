package client

import "github.com/postbus/postbus/wire"

// credit keeps the account of one subscription: what the broker may still send, what
// waits here unread, and what was read and not yet given back add up to limit.
type credit struct {
	limit  int // bytes of MESSAGE frames; 0 for no account at all
	unread int // bytes
	owed   int // bytes; below 0 after a connection began with more credit than was due
}

func (c *credit) arrived(bytes int) { c.unread += bytes }

// consumed notes that a message was taken, and returns what is to be given back now:
// nothing until it is half of the limit.
func (c *credit) consumed(bytes int) (grant int) {
	c.unread -= bytes
	c.owed += bytes
	if c.limit == 0 || c.owed < (c.limit+1)/2 {
		return 0
	}
	grant, c.owed = c.owed, 0
	return grant
}

// restart returns the credit for a new connection. On the wire 0 would mean that no
// account is kept, so where nothing is due it is 1: the broker may send one message.
func (c *credit) restart() uint64 {
	if c.limit == 0 {
		return 0
	}
	due := c.limit - c.unread
	given := max(due, 1)
	c.owed = due - given
	return uint64(given)
}

// everything is credit for whatever a broker can hold: a draining subscription is
// bounded by its buffer there.
const everything = 1 << 40

// grant sends credit for a subscription, unless source is not the connection any more.
func (c *Client) grant(source *connection, sub uint32, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != source || !c.connected() {
		return // the next SUBSCRIBE takes it into account
	}
	c.out.pending.frames = wire.AppendCredit(c.out.pending.frames, wire.Credit{Sub: sub, Bytes: uint64(bytes)})
	c.wakeWriter()
}
