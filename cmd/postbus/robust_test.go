package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
)

// Clients killed at random moments leave nothing behind in the broker: no
// connection, no subscription, no descriptor, no goroutine, no byte.
func TestKilledClientsLeaveNothing(t *testing.T) {
	bus := brokertest.Start(t, nil)
	var descriptors, goroutines int
	for i := range 51 {
		if i == 1 { // the first round opens what the test's own runtime keeps
			descriptors, goroutines = forgotten(t, bus)
		}
		sub := program(t, "sub", "--address", bus.Dir, "--policy", []string{"block", "drop-old", "latest"}[i%3], "x/#")
		startReady(t, sub)
		pub := program(t, "pub", "--address", bus.Dir, "-l", fmt.Sprint("x/", i))
		in, err := pub.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := pub.Start(); err != nil {
			t.Fatal(err)
		}
		fed := make(chan struct{})
		go func() {
			defer close(fed)
			line := []byte(strings.Repeat("x", 99) + "\n")
			for { // ends when the reader is dead
				if _, err := in.Write(line); err != nil {
					return
				}
			}
		}()
		before := bus.Stats().Published
		bus.Eventually(t, "messages flow", func(s broker.Stats) bool { return s.Published > before })
		<-time.After(time.Duration(rand.IntN(20)) * time.Millisecond) // any moment
		first, second := sub, pub
		if i%2 == 0 {
			first, second = pub, sub
		}
		first.Process.Kill()
		second.Process.Kill()
		first.Wait()
		second.Wait()
		<-fed
	}
	fds, running := forgotten(t, bus)
	if fds > descriptors {
		t.Errorf("%d descriptors are open, %d were before", fds, descriptors)
	}
	if running > goroutines {
		t.Errorf("%d goroutines run, %d did before", running, goroutines)
	}
}

// forgotten waits until the broker has nothing left of any client, and returns how
// many descriptors and goroutines there are then.
func forgotten(t *testing.T, bus *brokertest.Bus) (descriptors, goroutines int) {
	t.Helper()
	bus.Eventually(t, "the dead are forgotten", func(s broker.Stats) bool {
		return s.Connections == 0 && s.Subscriptions == 0 && s.Buffered == 0
	})
	return count(t, "/proc/self/fd"), runtime.NumGoroutine()
}

func count(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// crowd is clients that publish and subscribe while their broker comes and goes.
type crowd struct {
	t       *testing.T
	stop    chan struct{}
	acked   [10]atomic.Int64 // by publisher: how many messages have a verdict
	pubs    sync.WaitGroup
	subs    sync.WaitGroup
	readers []*reader
}

// reader is a subscriber and what it has seen.
type reader struct {
	c       *client.Client
	sub     *client.Subscription
	got     atomic.Int64
	told    atomic.Int64 // gaps
	next    [10]int64    // by publisher: the number expected next
	missing int          // numbers passed over
	again   int          // numbers seen again, marked
	gaps    []*client.Gap
	bad     []string
}

func newCrowd(t *testing.T, dir string) *crowd {
	c := &crowd{t: t, stop: make(chan struct{})}
	ctx := t.Context()
	for range 10 {
		r := &reader{c: c.dial(dir)}
		sub, err := r.c.Subscribe(ctx, "crowd/+", &client.SubscribeOptions{Policy: client.Block})
		if err != nil {
			t.Fatal(err)
		}
		r.sub = sub
		c.readers = append(c.readers, r)
		c.subs.Go(func() { r.read(ctx) })
	}
	for i := range c.acked {
		p := c.dial(dir)
		c.pubs.Go(func() { c.publish(ctx, p, i) })
	}
	return c
}

func (c *crowd) dial(dir string) *client.Client {
	// The broker dies more often here than elsewhere: short pauses keep the test short.
	cl, err := client.Dial(c.t.Context(), &client.Options{Address: dir, ReconnectMax: 50 * time.Millisecond})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cl.Close() })
	return cl
}

// publish sends numbered messages, in batches of which each is acknowledged.
func (c *crowd) publish(ctx context.Context, p *client.Client, id int) {
	topic := fmt.Sprint("crowd/", id)
	for n := int64(0); ; {
		select {
		case <-c.stop:
			return
		default:
		}
		for range 1 + rand.IntN(20) {
			if err := p.Publish(ctx, topic, fmt.Appendf(nil, "%d", n), nil); err != nil {
				c.t.Errorf("publisher %d: %v", id, err)
				return
			}
			n++
		}
		if err := p.Flush(ctx); err != nil {
			c.t.Errorf("publisher %d: flush: %v", id, err)
			return
		}
		c.acked[id].Store(n)
	}
}

