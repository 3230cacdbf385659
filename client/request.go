package client

import (
	"context"
	"fmt"

	"github.com/postbus/postbus/wire"
)

// request is a QUEUE frame that waits for its answer. One whose caller has given up
// waits too: the broker answers it all the same. Client.mu guards it, but for what is
// readLoop's own.
type request struct {
	body      wire.Queue
	sent      bool // on the present connection
	abandoned bool // nobody waits
	queues    []wire.QueueInfo
	answer    *reply[queued]

	peeked []*Delivery // readLoop's own until the answer
}

// queued is what the broker answered.
type queued struct {
	wire.Queued
	peeked []*Delivery
}

// resendable reports whether to ask again what a lost connection has left unanswered:
// only what changes nothing.
func (r *request) resendable() bool {
	switch r.body.Op {
	case wire.OpList, wire.OpInfo, wire.OpPeek:
		return true
	}
	return false
}

// request sends a QUEUE frame and waits for the answer, also across a reconnection if
// the broker cannot have done anything. It chooses the token, and for peek the number.
func (c *Client) request(ctx context.Context, body *wire.Queue) (queued, error) {
	if ctx.Err() != nil {
		return queued{}, interrupted(ctx, "%s", describe(body))
	}
	if size := len(wire.AppendCold(nil, wire.TypeQueue, body)); size > wire.MaxCold-64 {
		return queued{}, fmt.Errorf("%w: to %s takes %d bytes, more than fit a frame of %d: bind it to fewer filters",
			ErrTooLarge, describe(body), size, wire.MaxCold)
	}
	c.mu.Lock()
	if err := c.checkQueues(); err != nil {
		c.mu.Unlock()
		return queued{}, err
	}
	c.lastWait++
	r := &request{body: *body, answer: newReply[queued]()}
	r.body.Token = c.lastWait
	if body.Op == wire.OpPeek {
		r.body.Sub = c.freeNumber()
	}
	c.requests[r.body.Token] = r
	if c.connected() {
		c.sendRequest(r)
	}
	c.mu.Unlock()
	answer, err := r.answer.wait(ctx, "%s", describe(body))
	if err != nil && ctx.Err() != nil {
		c.abandonRequest(r)
	}
	return answer, err
}

// describe says what a request is for.
func describe(body *wire.Queue) string {
	if body.Queue == "" {
		return body.Op + " the queues"
	}
	return fmt.Sprintf("%s queue %q", body.Op, body.Queue)
}

// checkQueues returns the error of those who ask for what the broker or the client
// cannot do (any more), or nil; mu is held.
func (c *Client) checkQueues() error {
	if err := c.gone(); err != nil {
		return err
	}
	if !c.queues {
		return fmt.Errorf("%w: it is version %q: install a newer one", ErrUnsupported, c.server.Version)
	}
	return nil
}

// abandonRequest forgets a request that was not sent, and keeps one that was from being
// sent again.
func (c *Client) abandonRequest(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.abandoned = true
	if !r.sent {
		delete(c.requests, r.body.Token)
	}
}

// sendRequest sends r on the present connection; mu is held.
func (c *Client) sendRequest(r *request) {
	r.sent = true
	c.send(wire.TypeQueue, &r.body)
}

// loseRequests follows up on the end of a connection: whose request may have been done
// is told so, the others are sent again by sendRequests. mu is held.
func (c *Client) loseRequests() {
	for token, r := range c.requests {
		switch {
		case r.abandoned:
			delete(c.requests, token)
		case r.sent && !r.resendable() && !c.closing:
			c.answer(token, fmt.Errorf("%w before the broker had answered: it is not known whether it did %s: look, and ask again",
				ErrDisconnected, describe(&r.body)))
		}
		r.sent, r.queues, r.peeked = false, nil, nil
	}
}

// sendRequests sends on a new connection what waits; mu is held.
func (c *Client) sendRequests() {
	err := c.checkQueues()
	for token, r := range c.requests {
		if err != nil {
			c.answer(token, err)
			continue
		}
		c.sendRequest(r)
	}
}

// answer ends a request, with what has come for it unless err is set; mu is held.
func (c *Client) answer(token uint64, err error) {
	c.answerWith(token, wire.Queued{}, err)
}

func (c *Client) answerWith(token uint64, body wire.Queued, err error) {
	if r := c.requests[token]; r != nil {
		delete(c.requests, token)
		body.Queues = r.queues
		r.answer.settle(queued{body, r.peeked}, err)
	}
}

// handleQueued takes the answer to a request, or a part of it.
func (cn *connection) handleQueued(payload []byte) error {
	var body wire.Queued
	if err := wire.DecodeCold(payload, &body); err != nil {
		return err
	}
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.requests[body.Token]
	if r == nil || !r.sent {
		return broken("QUEUED for token %d, which was not asked for", body.Token)
	}
	r.queues = append(r.queues, body.Queues...)
	if body.More {
		return nil
	}
	if err := r.check(&body); err != nil {
		return err
	}
	cn.forget(r.body.Sub)
	c.answerWith(body.Token, body, nil)
	return nil
}

// check reports whether an answer is one to the question.
func (r *request) check(body *wire.Queued) error {
	switch op := r.body.Op; {
	case (op == wire.OpDeclare || op == wire.OpInfo) && len(r.queues) != 1:
		return broken("QUEUED for %s of queue %q with %d queues", op, r.body.Queue, len(r.queues))
	case op == wire.OpPeek && body.Next != 0 && body.Next <= r.body.From:
		return broken("QUEUED for peek from %d that goes on at %d", r.body.From, body.Next)
	}
	return nil
}

// requestRefused takes the broker's refusal of an AWAIT or a QUEUE.
func (cn *connection) requestRefused(token uint64, reason error) {
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.requests[token]; r != nil {
		cn.forget(r.body.Sub)
		c.answer(token, reason)
		return
	}
	c.awaited(token, 0, reason)
}

// peekOf returns the request whose messages come under number, or nil; mu is held.
func (c *Client) peekOf(number uint32) *request {
	for _, r := range c.requests {
		if r.body.Sub == number {
			return r
		}
	}
	return nil
}

// aimPeek makes a target of number if a peek has it; the answer is nil if none has.
func (cn *connection) aimPeek(number uint32) receiver {
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.peekOf(number)
	if r == nil || !r.sent || number == 0 {
		return nil
	}
	cn.targets[number] = r
	return r
}

// put takes a message that was peeked at; see receiver.
func (r *request) put(in *inbox, w *wire.Message, frame int) error {
	if len(r.peeked) == r.body.Limit {
		return broken("more than the %d messages that were asked for", r.body.Limit)
	}
	d := new(Delivery)
	if err := d.fill(in, w, frame, 0); err != nil {
		return err
	}
	r.peeked = append(r.peeked, d)
	return nil
}

// deliver has nothing to do: the answer hands over what was put; see receiver.
func (*request) deliver() {}
