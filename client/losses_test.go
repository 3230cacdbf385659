package client_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// unreliable is a broker with one queue that has leases run out and connections end at
// random, and sees to it that only what the program settled is settled.
type unreliable struct {
	t        *testing.T
	l        *listener
	s        *script
	prefetch int
	sub      uint32
	settles  uint64
	ready    []uint64
	leased   map[uint64]bool
	tries    map[uint64]int
	acked    map[uint64]bool
	left     int

	mu        sync.Mutex
	called    map[uint64]int // settlings that have begun, by seq
	confirmed map[uint64]bool
}

func (b *unreliable) begin(seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.called[seq]++
}

// kept takes the client's word that the ack is kept.
func (b *unreliable) kept(seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.confirmed[seq] = true
}

// serve plays the broker until everything is acked.
func (b *unreliable) serve() {
	for b.left > 0 {
		if rand.IntN(200) == 0 {
			b.cut()
		}
		if rand.IntN(20) == 0 {
			for seq := range b.leased { // some lease or other
				b.giveBack(seq)
				break
			}
		}
		b.deliver()
		b.take()
	}
}

func (b *unreliable) giveBack(seq uint64) {
	delete(b.leased, seq)
	i, _ := slices.BinarySearch(b.ready, seq)
	b.ready = slices.Insert(b.ready, i, seq)
}

// cut ends the connection, and with it all leases.
func (b *unreliable) cut() {
	_ = b.s.conn.Close()
	for seq := range b.leased {
		b.giveBack(seq)
	}
	b.s = b.l.accept()
	b.s.greet(nil)
	b.settles = 0
	b.mu.Lock()
	clear(b.called) // nothing of the old connection may be said on this one
	b.mu.Unlock()
	b.sub = b.s.openConsumer().Sub
}

func (b *unreliable) deliver() {
	frames := wire.AppendTarget(nil, b.sub)
	for len(b.leased) < b.prefetch && len(b.ready) > 0 {
		seq := b.ready[0]
		b.ready = b.ready[1:]
		b.leased[seq] = true
		b.tries[seq]++
		m := wire.Message{Seq: seq, Topic: []byte("@queue/jobs")}
		if b.tries[seq] > 1 {
			m.Info = wire.AppendOptions(nil, &wire.MessageInfo{Redelivered: true, Tries: b.tries[seq]})
		}
		b.mu.Lock()
		if b.confirmed[seq] {
			b.t.Errorf("seq %d comes again, though its ack was confirmed", seq)
		}
		b.mu.Unlock()
		frames = wire.AppendMessage(frames, &m)
	}
	b.s.send(frames)
}

// take handles one frame of the client's.
func (b *unreliable) take() {
	switch t, payload := b.s.next(); t {
	case wire.TypePing:
		token, _ := wire.DecodePing(payload)
		b.s.send(wire.AppendPong(nil, token))
	case wire.TypeSettle:
		var settle wire.Settle
		if err := settle.Decode(payload); err != nil {
			b.t.Error(err)
		}
		b.settles++
		if !b.settle(settle) {
			b.s.leaseLost(b.settles, b.sub)
		}
		b.s.settled(b.settles)
	default:
		b.t.Errorf("a frame of %s", t)
	}
}

// settle does what a SETTLE says, and reports whether all of it was leased.
func (b *unreliable) settle(settle wire.Settle) (all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all = true
	for seq := settle.First; seq <= settle.Last; seq++ {
		if b.called[seq] == 0 {
			b.t.Errorf("seq %d is settled by %+v, but not by the program", seq, settle)
		}
		b.called[seq]--
		switch {
		case !b.leased[seq]:
			all = false
		case settle.Verb == wire.VerbAck:
			delete(b.leased, seq)
			b.acked[seq] = true
			b.left--
		default:
			b.giveBack(seq)
		}
	}
	return all
}

// work is a program that takes what there is, a few at a time, and settles them in any
// order.
func (b *unreliable) work(ctx context.Context, consumer *client.Consumer) {
	for ctx.Err() == nil {
		d, err := consumer.Next(ctx)
		var batch []*client.Delivery
		for ; d != nil && len(batch) < 5; d, err = client.TryNext(consumer) {
			batch = append(batch, d)
		}
		if _, lost := errors.AsType[*client.LeasesLost](err); err != nil && !lost && ctx.Err() == nil {
			b.t.Error(err)
			return
		}
		if d != nil {
			batch = append(batch, d)
		}
		rand.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		for _, d := range batch {
			b.finish(ctx, d)
		}
	}
}

func (b *unreliable) finish(ctx context.Context, d *client.Delivery) {
	b.begin(d.Seq)
	var err error
	switch rand.IntN(10) {
	case 0:
		err = d.Nack(0)
	case 1:
		if err = d.AckWait(ctx); err == nil {
			b.kept(d.Seq)
		}
	default:
		err = d.Ack()
	}
	if err != nil && !errors.Is(err, client.ErrLeaseLost) && ctx.Err() == nil {
		b.t.Error(err)
	}
}

// Through lost connections and leases, everything is acked in the end, and what was
// confirmed does not come again.
func TestUnreliable(t *testing.T) {
	eachSocket(t, func(t *testing.T, l *listener, c *client.Client, s *script) {
		const messages, workers, prefetch = 2000, 4, 64
		b := &unreliable{
			t: t, l: l, s: s, prefetch: prefetch, ready: span(1, messages), left: messages,
			leased: map[uint64]bool{}, tries: map[uint64]int{}, acked: map[uint64]bool{},
			called: map[uint64]int{}, confirmed: map[uint64]bool{},
		}
		consumer, asked := consume(t, c, s, &client.ConsumeOptions{Prefetch: prefetch, Lease: time.Hour})
		b.sub = asked.Sub
		ctx, stop := context.WithCancel(testContext(t))
		var all sync.WaitGroup
		for range workers {
			all.Go(func() { b.work(ctx, consumer) })
		}
		b.serve()
		stop()
		_ = b.s.conn.Close()
		_ = c.Close()
		all.Wait()
	})
}
