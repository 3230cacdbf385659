package queue_test

import (
	"slices"
	"testing"
	"time"

	"github.com/postbus/postbus/broker/internal/queue"
)

func TestLease(t *testing.T) {
	cases(t, queue.Settings{}, map[string]func(*rig){
		"ack": func(r *rig) {
			r.push(plain(2)...)
			if d := r.take(1); d.Tries != 1 || d.Redelivered {
				r.Errorf("%+v", d)
			}
			r.effects()
			r.ack(1)
			r.effects("remove 1 acked")
			r.false(r.q.Ack(r.now, r.c, 1))
			r.false(r.q.Ack(r.now, r.c, 2))
			r.false(r.q.Ack(r.now, r.c, 99))
			r.effects()
		},
		"nack": func(r *rig) {
			r.push(plain(2)...)
			r.take(1)
			r.nack(1, 0)
			r.effects("save 1 tries=1")
			if d := r.take(1); d.Tries != 2 || !d.Redelivered {
				r.Errorf("%+v", d)
			}
			r.nack(1, 7)
			r.effects("save 1 tries=2 due=1007")
			r.take(2)
			r.due(7)
			r.tick(6)
			r.take(0)
			r.tick(1)
			r.take(1)
			if s := r.q.Stats(); s.Delivered != 4 || s.Redelivered != 2 || s.Nacked != 2 || s.Leased != 2 {
				r.Errorf("%+v", s)
			}
		},
		"a negative delay is none": func(r *rig) {
			r.push(plain(1)...)
			r.take(1)
			r.nack(1, -5)
			r.take(1)
		},
		"runs out": func(r *rig) {
			r.push(plain(1)...)
			r.take(1)
			r.due(10)
			r.tick(9)
			r.state(1, "leased")
			r.tick(1)
			r.effects("save 1 tries=1")
			r.false(r.q.Ack(r.now, r.c, 1))
			r.due(-1)
			r.take(1)
		},
		"settled when it is over, before Tick": func(r *rig) {
			r.push(plain(4)...)
			r.takes(1, 2, 3, 4)
			r.now += 50
			r.ack(1)
			r.nack(2, 0)
			r.reject(3, "")
			r.true(r.q.Extend(r.now, r.c, 4, 5))
			r.tick(0)
			r.effects("remove 1 acked", "save 2 tries=1", "save 3 tries=1 dead: rejected")
			r.state(4, "leased")
		},
		"a length of its own": func(r *rig) {
			r.push(plain(2)...)
			r.q.Take(r.now, r.c, 50)
			r.q.Take(r.now, r.c, 3)
			r.due(3)
			r.tick(3)
			r.effects("save 2 tries=1")
			r.due(47)
		},
		"extend": func(r *rig) {
			r.push(plain(2)...)
			r.takes(1, 2)
			r.now += 5
			r.true(r.q.Extend(r.now, r.c, 1, 0)) // the queue's lease
			r.due(5)
			r.true(r.q.Extend(r.now, r.c, 2, 1)) // shorter
			r.due(1)
			r.tick(1)
			r.effects("save 2 tries=1")
			r.due(9)
			r.tick(9)
			r.effects("save 1 tries=1")
			r.false(r.q.Extend(r.now, r.c, 1, 5))
		},
		"one consumer's is not another's": func(r *rig) {
			other := r.q.Consumer()
			r.push(plain(1)...)
			r.take(1)
			r.false(r.q.Ack(r.now, other, 1))
			r.false(r.q.Nack(r.now, other, 1, 0))
			r.false(r.q.Reject(r.now, other, 1, ""))
			r.false(r.q.Extend(r.now, other, 1, 0))
			r.effects()
			r.ack(1)
		},
		"leased again to another": func(r *rig) {
			other := r.q.Consumer()
			r.push(plain(1)...)
			r.take(1)
			r.tick(10)
			r.q.Take(r.now, other, 0)
			r.false(r.q.Ack(r.now, r.c, 1))
			r.true(r.q.Ack(r.now, other, 1))
		},
		"leave": func(r *rig) {
			other := r.q.Consumer()
			r.push(plain(4)...)
			r.take(1)
			r.take(2)
			r.q.Take(r.now, other, 0)
			r.q.Leave(r.now, r.c)
			r.effects("save 1 tries=1", "save 2 tries=1")
			if r.c.Leases() != 0 || other.Leases() != 1 {
				r.Error("leases stayed, or another's went")
			}
			r.take(0)             // it has left
			r.q.Leave(r.now, r.c) // again
			r.effects()
			r.c = other
			r.takes(1, 2, 4)
		},
		"take and return in one moment, often": func(r *rig) {
			r.push(plain(2)...)
			for range 1000 {
				r.take(1)
				r.nack(1, 0)
			}
			if n := r.q.Entries(); n > 500 {
				r.Errorf("%d entries for 2 messages", n)
			}
		},
	})
}