func (r *reader) read(ctx context.Context) {
	for m, err := range r.sub.Messages(ctx) {
		var gap *client.Gap
		if errors.As(err, &gap) {
			r.gaps = append(r.gaps, gap)
			r.told.Add(1)
			continue
		}
		if err != nil {
			r.bad = append(r.bad, err.Error())
			return
		}
		r.got.Add(1)
		var id int
		var n int64
		if _, err := fmt.Sscanf(m.Topic+" "+string(m.Body), "crowd/%d %d", &id, &n); err != nil {
			r.bad = append(r.bad, err.Error())
			continue
		}
		switch {
		case n > r.next[id]:
			r.missing += int(n - r.next[id])
			r.next[id] = n + 1
		case n == r.next[id]:
			r.next[id] = n + 1
		case m.Redelivered:
			r.again++
		default:
			r.bad = append(r.bad, fmt.Sprintf("publisher %d: %d came again, unmarked", id, n))
		}
	}
}

// progress waits until every publisher has had more messages acknowledged and every
// reader has got more: all are connected.
func (c *crowd) progress() {
	var counters []*atomic.Int64
	for i := range c.acked {
		counters = append(counters, &c.acked[i], &c.readers[i].got)
	}
	from := make([]int64, len(counters))
	for i, n := range counters {
		from[i] = n.Load()
	}
	deadline := time.Now().Add(60 * time.Second)
	for i, n := range counters {
		for n.Load() <= from[i] {
			if time.Now().After(deadline) {
				c.t.Fatalf("client %d is stuck", i)
			}
			runtime.Gosched()
		}
	}
}

// told waits until every reader was told of n gaps: got may rise by what it had before.
func (c *crowd) told(n int64) {
	deadline := time.Now().Add(60 * time.Second)
	for i, r := range c.readers {
		for r.told.Load() < n {
			if time.Now().After(deadline) {
				c.t.Fatalf("reader %d was told of %d gaps, want %d", i, r.told.Load(), n)
			}
			runtime.Gosched()
		}
	}
}

// finish ends the publishers, then the readers, and returns what each publisher got
// acknowledged.
func (c *crowd) finish() {
	close(c.stop)
	c.pubs.Wait()
	for _, r := range c.readers {
		if err := r.sub.Drain(c.t.Context()); err != nil {
			c.t.Errorf("drain: %v", err)
		}
	}
	c.subs.Wait()
	for _, r := range c.readers {
		for _, bad := range r.bad {
			c.t.Error(bad)
		}
	}
}

func rounds(short int) int {
	if full() {
		return 10 * short
	}
	return short
}

// An orderly restart under twenty clients: nothing acknowledged is lost, nothing
// comes twice without being marked, nobody is told of a gap.
func TestRestartLosesNothing(t *testing.T) {
	dir := t.TempDir()
	b := serve(t, dir)
	c := newCrowd(t, dir)
	n := rounds(3)
	for range n {
		c.progress()
		if err := b.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := b.Wait(); err != nil {
			t.Fatalf("serve: %v: %s", err, b.Stderr)
		}
		b = serve(t, dir)
	}
	c.progress()
	c.finish()
	total := 0
	for i, r := range c.readers {
		if r.missing > 0 {
			t.Errorf("reader %d: %d messages are missing", i, r.missing)
		}
		for id := range r.next {
			if acked := c.acked[id].Load(); r.next[id] < acked {
				t.Errorf("reader %d: got %d of %d acknowledged by publisher %d", i, r.next[id], acked, id)
			}
			total += int(r.next[id])
		}
		for _, gap := range r.gaps {
			t.Errorf("reader %d: %v", i, gap)
		}
	}
	t.Logf("%d deliveries over %d restarts", total, n)
}

// After kill -9 of the broker every subscription is told that it may have missed
// something, publishes without a verdict are sent again and marked, and all goes on.
func TestKilledBrokerIsTold(t *testing.T) {
	dir := t.TempDir()
	b := serve(t, dir)
	c := newCrowd(t, dir)
	n := rounds(3)
	for i := range n {
		c.progress()
		if err := b.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		b.Wait()
		b = serve(t, dir)
		c.told(int64(i + 1))
	}
	c.progress()
	c.finish()
	for i, r := range c.readers {
		if len(r.gaps) < n {
			t.Errorf("reader %d was told of %d gaps by %d kills", i, len(r.gaps), n)
		}
		for _, gap := range r.gaps {
			if gap.Reason != client.ReasonReconnect {
				t.Errorf("reader %d: %v", i, gap)
			}
		}
	}
}
