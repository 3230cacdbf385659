package client

import (
	"context"
	"fmt"

	"github.com/postbus/postbus/wire"
)

// Receipt says who took a message.
type Receipt struct {
	Subscribers int   // subscriptions it was routed to
	Queues      int   // queues that keep it
	Level       Level // what it survives there: the lowest of those queues
}

// verdict is somebody waiting for the broker's answer to publish number at, or to
// everything up to it.
type verdict struct {
	at     uint64
	flush  bool
	answer *reply[Receipt]
}

// requireSubscriber is the options map of RequireSubscriber, encoded once.
var requireSubscriber = wire.AppendOptions(nil, &wire.PublishOptions{RequireSub: true})

// Publish hands a message to the client, which sends it as soon as it can. It waits
// only while the window is full: while more than the broker allows is unanswered
// because subscriptions with policy Block are full, or because the connection is lost.
// ctx can end that wait.
//
// A nil error means that the message is on its way, not that it arrived; a refusal by
// the broker is logged and reported by the next Flush, Drain or Close. The errors of
// Publish itself are ErrBadTopic, ErrTooLarge, the context's, and once the client
// has ended that of Err; with any of them the message was not sent.
//
// It keeps neither body nor opts. It may be called by several goroutines; messages of
// one goroutine keep their order.
func (c *Client) Publish(ctx context.Context, topic string, body []byte, opts *PublishOptions) error {
	p := wire.Publish{Body: body}
	if err := opts.encode(&p); err != nil {
		return err
	}
	_, err := c.publish(ctx, topic, &p, false)
	return err
}

// PublishWait publishes a message and waits for the broker's answer: who took it, or
// why it was refused, such as ErrNoSubscriber and ErrNotAllowed, with a *wire.Error
// inside.
//
// While a subscription with policy Block is full the answer waits with it. When ctx
// ends first, or the client does, the message may or may not have been routed; a
// refusal that comes later is reported as for Publish.
func (c *Client) PublishWait(ctx context.Context, topic string, body []byte, opts *PublishOptions) (Receipt, error) {
	p := wire.Publish{Body: body}
	if err := opts.encode(&p); err != nil {
		return Receipt{}, err
	}
	answer, err := c.publish(ctx, topic, &p, true)
	if err != nil {
		return Receipt{}, err
	}
	return c.receipt(ctx, answer, topic)
}

// receipt waits for the verdict on a message to topic.
func (c *Client) receipt(ctx context.Context, answer *reply[Receipt], topic string) (Receipt, error) {
	receipt, err := answer.wait(ctx, "publish to %q", topic)
	if err != nil && ctx.Err() != nil {
		c.abandon(answer)
	}
	return receipt, err
}

// publish puts a message into the outbox; with wait it returns what the verdict will
// be told to. It sets p.Topic.
func (c *Client) publish(ctx context.Context, topic string, p *wire.Publish, wait bool) (*reply[Receipt], error) {
	if err := ctx.Err(); err != nil {
		return nil, interrupted(ctx, "publish to %q", topic)
	}
	var t *turn
	for {
		c.mu.Lock()
		size, ok, err := c.add(topic, p, t)
		if ok {
			answer := c.accepted(wait)
			c.mu.Unlock()
			return answer, nil
		}
		if err == nil && t == nil {
			t = c.out.wait(size)
		}
		c.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-t.ready:
		case <-ctx.Done():
			c.mu.Lock()
			c.out.leave(t)
			c.mu.Unlock()
			return nil, interrupted(ctx, "publish to %q, whose turn has not come for the window is full", topic)
		}
	}
}

// add appends the message if the client lives, its limits allow it, and the window
// has room; mu is held.
func (c *Client) add(topic string, p *wire.Publish, t *turn) (size int, ok bool, err error) {
	if err := c.gone(); err != nil {
		return 0, false, err
	}
	// A stream of messages to one topic has it checked and converted once.
	if string(c.topic) != topic || topic == "" {
		if err := wire.CheckTopic(topic); err != nil {
			return 0, false, withSentinel(err)
		}
		c.topic = append(c.topic[:0], topic...)
	}
	if len(p.Body) > c.server.MaxMessage {
		return 0, false, refusal(wire.CodeTooLarge, fmt.Sprintf(
			"a body of %d bytes for %q is above the broker's limit of %d: publish less at once, or raise the broker's message limit",
			len(p.Body), topic, c.server.MaxMessage))
	}
	p.Topic = c.topic
	size, ok = c.out.add(p, t)
	if ok && t != nil {
		c.out.leave(t)
	}
	return size, ok, nil
}