func TestLeased(t *testing.T) {
	r := newRig(t, queue.Settings{})
	other := r.q.Consumer()
	r.push(plain(200)...)
	for seq := range uint64(200) {
		if seq%2 == 0 {
			r.take(seq + 1)
		} else {
			r.q.Take(r.now, other, 0)
		}
	}
	r.ack(51)
	for _, c := range []struct {
		first, last uint64
		want        []uint64
	}{
		{49, 53, []uint64{49, 53}},
		{50, 50, nil},
		{3, 3, []uint64{3}},
		{195, ^uint64(0), []uint64{195, 197, 199}},
		{^uint64(0), ^uint64(0), nil},
		{0, 4, []uint64{1, 3}},
		{5, 4, nil},
	} {
		if got := r.q.Leased(r.c, c.first, c.last, nil); !slices.Equal(got, c.want) {
			t.Errorf("Leased(%d, %d): %d, want %d", c.first, c.last, got, c.want)
		}
	}
	if got := r.q.Leased(r.c, 0, ^uint64(0), nil); len(got) != 99 || !slices.IsSorted(got) || r.c.Leases() != 99 {
		t.Errorf("%d", got)
	}
	r.check()
}

func TestUpcoming(t *testing.T) {
	cases(t, queue.Settings{}, map[string]func(*rig){
		"": func(r *rig) {
			r.push(queue.Message{}, queue.Message{Priority: 3}, queue.Message{}, queue.Message{Key: "a"}, queue.Message{Key: "a"}, queue.Message{Due: r.now + 5})
			for n, want := range [][]uint64{nil, {2}, {2, 1}, {2, 1, 3}, {2, 1, 3, 4}, {2, 1, 3, 4}} {
				if got := r.q.Upcoming(nil, n); !slices.Equal(got, want) {
					r.Errorf("Upcoming(%d): %d, want %d", n, got, want)
				}
			}
			r.takes(2, 1, 3, 4)
			r.nack(1, 0)
			if got := r.q.Upcoming([]uint64{7}, 9); !slices.Equal(got, []uint64{7, 1}) {
				r.Errorf("%d", got)
			}
		},
	})
}

func TestPick(t *testing.T) {
	cases(t, queue.Settings{}, map[string]func(*rig){
		"": func(r *rig) {
			r.push(queue.Message{}, queue.Message{}, queue.Message{Key: "a"}, queue.Message{Key: "a"}, queue.Message{Expires: r.now + 1}, queue.Message{Due: r.now + 5})
			r.now++
			for _, seq := range []uint64{2, 3} {
				r.true(r.q.Pick(r.now, r.c, seq, 0))
			}
			for _, seq := range []uint64{0, 2, 4, 5, 6, 7} { // leased, behind its key, expired, delayed
				r.false(r.q.Pick(r.now, r.c, seq, 0))
			}
			r.takes(1)
			r.ack(3)
			r.takes(4)
			r.nack(2, 0)
			r.takes(2)
		},
	})
}

func TestRetries(t *testing.T) {
	cases(t, queue.Settings{MaxTries: 2}, map[string]func(*rig){
		"nack": func(r *rig) {
			r.push(plain(1)...)
			r.take(1)
			r.nack(1, 0)
			r.take(1)
			r.nack(1, 5)
			r.effects("save 1 tries=1", "save 1 tries=2 dead: max-tries: 2 deliveries, the last ended by nack")
			r.tick(5)
			r.take(0)
			if s := r.q.Stats(); s.Dead != 1 || s.DeadLettered != 1 || s.Nacked != 2 {
				r.Errorf("%+v", s)
			}
		},
		"time": func(r *rig) {
			r.push(plain(1)...)
			r.take(1)
			r.tick(10)
			r.take(1)
			r.tick(10)
			r.effects("save 1 tries=1", "save 1 tries=2 dead: max-tries: 2 deliveries, the last ended by a lease that ran out")
		},
		"leave": func(r *rig) {
			r.push(plain(1)...)
			r.take(1)
			r.nack(1, 0)
			r.take(1)
			r.q.Leave(r.now, r.c)
			r.effects("save 1 tries=1", "save 1 tries=2 dead: max-tries: 2 deliveries, the last ended by a consumer that left")
		},
		"the last one counts when it is acked": func(r *rig) {
			r.push(plain(1)...)
			r.take(1)
			r.nack(1, 0)
			r.take(1)
			r.ack(1)
			r.effects("save 1 tries=1", "remove 1 acked")
		},
		"a dead letter rather than expired": func(r *rig) {
			r.push(queue.Message{Expires: r.now + 25})
			r.take(1)
			r.tick(10)
			r.take(1)
			r.true(r.q.Extend(r.now, r.c, 1, 20))
			r.tick(20)
			r.effects("save 1 tries=1", "save 1 tries=2 dead: max-tries: 2 deliveries, the last ended by a lease that ran out")
		},
	})
	t.Run("no limit", func(t *testing.T) {
		r := newRig(t, queue.Settings{})
		r.push(plain(1)...)
		for range 100 {
			r.take(1)
			r.nack(1, 0)
		}
		if d := r.take(1); d.Tries != 101 {
			t.Errorf("%+v", d)
		}
	})
}

