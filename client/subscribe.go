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
	c.subs[s.request.Sub] = s
	if c.connected() {
		c.sendSubscribe(s)
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
		opened: newReply[struct{}](),
		ended:  newReply[struct{}](),
		wake:   make(chan struct{}, 1),
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

// freeNumber returns a number that no subscription has; mu is held.
func (c *Client) freeNumber() uint32 {
	for {
		c.lastSub++
		if c.lastSub != 0 && c.subs[c.lastSub] == nil {
			return c.lastSub
		}
	}
}

// sendSubscribe asks for s on the present connection; mu is held.
func (c *Client) sendSubscribe(s *Subscription) {
	s.mu.Lock()
	s.source = c.conn
	s.request.Credit = s.credit.restart()
	s.mu.Unlock()
	c.send(wire.TypeSubscribe, &s.request)
}

// retire forgets a subscription that the broker sends nothing more for: Next gives
// what is left, then gap if there is one, then err. mu is held.
func (c *Client) retire(s *Subscription, gap *Gap, err error) {
	delete(c.subs, s.request.Sub)
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
	s.startDrain()
	_, err := s.ended.wait(ctx, "drain the subscription to %q", s.request.Filters[0])
	return err
}

func (s *Subscription) startDrain() {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.state != open {
		return // it ends already
	}
	s.state = draining
	if c.conn == nil {
		c.retire(s, s.missed(), ErrDrained)
		return
	}
	if !c.connected() {
		return // readLoop still runs: when it ends, lost does the rest
	}
	if s.request.Credit > 0 {
		c.out.pending.frames = wire.AppendCredit(c.out.pending.frames, wire.Credit{Sub: s.request.Sub, Bytes: everything})
	}
	c.send(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: s.request.Sub, Drain: true})
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
		c.retire(s, nil, ErrClosed)
	default:
		s.state = closing
		c.send(wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: s.request.Sub})
	}
	return nil
}
