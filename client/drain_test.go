package client_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
)

// Close cuts short a Drain that is under way, or that was given up; the client and
// its other subscriptions go on.
func TestCloseWhileDraining(t *testing.T) {
	brokertest.EachTransport(t, func(t *testing.T, network string) {
		_, connect := start(t, network, nil)
		c, p := connect(nil), connect(nil)
		stop := make(chan struct{})
		var flood sync.WaitGroup
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = p.Publish(t.Context(), "t/x", make([]byte, 100), nil)
				}
			}
		})
		for i := range 30 {
			s := subscribe(t, c, "t/#", &client.SubscribeOptions{BufferMessages: 50, Credit: []int{0, 1000, -1}[i%3]})
			if _, err := s.Next(t.Context()); err != nil {
				var gap *client.Gap
				if !errors.As(err, &gap) {
					t.Fatal(err)
				}
			}
			given, cancel := context.WithCancel(t.Context())
			var closed sync.WaitGroup
			if i%2 == 0 {
				cancel() // Drain is given up as soon as it has asked
			} else {
				closed.Go(func() { _ = s.Close() })
			}
			_ = s.Drain(given)
			_ = s.Close()
			cancel()
			closed.Wait()
			if err := c.Ping(testContext(t)); err != nil {
				t.Fatalf("after %d subscriptions: %v", i+1, err)
			}
		}
		close(stop)
		flood.Wait()
	})
}

// A client may be closed while one of its subscriptions is being drained.
func TestCloseClientWhileDraining(t *testing.T) {
	_, connect := start(t, "unix", nil)
	p := connect(nil)
	for range 30 {
		c := connect(nil)
		s := subscribe(t, c, "t", nil)
		var all sync.WaitGroup
		all.Go(func() {
			for range 200 {
				_ = p.Publish(t.Context(), "t", nil, nil)
			}
		})
		if _, err := s.Next(testContext(t)); err != nil {
			t.Fatal(err)
		}
		all.Go(func() { _ = c.Close() })
		if err := s.Drain(testContext(t)); err != nil {
			var gap *client.Gap
			if !errors.As(err, &gap) && !errors.Is(err, client.ErrClosed) {
				t.Errorf("drain: %v", err)
			}
		}
		all.Wait()
	}
}
