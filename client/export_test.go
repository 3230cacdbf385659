package client

import (
	"context"
	"time"
)

// Turns returns how many calls of Publish wait for the window.
func Turns(c *Client) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.turns.len()
}

// Verdicts returns how many calls wait for the broker's answer to publishes.
func Verdicts(c *Client) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.verdicts.len()
}

// Waiting returns how many calls of Next wait.
func Waiting(s *Subscription) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waits
}

// Trusted is the rule for who may serve a user's own bus.
var Trusted = trusted

// Connected reports whether the client has a connection.
func Connected(c *Client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn != nil
}

// NewBackoff returns a function that pauses, longer each time.
func NewBackoff(min, max time.Duration) func(context.Context) error {
	return newBackoff(min, max).wait
}
