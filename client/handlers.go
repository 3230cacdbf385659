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
	s := cn.targets[number]
	if s == nil {
		return broken("a TARGET for subscription %d, which is not open", number)
	}
	cn.aim(s)
	return nil
}

func (cn *connection) handleMessage(payload []byte) error {
	var m wire.Message
	if err := m.Decode(payload); err != nil {
		return err
	}
	if cn.target == nil {
		return broken("a MESSAGE before a TARGET")
	}
	redelivered := false
	if m.Info != nil {
		var err error
		if redelivered, err = decodeInfo(m.Info); err != nil {
			return err
		}
	}
	cn.put(&m, redelivered, wire.HeaderSize+len(payload))
	return nil
}

// decodeInfo is apart so that what it decodes into, which escapes, is not allocated
// for each message.
func decodeInfo(raw []byte) (redelivered bool, err error) {
	var info wire.MessageInfo
	err = wire.DecodeOptions(raw, &info)
	return info.Redelivered, err
}

func (cn *connection) handleGap(payload []byte) error {
	var g wire.Gap
	if err := g.Decode(payload); err != nil {
		return err
	}
	s := cn.targets[g.Sub]
	if s == nil {
		return broken("a GAP for subscription %d, which is not open", g.Sub)
	}
	cn.putGap(s, &Gap{First: g.First, Last: g.Last, Count: g.Count, Reason: g.Reason})
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
	return c.acked(a.UpTo, Receipt{Subscribers: int(a.Subscribers), Queues: int(a.Queues)})
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
	case body.Sub != 0:
		c.mu.Lock()
		defer c.mu.Unlock()
		cn.lose(body.Sub, reason)
	case body.Token != 0:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.awaited(body.Token, 0, reason)
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

// handleSubscribed opens a subscription for messages. One that was open on an earlier
// connection may have missed some: all that it is not known to have seen.
func (cn *connection) handleSubscribed(payload []byte) error {
	var body wire.Subscribed
	if err := wire.DecodeCold(payload, &body); err != nil {
		return err
	}
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.subs[body.Sub]
	if s == nil || cn.targets[body.Sub] != nil {
		return broken("SUBSCRIBED for subscription %d, which was not asked for", body.Sub)
	}
	cn.targets[body.Sub] = s
	switch {
	case s.bus == "":
	case s.bus != cn.welcome.Bus:
		cn.putGap(s, &Gap{Reason: ReasonReconnect})
	case s.seen < body.Seq:
		cn.putGap(s, &Gap{First: s.seen + 1, Last: body.Seq, Reason: ReasonReconnect})
	}
	s.bus, s.seen = cn.welcome.Bus, body.Seq
	if s.state == opening {
		s.state = open
		s.opened.settle(struct{}{}, nil)
	}
	return nil
}

func (cn *connection) handleUnsubscribed(payload []byte) error {
	var body wire.Unsubscribed
	if err := wire.DecodeCold(payload, &body); err != nil {
		return err
	}
	c := cn.client
	c.log.Debug("subscription ended", "sub", body.Sub,
		"delivered", body.Delivered, "dropped", body.Dropped, "discarded", body.Discarded)
	c.mu.Lock()
	defer c.mu.Unlock()
	cn.lose(body.Sub, ErrDrained)
	return nil
}

// lose ends subscription number behind what has arrived for it; Client.mu is held. A
// number that is unknown was refused before the program's UNSUBSCRIBE got there.
func (cn *connection) lose(number uint32, err error) {
	s := cn.client.subs[number]
	if s == nil {
		return
	}
	cn.deliver()
	delete(cn.targets, number)
	if cn.target == s {
		cn.aim(nil)
	}
	if s.state == closing {
		err = ErrClosed
	}
	cn.client.retire(s, nil, err)
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
		for _, s := range cn.targets {
			s.seen = max(s.seen, body.Seq)
		}
	}
	return errGoodbye
}
