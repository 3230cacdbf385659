package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/postbus/postbus/wire"
)

// run serves one connection after the other until the client ends for good.
func (c *Client) run(ctx context.Context, cn *connection) {
	defer close(c.done)
	defer c.stop()
	pause := newBackoff(c.opts.ReconnectMin, c.opts.ReconnectMax)
	for {
		began := time.Now()
		again, err := c.lost(cn, cn.serve())
		if !again {
			c.end(err)
			return
		}
		// A broker that takes the connection only to end it gets no faster tries.
		if time.Since(began) > c.opts.ReconnectMax {
			pause.reset()
		}
		cn, err = c.reconnect(ctx, pause, err)
		if err != nil {
			c.end(err)
			return
		}
		c.restore(cn)
	}
}

// lost says what the end of a connection means, and whether to make another. The
// streams that were to end have ended with it.
func (c *Client) lost(cn *connection, err error) (again bool, cause error) {
	c.mu.Lock()
	c.conn = nil
	closed := c.closing
	c.loseSettles()
	c.loseRequests()
	for _, s := range c.streams {
		s.disconnect(cn.goodbye)
	}
	c.mu.Unlock()
	if closed {
		return false, ErrClosed
	}
	again, cause = reasonFor(cn.goodbye, err)
	if !again {
		return false, cause
	}
	if c.opts.NoReconnect {
		return false, disconnected(cause)
	}
	c.log.Warn("connection lost", "address", cn.address, "reason", cause)
	return true, cause
}

// reasonFor turns what ended a connection into an error, and says whether another
// attempt could go better.
func reasonFor(goodbye *wire.Goodbye, err error) (again bool, cause error) {
	if goodbye != nil {
		return retryable(goodbye.Code), refusal(goodbye.Code, goodbye.Text)
	}
	if fault := faultOf(err); fault != nil {
		return false, fmt.Errorf("%w by the broker: %w", ErrProtocol, err)
	}
	if errors.Is(err, io.EOF) {
		return true, fmt.Errorf("the broker closed it without a goodbye: %w", err)
	}
	return true, err
}

// retryable reports whether a broker that says goodbye for this reason may take the
// client again.
func retryable(code wire.Code) bool {
	switch code {
	case wire.CodeMalformed, wire.CodeUnknownFrame, wire.CodeVersion, wire.CodeTooLarge, wire.CodeNotAllowed:
		return false
	}
	return true
}

func disconnected(cause error) error { return fmt.Errorf("%w: %w", ErrDisconnected, cause) }

// reconnect connects again, with pauses, until that succeeds, ReconnectFor is over, or
// the client is closed.
func (c *Client) reconnect(ctx context.Context, pause *backoff, cause error) (*connection, error) {
	if c.opts.ReconnectFor > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.opts.ReconnectFor)
		defer cancel()
	}
	last := cause
	for pause.wait(ctx) == nil {
		cn, again, err := c.redial(ctx)
		switch {
		case err == nil:
			c.log.Info("connected again", "address", cn.address)
			return cn, nil
		case !again:
			return nil, disconnected(err)
		case ctx.Err() == nil:
			last = err
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil, ErrClosed
	}
	return nil, fmt.Errorf("%w: none again within %v: %w", ErrDisconnected, c.opts.ReconnectFor, last)
}

// restore puts everything on a new connection that the program has asked for, in the
// order in which a broker that starts again wants it: subscriptions, then publishes.
func (c *Client) restore(cn *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = cn
	c.server = Server{
		Address:    cn.address,
		Version:    cn.welcome.Broker,
		Bus:        cn.welcome.Bus,
		MaxMessage: cn.welcome.MaxMessage,
		Self:       Peer{UID: cn.welcome.UID, GID: cn.welcome.GID, PID: cn.welcome.PID},
	}
	window := cn.welcome.Window
	if c.opts.Window > 0 {
		window = min(window, c.opts.Window)
	}
	c.queues = slices.Contains(cn.welcome.Features, wire.FeatureQueues)
	c.out.restart(window)
	c.askStreams()
	c.out.release()
	for token, a := range c.awaits {
		c.sendAwait(token, a)
	}
	c.sendRequests()
	c.out.ping = c.verdicts.len() > 0 || c.pongs.len() > 0
	if c.closing {
		c.finish(cn, &wire.Goodbye{})
	}
}

// askStreams opens all streams on a new connection. The subscriptions, which it was
// told to wait for, come first; mu is held.
func (c *Client) askStreams() {
	for _, s := range c.streams {
		if _, ok := s.(*Subscription); ok {
			s.ask()
		}
	}
	for _, s := range c.streams {
		if _, ok := s.(*Consumer); ok {
			s.ask()
		}
	}
}

// end is the end for good: everybody who waits is told.
func (c *Client) end(err error) {
	if err != ErrClosed {
		c.log.Warn("ended", "reason", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for c.verdicts.len() > 0 {
		c.verdicts.pop().answer.settle(Receipt{}, err)
	}
	for c.pongs.len() > 0 {
		c.pongs.pop().answer.settle(struct{}{}, err)
	}
	for token := range c.awaits {
		c.awaited(token, 0, err)
	}
	for token := range c.requests {
		c.answer(token, err)
	}
	if c.closing {
		err = ErrClosed
	}
	for _, s := range c.streams {
		s.end(err)
	}
	c.out.wakeTurns()
}

// takeUnanswered returns an error if publishes have no verdict, and never will; mu is
// held.
func (c *Client) takeUnanswered() error {
	n := c.out.unanswered()
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d of %d", ErrUnacknowledged, n, c.out.accepted)
}

// backoff is a pause that doubles.
type backoff struct{ min, max, next time.Duration }

func newBackoff(min, max time.Duration) *backoff { return &backoff{min: min, max: max, next: min} }

func (b *backoff) reset() { b.next = b.min }

// wait pauses, or returns the context's error when that ends first.
func (b *backoff) wait(ctx context.Context) error {
	// Between half of it and all: clients that lost the same broker come back apart.
	pause := b.next/2 + rand.N(b.next/2+1)
	b.next = min(2*b.next, b.max)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
