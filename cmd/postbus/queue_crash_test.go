package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
)

// crashRounds is how often a queue's broker is killed: a few times, 20 in CI, 200 in
// make soak.
func crashRounds() int {
	switch {
	case os.Getenv("POSTBUS_SOAK") == "1":
		return 200
	case full():
		return 20
	}
	return 3
}

// Random pushers and consumers at full speed, and the broker or a consumer killed at any
// moment: every acked push is delivered, no message comes again whose ack was
// confirmed, what comes twice is marked, order holds.
func TestQueueCrash(t *testing.T) {
	for _, level := range []string{"memory", "kernel", "disk"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			s := &siege{t: t, level: level, dir: t.TempDir(), pushed: map[string]fate{}, delivered: map[string]int{}, acked: map[string]bool{}, seqs: map[string]uint64{}, rng: rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))}
			t.Cleanup(func() { removeKernelQueues(s.dir) })
			s.serve()
			s.declare()
			for round := range crashRounds() {
				s.round()
				if t.Failed() {
					t.Fatalf("in round %d", round)
				}
			}
			s.finish()
			t.Logf("%d pushes acked, %d not known, %d messages delivered, %d of them again, %d acks confirmed",
				s.count(kept), s.count(unknown), len(s.delivered), s.again, len(s.acked))
		})
	}
}

// fate is what is known of a push.
type fate int

const (
	unknown fate = iota // it was sent
	kept                // its ack came
)

// siege is a queue under attack, and all that its clients know. Bodies are lane/number;
// the pushes of a lane come one after the other.
type siege struct {
	t      *testing.T
	level  string
	dir    string
	broker *exec.Cmd
	rng    *rand.Rand
	lanes  int
	rounds int

	mu        sync.Mutex // guards what follows
	pushed    map[string]fate
	delivered map[string]int    // how often
	acked     map[string]bool   // confirmed
	seqs      map[string]uint64 // of each body, once delivered
	again     int
}

func (s *siege) bus() string { return filepath.Join(s.dir, "bus") }

func (s *siege) serve() {
	s.broker = serve(s.t, s.bus(), "--state", filepath.Join(s.dir, "state"))
}

func (s *siege) dial() *client.Client {
	s.t.Helper()
	c, err := client.Dial(s.t.Context(), &client.Options{Address: s.bus(), NoReconnect: true})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *siege) declare() {
	c := s.dial()
	defer c.Close()
	if _, err := c.Queue("q").Declare(s.t.Context(), &client.QueueOptions{Level: s.level, MaxTries: -1, WhenFull: "block"}); err != nil {
		s.t.Fatal(err)
	}
}

// round lets clients at the queue, kills somebody, and waits until all have noticed. A
// queue in memory survives only its consumers.
func (s *siege) round() {
	s.rounds++
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	pushers, consumers := s.dial(), s.dial()
	var all sync.WaitGroup
	for range 12 {
		s.lanes++
		lane := s.lanes
		key := s.rng.IntN(3) == 0
		all.Go(func() { s.push(ctx, pushers, lane, key) })
	}
	for range 2 {
		consumer, err := consumers.Queue("q").Consume(ctx, &client.ConsumeOptions{Prefetch: 1 + s.rng.IntN(40)})
		if err != nil {
			s.t.Fatal(err)
		}
		seed := s.rng.Uint64()
		all.Go(func() { s.consume(ctx, consumer, rand.New(rand.NewPCG(seed, 0))) })
	}
	pull := program(s.t, "pull", "q", "--address", s.bus(), "--follow", "--json")
	out, err := pull.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := pull.Start(); err != nil {
		s.t.Fatal(err)
	}
	all.Go(func() { s.read(out) })

	<-time.After(time.Duration(20+s.rng.IntN(150)) * time.Millisecond) // any moment
	if s.level == "memory" || s.rng.IntN(4) == 0 {
		pull.Process.Kill()
		<-time.After(time.Duration(s.rng.IntN(30)) * time.Millisecond)
	}
	if s.level == "memory" {
		cancel()
	} else {
		s.broker.Process.Kill()
		s.broker.Wait()
	}
	pull.Process.Kill()
	consumers.Close()
	pushers.Close()
	all.Wait()
	pull.Wait()
	if s.level == "memory" {
		return
	}
	if s.rng.IntN(3) == 0 { // killed again while it opens the queue
		again := program(s.t, "serve", "--dir", s.bus(), "--state", filepath.Join(s.dir, "state"))
		if err := again.Start(); err != nil {
			s.t.Fatal(err)
		}
		<-time.After(time.Duration(s.rng.IntN(20)) * time.Millisecond)
		again.Process.Kill()
		again.Wait()
	}
	s.serve()
}

