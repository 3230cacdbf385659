package client

import (
	"context"
	"fmt"
	"slices"

	"github.com/postbus/postbus/wire"
)

// maxFilters is the most a subscription may have (docs/PROTOCOL.md).
const maxFilters = 64

// Subscribe opens a subscription for the topics that match filter, and waits until the
// broker has confirmed it: it gets every message that the broker accepts from then on.
//
// Its errors are ErrBadFilter, ErrBadOption, ErrLimit (the broker takes no more
// subscriptions), the context's, and once the client has ended that of Err.
func (c *Client) Subscribe(ctx context.Context, filter string, opts *SubscribeOptions) (*Subscription, error) {
	s, err := c.newSubscription(filter, opts)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if err := c.gone(); err != nil {
		c.mu.Unlock()
		return nil, err
	}
	s.request.Sub = c.freeNumber()
	c.streams[s.request.Sub] = s
	if c.connected() {
		s.ask()
	}
	c.mu.Unlock()

	if _, err := s.opened.wait(ctx, "subscribe to %q", filter); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (c *Client) newSubscription(filter string, opts *SubscribeOptions) (*Subscription, error) {
	if opts == nil {
		opts = &SubscribeOptions{}
	}
	filters := slices.Concat([]string{filter}, opts.Filters)
	if err := checkSubscribe(filters, opts); err != nil {
		return nil, err
	}
	s := &Subscription{
		client: c,
		request: wire.Subscribe{
			Filters:  filters,
			Messages: opts.BufferMessages,
			Bytes:    opts.BufferBytes,
			NoLocal:  opts.NoLocal,
		},
		messageFeed: newFeed[Message](),
		opened:      newReply[struct{}](),
		ended:       newReply[struct{}](),
	}
	if opts.Policy != 0 {
		s.request.Policy = opts.Policy.String()
	}
	switch {
	case opts.Credit == 0:
		s.credit.limit = defaultCredit
	case opts.Credit > 0:
		s.credit.limit = opts.Credit
	}
	// 64 filters of 1024 bytes each are just above what a SUBSCRIBE may have.
	if size := len(wire.AppendCold(nil, wire.TypeSubscribe, &s.request)); size > wire.MaxCold-64 {
		return nil, fmt.Errorf("%w: the filters of a subscription take %d bytes, more than fit a frame of %d: use several subscriptions",
			ErrTooLarge, size, wire.MaxCold)
	}
	return s, nil
}

func checkSubscribe(filters []string, opts *SubscribeOptions) error {
	if len(filters) > maxFilters {
		return fmt.Errorf("%w: a subscription with %d filters, the limit is %d: use several", ErrBadOption, len(filters), maxFilters)
	}
	for _, f := range filters {
		if err := wire.CheckFilter(f); err != nil {
			return withSentinel(err)
		}
	}
	if opts.Policy > Disconnect {
		return fmt.Errorf("%w: %s is none of DropOld, DropNew, Latest, Block and Disconnect", ErrBadOption, opts.Policy)
	}
	if opts.BufferMessages < 0 || opts.BufferBytes < 0 {
		return fmt.Errorf("%w: a buffer of %d messages and %d bytes: the broker's buffers always have a limit; 0 means its default",
			ErrBadOption, opts.BufferMessages, opts.BufferBytes)
	}
	return nil
}

// ask sends the SUBSCRIBE; see stream.
func (s *Subscription) ask() {
	c := s.client
	s.mu.Lock()
	s.source = c.conn
	s.request.Credit = s.credit.restart()
	s.mu.Unlock()
	c.send(wire.TypeSubscribe, &s.request)
}

// confirm opens it for messages; see stream. One that was open on an earlier connection
// may have missed some: all that it is not known to have seen.
func (s *Subscription) confirm(cn *connection, seq uint64) {
	switch {
	case s.bus == "":
	case s.bus != cn.welcome.Bus:
		s.putGap(&cn.inbox, &Gap{Reason: ReasonReconnect})
	case s.seen < seq:
		s.putGap(&cn.inbox, &Gap{First: s.seen + 1, Last: seq, Reason: ReasonReconnect})
	}
	s.bus, s.seen = cn.welcome.Bus, seq
	if s.state == opening {
		s.state = open
		s.opened.settle(struct{}{}, nil)
	}
}

// disconnect ends it if it was to end; see stream. A broker that stops in order has
// sent everything.
func (s *Subscription) disconnect(goodbye *wire.Goodbye) {
	switch {
	case s.state == closing:
		s.retire(nil, ErrClosed)
	case s.state == draining && goodbye != nil && goodbye.Code == wire.CodeShutdown:
		s.retire(nil, ErrDrained)
	case s.state == draining:
		s.retire(s.missed(), ErrDrained)
	}
}

// end ends it; see stream.
func (s *Subscription) end(err error) {
	if s.state == closing {
		err = ErrClosed
	}
	if err == ErrClosed {
		s.cut()
	}
	s.retire(nil, err)
}

// retire forgets a subscription that the broker sends nothing more for: Next gives
// what is left, then gap if there is one, then err. Client.mu is held.
func (s *Subscription) retire(gap *Gap, err error) {
	delete(s.client.streams, s.request.Sub)
	if s.state == opening {
		s.opened.settle(struct{}{}, err)
	}
	s.state = ended
	s.finish(gap, err)
	switch {
	case err != ErrDrained:
		s.ended.settle(struct{}{}, err)
	case gap != nil:
		s.ended.settle(struct{}{}, gap)
	default:
		s.ended.settle(struct{}{}, nil)
	}
}

// Drain ends the subscription without losing what the broker holds for it: that is
// brought into this process, whatever the Credit (the bound is what the broker
// buffers), and when Drain returns nil all of it is here. Next gives it, then
// ErrDrained; Messages gives it and ends.
//
// Drain does not need anybody to read meanwhile. When the connection is lost before
// all is here, Drain returns a *Gap, which Next gives too, at its place. Its other
// errors are the context's, and ErrClosed after Close.
func (s *Subscription) Drain(ctx context.Context) error {
	c := s.client
	c.mu.Lock()
	s.startDrain()
	c.mu.Unlock()
	_, err := s.ended.wait(ctx, "drain the subscription to %q", s.request.Filters[0])
	return err
}

// startDrain asks the broker for the rest; see stream.
func (s *Subscription) startDrain() bool {
	c := s.client
	switch {
	case s.state != open: // it ends already
	case c.conn == nil:
		s.retire(s.missed(), ErrDrained)
	case !c.connected(): // readLoop still runs: when it ends, disconnect does the rest
		s.state = draining
	default:
		s.state = draining
		if s.request.Credit > 0 {
			c.out.pending.frames = wire.AppendCredit(c.out.pending.frames, wire.Credit{Sub: s.request.Sub, Bytes: everything})
		}
		c.send(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: s.request.Sub, Drain: true})
	}
	return s.state == draining || s.state == ended
}

// missed is the gap of a subscription that lost its connection and will not be opened
// again.
func (s *Subscription) missed() *Gap {
	return &Gap{First: s.seen + 1, Reason: ReasonReconnect}
}

// Close ends the subscription at once and does not wait: messages that Next has not
// given are thrown away, here and in the broker, and Next returns ErrClosed. It may
// be called any number of times; the error is always nil.
func (s *Subscription) Close() error {
	s.cut()
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.state == closing || s.state == ended:
	case s.state == draining && c.conn != nil:
		s.state = closing // the broker has been asked already; what comes is thrown away
	case !c.connected():
		s.retire(nil, ErrClosed)
	default:
		s.state = closing
		c.send(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: s.request.Sub})
	}
	return nil
}
