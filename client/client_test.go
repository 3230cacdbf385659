package client_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// checkGoroutines fails the test if at its end, after all other cleanups registered
// later, a goroutine of this package is left.
func checkGoroutines(t testing.TB) {
	t.Cleanup(func() {
		deadline := time.Now().Add(patience)
		for {
			left := clientGoroutines()
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%d goroutines left:\n%s", len(left), strings.Join(left, "\n\n"))
				return
			}
			runtime.Gosched()
		}
	})
}

func clientGoroutines() (left []string) {
	buf := make([]byte, 1<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "/client.(*") || strings.Contains(g, "/client.start") {
			left = append(left, g)
		}
	}
	return left
}

// start starts a broker and returns it with a function that makes clients of it.
func start(t testing.TB, network string, opts *broker.Options) (*brokertest.Bus, func(*client.Options) *client.Client) {
	t.Helper()
	checkGoroutines(t)
	bus := brokertest.Start(t, opts)
	return bus, func(o *client.Options) *client.Client {
		t.Helper()
		if o == nil {
			o = &client.Options{}
		}
		if o.Address == "" {
			o.Address = bus.Address(network)
		}
		return dial(t, o)
	}
}

func dial(t testing.TB, o *client.Options) *client.Client {
	t.Helper()
	c, err := client.Dial(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func subscribe(t testing.TB, c *client.Client, filter string, o *client.SubscribeOptions) *client.Subscription {
	t.Helper()
	s, err := c.Subscribe(testContext(t), filter, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func publish(t testing.TB, c *client.Client, topic string, bodies ...string) {
	t.Helper()
	ctx := testContext(t)
	for _, body := range bodies {
		if err := c.Publish(ctx, topic, []byte(body), nil); err != nil {
			t.Fatal(err)
		}
	}
}

// want takes as many messages as there are bodies and compares them.
func want(t testing.TB, s *client.Subscription, bodies ...string) {
	t.Helper()
	ctx := testContext(t)
	for _, body := range bodies {
		m, err := s.Next(ctx)
		if err != nil {
			t.Fatalf("want %q: %v", body, err)
		}
		if string(m.Body) != body {
			t.Fatalf("want %q, got %q", body, m.Body)
		}
	}
}

// wantGap takes a gap.
func wantGap(t testing.TB, s *client.Subscription) *client.Gap {
	t.Helper()
	m, err := s.Next(testContext(t))
	var gap *client.Gap
	if !errors.As(err, &gap) {
		t.Fatalf("want a gap, got %+v, %v", m, err)
	}
	return gap
}

func wantError(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("want %v, got %v", target, err)
	}
}

func flush(t testing.TB, c *client.Client) {
	t.Helper()
	if err := c.Flush(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func numbered(n int) []string {
	bodies := make([]string, n)
	for i := range bodies {
		bodies[i] = fmt.Sprint("message ", i)
	}
	return bodies
}

// waitFor waits until ok, which something under way makes true.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