// push pushes one lane until the connection ends.
func (s *siege) push(ctx context.Context, c *client.Client, lane int, keyed bool) {
	opts := &client.PushOptions{}
	if keyed {
		opts.Key = strconv.Itoa(lane)
	}
	padding := strings.Repeat(".", lane%7*200)
	if lane%40 == 0 {
		padding = strings.Repeat("x", 20_000) // in chunks, at level kernel
	}
	for n := 0; ; n++ {
		body := fmt.Sprintf("%d/%d %s", lane, n, padding)
		name, _, _ := strings.Cut(body, " ")
		s.mu.Lock()
		s.pushed[name] = unknown
		s.mu.Unlock()
		if _, err := c.Queue("q").Push(ctx, []byte(body), opts); err != nil {
			return
		}
		s.mu.Lock()
		s.pushed[name] = kept
		s.mu.Unlock()
	}
}

// consume takes messages until the connection ends, and acks most.
func (s *siege) consume(ctx context.Context, consumer *client.Consumer, rng *rand.Rand) {
	var acks sync.WaitGroup
	defer acks.Wait()
	last := uint64(0)
	for {
		d, err := consumer.Next(ctx)
		var lost *client.LeasesLost
		if errors.As(err, &lost) {
			continue
		}
		if err != nil {
			return
		}
		s.deliver(string(d.Body), d.Seq, d.Redelivered)
		if !d.Redelivered && d.Key == "" {
			if d.Seq <= last {
				s.t.Errorf("message %d comes behind %d for the first time", d.Seq, last)
			}
			last = d.Seq
		}
		switch n := rng.IntN(20); {
		case n < 15:
			name, _, _ := strings.Cut(string(d.Body), " ")
			acks.Go(func() {
				if d.AckWait(ctx) == nil {
					s.mu.Lock()
					s.acked[name] = true
					s.mu.Unlock()
				}
			})
		case n < 17:
			_ = d.Ack()
		case n < 18:
			_ = d.Extend(time.Minute)
			_ = d.Nack(time.Duration(rng.IntN(20)) * time.Millisecond)
		default:
			_ = d.Nack(0)
		}
	}
}

// read takes what pull prints until it is dead. A line that is not complete was not
// acked.
func (s *siege) read(out interface{ Read([]byte) (int, error) }) {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var m struct {
			Seq         uint64
			Body        string
			Redelivered bool
		}
		if err := json.Unmarshal(line, &m); err != nil {
			s.t.Errorf("pull printed %.100q: %v", line, err)
			return
		}
		s.deliver(m.Body, m.Seq, m.Redelivered)
	}
}

// deliver checks one delivery.
func (s *siege) deliver(body string, seq uint64, redelivered bool) {
	name, _, _ := strings.Cut(body, " ")
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.pushed[name]; !ok {
		s.t.Errorf("%.50q was delivered, and nobody had pushed it", name)
	}
	if s.acked[name] {
		s.t.Errorf("%s came again, though its ack was confirmed", name)
	}
	if before, ok := s.seqs[name]; ok && before != seq {
		s.t.Errorf("%s is message %d, and was %d", name, seq, before)
	}
	s.seqs[name] = seq
	if s.delivered[name]++; s.delivered[name] > 1 {
		if s.again++; !redelivered {
			s.t.Errorf("%s comes a second time and is not marked", name)
		}
	}
}

// finish takes what is left and looks whether anything is missing, or out of order.
func (s *siege) finish() {
	c := s.dial()
	defer c.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	consumer, err := c.Queue("q").Consume(ctx, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	drained := make(chan error, 1)
	go func() {
		drained <- c.Queue("q").Drain(ctx)
		cancel()
	}()
	for {
		d, err := consumer.Next(ctx)
		if err != nil {
			break
		}
		s.deliver(string(d.Body), d.Seq, d.Redelivered)
		_ = d.Ack()
	}
	if err := <-drained; err != nil {
		s.t.Fatalf("drain: %v", err)
	}
	missing := 0
	for name, fate := range s.pushed {
		if fate == kept && s.delivered[name] == 0 {
			if missing++; missing <= 10 {
				s.t.Errorf("%s was acked and never delivered", name)
			}
		}
		lane, number, _ := strings.Cut(name, "/")
		n, _ := strconv.Atoi(number)
		if next, ok := s.seqs[fmt.Sprintf("%s/%d", lane, n+1)]; ok && s.seqs[name] > next {
			s.t.Errorf("%s is message %d, and the one pushed behind it %d", name, s.seqs[name], next)
		}
	}
	if missing > 10 {
		s.t.Errorf("%d messages are missing in all", missing)
	}
}

func (s *siege) count(f fate) (n int) {
	for _, fate := range s.pushed {
		if fate == f {
			n++
		}
	}
	return n
}