// accepted follows up on a message in the outbox; mu is held.
func (c *Client) accepted(wait bool) *reply[Receipt] {
	var answer *reply[Receipt]
	if wait {
		answer = newReply[Receipt]()
		c.verdicts.push(verdict{at: c.out.accepted, answer: answer})
		c.out.ping = true // the broker answers at once
	}
	c.wakeWriter()
	return answer
}

// encode puts the options into p; o may be nil.
func (o *PublishOptions) encode(p *wire.Publish) error {
	if o == nil {
		return nil
	}
	if o.RequireSubscriber {
		p.Options = requireSubscriber
	}
	return encodeHeaders(p, o.Headers)
}

func encodeHeaders(p *wire.Publish, headers map[string]string) error {
	if len(headers) == 0 {
		return nil
	}
	p.Headers = wire.AppendHeaders(nil, headers)
	return withSentinel(wire.CheckHeaders(p.Headers))
}

// Flush waits until the broker has answered everything published before the call. It
// returns a *RefusedError when some of that was refused and nobody has been told yet:
// by PublishWait, or by an earlier Flush. Its other errors are the context's, and once
// the client has ended that of Err.
func (c *Client) Flush(ctx context.Context) error {
	c.mu.Lock()
	if c.out.unanswered() == 0 {
		defer c.mu.Unlock()
		return c.takeRefused()
	}
	if err := c.gone(); err != nil {
		defer c.mu.Unlock()
		return err
	}
	answer := newReply[Receipt]()
	c.verdicts.push(verdict{at: c.out.accepted, flush: true, answer: answer})
	c.out.ping = true
	c.wakeWriter()
	c.mu.Unlock()

	if _, err := answer.wait(ctx, "flush"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takeRefused()
}

// abandon says that nobody waits for this answer any more, so that a refusal counts
// as nobody's.
func (c *Client) abandon(answer *reply[Receipt]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.verdicts.items {
		if v := &c.verdicts.items[i]; v.answer == answer {
			v.flush = true
		}
	}
}

// acked takes the verdict "routed" for every publish up to a number on the present
// connection; mu is held.
func (c *Client) acked(upTo uint64, receipt Receipt) error {
	upTo += c.out.base
	if upTo < c.out.judged || !c.out.judge(upTo-c.out.judged) {
		return broken("an ACK of publish %d, but it is due for %d to %d",
			upTo-c.out.base, c.out.judged+1-c.out.base, c.out.accepted-c.out.base)
	}
	for c.verdicts.len() > 0 && c.verdicts.front().at <= upTo {
		c.verdicts.pop().answer.settle(receipt, nil)
	}
	c.release()
	return nil
}

// release uses the room that a verdict made in the window; mu is held.
func (c *Client) release() {
	if c.out.release() {
		c.wakeWriter()
	}
}

// refuse takes the verdict "refused" for one publish, and returns what nobody has been
// told of if this is one of them; mu is held.
func (c *Client) refuse(number uint64, reason error) (untold RefusedError, err error) {
	number += c.out.base
	var payload []byte
	if number == c.out.judged+1 {
		payload = c.out.judgeOne()
	}
	if payload == nil {
		return untold, broken("an ERROR for publish %d, but the verdict due is that of %d of %d sent",
			number-c.out.base, c.out.judged+1-c.out.base, c.out.accepted-c.out.base)
	}
	told := false
	for c.verdicts.len() > 0 && c.verdicts.front().at <= number {
		v := c.verdicts.pop()
		if v.flush {
			v.answer.settle(Receipt{}, nil)
		} else {
			v.answer.settle(Receipt{}, reason)
			told = true
		}
	}
	if !told {
		c.countRefused(payload, reason)
		untold = c.refused
	}
	c.release()
	return untold, nil
}

// countRefused notes a refusal that nobody waits for; mu is held.
func (c *Client) countRefused(payload []byte, reason error) {
	if c.refused.Count == 0 {
		var p wire.Publish
		_ = p.Decode(payload) // it is our own
		c.refused.Topic, c.refused.First = string(p.Topic), reason
	}
	c.refused.Count++
}

// takeRefused returns the refusals nobody has been told of, once; mu is held.
func (c *Client) takeRefused() error {
	if c.refused.Count == 0 {
		return nil
	}
	err := c.refused
	c.refused = RefusedError{}
	return &err
}
