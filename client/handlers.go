package client

import (
	"errors"
	"fmt"

	"github.com/postbus/postbus/wire"
)

// handlers has one for each frame that a broker sends after WELCOME. The error of a
// handler ends the connection.
var handlers = [wire.NumTypes]func(*connection, []byte) error{
	wire.TypeTarget:       (*connection).handleTarget,
	wire.TypeMessage:      (*connection).handleMessage,
	wire.TypeGap:          (*connection).handleGap,
	wire.TypeAck:          (*connection).handleAck,
	wire.TypeError:        (*connection).handleError,
	wire.TypePong:         (*connection).handlePong,
	wire.TypeSubscribed:   (*connection).handleSubscribed,
	wire.TypeUnsubscribed: (*connection).handleUnsubscribed,
	wire.TypeAwaited:      (*connection).handleAwaited,
	wire.TypeGoodbye:      (*connection).handleGoodbye,
	wire.TypeQueued:       (*connection).handleQueued,
	wire.TypeSettled:      (*connection).handleSettled,
}

// errGoodbye ends readLoop after a GOODBYE.
var errGoodbye = errors.New("the broker said goodbye")

// faultOf returns what a peer did wrong if err says that it broke the protocol.
func faultOf(err error) *wire.Error {
	var fault *wire.Error
	errors.As(err, &fault)
	return fault
}

func (cn *connection) handle(payload []byte) error {
	t, err := wire.PeekType(payload)
	if err != nil {
		return err
	}
	if int(t) >= len(handlers) || handlers[t] == nil {
		return &wire.Error{Code: wire.CodeUnknownFrame, Text: fmt.Sprintf("a frame of %s, which a client does not take", t)}
	}
	return handlers[t](cn, payload)
}

func (cn *connection) handleTarget(payload []byte) error {
	number, err := wire.DecodeTarget(payload)
	if err != nil {
		return err
	}
	r := cn.targets[number]
	if r == nil {
		r = cn.aimPeek(number)
	}
	if r == nil {
		return broken("a TARGET for subscription %d, which is not open", number)
	}
	cn.aim(r)
	return nil
}

func (cn *connection) handleMessage(payload []byte) error {
	m := &cn.message
	if err := m.Decode(payload); err != nil {
		return err
	}
	if cn.target == nil {
		return broken("a MESSAGE before a TARGET")
	}
	return cn.target.put(&cn.inbox, m, wire.HeaderSize+len(payload))
}

func (cn *connection) handleGap(payload []byte) error {
	var g wire.Gap
	if err := g.Decode(payload); err != nil {
		return err
	}
	s, ok := cn.targets[g.Sub].(*Subscription)
	if !ok {
		return broken("a GAP for subscription %d, which is not open", g.Sub)
	}
	s.putGap(&cn.inbox, &Gap{First: g.First, Last: g.Last, Count: g.Count, Reason: g.Reason})
	return nil
}

func (cn *connection) handleAck(payload []byte) error {
	var a wire.Ack
	if err := a.Decode(payload); err != nil {
		return err
	}
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked(a.UpTo, Receipt{Subscribers: int(a.Subscribers), Queues: int(a.Queues), Level: a.Level})
}

func (cn *connection) handleError(payload []byte) error {
	var body wire.ErrorBody
	if err := wire.DecodeCold(payload, &body); err != nil {
		return err
	}
	reason := refusal(body.Code, body.Text)
	c := cn.client
	switch {
	case body.Publish != 0:
		return cn.refused(body.Publish, reason)
	case body.Settle != 0:
		return cn.settleRefused(body.Settle, body.Lost, reason)
	case body.Sub != 0:
		cn.lose(body.Sub, reason)
	case body.Token != 0:
		cn.requestRefused(body.Token, reason)
	default:
		c.log.Warn("the broker refused something it did not name", "error", reason)
	}
	return nil
}

// refused takes the verdict on one publish, and logs it if nobody waits for it.
func (cn *connection) refused(number uint64, reason error) error {
	c := cn.client
	c.mu.Lock()
	untold, err := c.refuse(number, reason)
	c.mu.Unlock()
	// At 1, 2, 4, 8…: a program that never flushes must not fill its log.
	if n := untold.Count; n > 0 && n&(n-1) == 0 {
		c.log.Warn("messages refused", "count", n, "first_topic", untold.Topic, "first_reason", untold.First)
	}
	return err
}

func (cn *connection) handlePong(payload []byte) error {
	token, err := wire.DecodePing(payload)
	if err != nil {
		return err
	}
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.pongs.len() > 0 && c.pongs.front().token <= token {
		c.pongs.pop().answer.settle(struct{}{}, nil)
	}
	return nil
}

// handleSubscribed opens a stream for messages.
func (cn *connection) handleSubscribed(payload []byte) error {
	var body wire.Subscribed
	if err := wire.DecodeCold(payload, &body); err != nil {
		return err
	}
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[body.Sub]
	if s == nil || cn.targets[body.Sub] != nil {
		return broken("SUBSCRIBED for subscription %d, which was not asked for", body.Sub)
	}
	cn.targets[body.Sub] = s
	s.confirm(cn, body.Seq)
	return nil
}

func (cn *connection) handleUnsubscribed(payload []byte) error {
	var body wire.Unsubscribed
	if err := wire.DecodeCold(payload, &body); err != nil {
		return err
	}
	cn.client.log.Debug("subscription ended", "sub", body.Sub,
		"delivered", body.Delivered, "dropped", body.Dropped, "discarded", body.Discarded)
	cn.lose(body.Sub, ErrDrained)
	return nil
}

// lose ends a stream behind what has arrived for it. A number that is unknown was
// refused before the program's UNSUBSCRIBE got there.
func (cn *connection) lose(number uint32, err error) {
	cn.deliver()
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[number]; s != nil {
		cn.forget(number)
		s.end(err)
	}
}

func (cn *connection) handleAwaited(payload []byte) error {
	var body wire.Awaited
	if err := wire.DecodeCold(payload, &body); err != nil {
		return err
	}
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaited(body.Token, body.Subscribers, nil)
	return nil
}

// handleGoodbye ends the connection. A broker that stops in order has delivered all it
// had, or told of it, before it says so.
func (cn *connection) handleGoodbye(payload []byte) error {
	var body wire.Goodbye
	if err := wire.DecodeCold(payload, &body); err != nil {
		return err
	}
	cn.goodbye = &body
	if body.Code == wire.CodeShutdown {
		for _, r := range cn.targets {
			if s, ok := r.(*Subscription); ok {
				s.seen = max(s.seen, body.Seq)
			}
		}
	}
	return errGoodbye
}