func TestDeadLetters(t *testing.T) {
	cases(t, queue.Settings{}, map[string]func(*rig){
		"reject": func(r *rig) {
			r.push(plain(3)...)
			r.takes(1, 2, 3)
			r.reject(2, "no such user")
			r.reject(1, "")
			r.effects("save 2 tries=1 dead: rejected: no such user", "save 1 tries=1 dead: rejected")
			r.false(r.q.Ack(r.now, r.c, 1))
			if v, _ := r.q.Look(2); v.Reason != "rejected: no such user" || v.Tries != 1 || v.State != queue.Dead {
				r.Errorf("%+v", v)
			}
		},
		"requeue": func(r *rig) {
			r.push(queue.Message{}, queue.Message{}, queue.Message{Key: "a"}, queue.Message{Key: "a"})
			r.takes(1, 2, 3)
			for _, seq := range []uint64{3, 1, 2} {
				r.reject(seq, "")
			}
			r.q.ClearEffects()
			r.takes(4) // the dead letter does not hold its key
			if got := r.q.Requeue(r.now, 1); len(got) != 1 || got[0] != 1 {
				r.Errorf("%d", got)
			}
			r.effects("save 1 tries=0")
			if d := r.take(1); d.Tries != 1 || !d.Redelivered {
				r.Errorf("%+v", d)
			}
			if got := r.q.Requeue(r.now, 0); !slices.Equal(got, []uint64{2, 3}) {
				r.Errorf("%d", got)
			}
			r.effects("save 2 tries=0", "save 3 tries=0")
			r.takes(2) // 3 is behind 4
			r.ack(4)
			r.takes(3)
			if got := r.q.Requeue(r.now, 0); got != nil {
				r.Errorf("%d", got)
			}
		},
	})
	cases(t, queue.Settings{Forward: true, MaxTries: 1}, map[string]func(*rig){
		"moved": func(r *rig) {
			r.push(queue.Message{Key: "a"}, queue.Message{Key: "a"})
			r.take(1)
			r.reject(1, "bad")
			r.effects("bury 1 tries=1 dead: rejected: bad")
			if s := r.q.Stats(); s.Dead != 1 {
				r.Errorf("%+v", s)
			}
			if n := len(r.q.Requeue(r.now, 0)) + r.q.Purge(true); n != 0 {
				r.Error("it is being moved")
			}
			r.takes(2)
			r.q.Moved(1)
			r.effects("remove 1 moved")
			r.state(1, "none")
			r.q.Moved(1)
			r.q.NotMoved(1)
			r.q.Moved(2)
			r.effects()
		},
		"not moved": func(r *rig) {
			r.push(plain(1)...)
			r.take(1)
			r.nack(1, 0)
			r.effects("bury 1 tries=1 dead: max-tries: 1 deliveries, the last ended by nack")
			r.q.NotMoved(1)
			r.effects("save 1 tries=1 dead: max-tries: 1 deliveries, the last ended by nack")
			r.q.Moved(1)
			r.state(1, "dead")
			if got := r.q.Requeue(r.now, 0); len(got) != 1 {
				r.Errorf("%d", got)
			}
			r.take(1)
		},
		"lost while it is moved": func(r *rig) {
			r.push(plain(1)...)
			r.take(1)
			r.reject(1, "")
			r.q.Lost([]uint64{1})
			r.q.Moved(1)
			r.effects("bury 1 tries=1 dead: rejected")
		},
	})
}

func TestDropOldest(t *testing.T) {
	r := newRig(t, queue.Settings{DropOld: true})
	r.push(queue.Message{Due: r.now + 5}, queue.Message{}, queue.Message{}, queue.Message{})
	r.take(2)
	if n := r.q.DropOldest(1); n != 1 {
		t.Error(n)
	}
	r.effects("remove 3 dropped")
	if n := r.q.DropOldest(9); n != 2 {
		t.Error(n)
	}
	r.effects("remove 4 dropped", "remove 1 dropped")
	r.check()
}

func TestClearEffects(t *testing.T) {
	r := newRig(t, queue.Settings{MaxMessages: 10000})
	for _, n := range []int{10, 10000, 10} {
		r.push(plain(n)...)
		r.q.Purge(false)
		if got := len(r.q.Effects()); got != n {
			t.Errorf("%d effects, want %d", got, n)
		}
		r.q.ClearEffects()
	}
	r.effects()
}

// Whatever the lengths of leases, a consumer's are counted and end in time.
func TestManyLeases(t *testing.T) {
	const n = 3000
	r := newRig(t, queue.Settings{MaxMessages: n})
	r.push(plain(n)...)
	for i := range n {
		r.q.Take(r.now, r.c, time.Duration(1+i*7919%n))
	}
	if r.c.Leases() != n {
		t.Fatal(r.c.Leases())
	}
	for i := range n {
		r.due(1)
		r.tick(1)
		if got := r.c.Leases(); got != n-1-i {
			t.Fatalf("after %d: %d leases", i+1, got)
		}
	}
	r.check()
	for i := range n {
		r.take(uint64(i + 1))
	}
}
