package queue_test

import (
	"math"
	"testing"
	"time"

	"github.com/postbus/postbus/broker/internal/queue"
)

func TestPush(t *testing.T) {
	cases(t, queue.Settings{}, map[string]func(*rig){
		"pending is not delivered": func(r *rig) {
			seq := r.pushed(queue.Message{}, queue.Taken)
			r.state(seq, "pending")
			r.false(r.q.Ready())
			r.take(0)
			r.q.Stored(r.now, seq)
			r.true(r.q.Ready())
			r.take(seq)
			r.effects()
		},
		"stored in another order": func(r *rig) {
			for range 3 {
				r.pushed(queue.Message{}, queue.Taken)
			}
			r.q.Stored(r.now, 3)
			r.q.Stored(r.now, 1)
			r.q.Stored(r.now, 2)
			r.takes(1, 2, 3)
		},
		"stored twice, or never pushed": func(r *rig) {
			r.push(plain(1)...)
			r.q.Stored(r.now, 1)
			r.q.Stored(r.now, 2)
			r.q.Unstored(1)
			r.q.Unstored(7)
			r.takes(1)
		},
		"unstored": func(r *rig) {
			r.pushed(queue.Message{Size: 5, Key: "a"}, queue.Taken)
			r.q.Unstored(1)
			r.effects()
			if s := r.q.Stats(); s != (queue.Stats{}) {
				r.Errorf("%+v", s)
			}
			r.push(queue.Message{Key: "a"})
			r.takes(2)
		},
		"due": func(r *rig) {
			r.push(queue.Message{Due: r.now + 5}, queue.Message{Due: r.now}, queue.Message{Due: 1})
			r.state(1, "delayed")
			r.due(5)
			r.takes(2, 3)
			r.tick(4)
			r.takes()
			r.tick(1)
			r.takes(1)
			r.effects() // a delay that is over needs no trace
		},
		"due before it is stored": func(r *rig) {
			seq := r.pushed(queue.Message{Due: r.now + 5}, queue.Taken)
			r.now += 5
			r.q.Stored(r.now, seq)
			r.takes(seq)
		},
		"due at the end of time": func(r *rig) {
			r.push(queue.Message{Due: math.MaxInt64}, queue.Message{})
			r.take(2)
			r.nack(2, math.MaxInt64)
			r.tick(1 << 50)
			r.takes()
			r.state(2, "delayed")
		},
	})
	t.Run("the next seq", func(t *testing.T) {
		q := queue.New(queue.Settings{MaxMessages: 1, MaxBytes: 1, Lease: 1}, 41)
		if seq, v := q.Push(0, &queue.Message{}); seq != 42 || v != queue.Taken {
			t.Error(seq, v)
		}
	})
}

func TestPriority(t *testing.T) {
	cases(t, queue.Settings{}, map[string]func(*rig){
		"9 first, then by seq": func(r *rig) {
			for _, p := range []uint8{0, 9, 5, 9, 0, 200} {
				r.push(queue.Message{Priority: p})
			}
			r.takes(2, 4, 6, 3, 1, 5)
		},
		"returned ones keep their place": func(r *rig) {
			r.push(plain(4)...)
			r.take(1)
			r.take(2)
			r.nack(2, 0)
			r.nack(1, 0)
			r.takes(1, 2, 3, 4)
		},
		"delayed ones too": func(r *rig) {
			r.push(queue.Message{Due: r.now + 1}, queue.Message{}, queue.Message{Priority: 1, Due: r.now + 2}, queue.Message{})
			r.take(2)
			r.nack(2, 1)
			r.tick(2)
			r.takes(3, 1, 2, 4)
		},
	})
}

func TestFull(t *testing.T) {
	cases(t, queue.Settings{MaxMessages: 3, MaxBytes: 10, MaxTries: 1}, map[string]func(*rig){
		"messages": func(r *rig) {
			r.push(plain(3)...)
			r.false(r.q.HasRoom(0))
			r.pushed(queue.Message{}, queue.Full)
			r.take(1)
			r.pushed(queue.Message{}, queue.Full) // it still counts
			r.ack(1)
			r.true(r.q.HasRoom(0))
			r.push(plain(1)...)
		},
		"bytes": func(r *rig) {
			r.push(queue.Message{Size: 8})
			r.true(r.q.HasRoom(2))
			r.false(r.q.HasRoom(3))
			r.pushed(queue.Message{Size: 3}, queue.Full)
			r.push(queue.Message{Size: 2})
		},
		"pending ones count": func(r *rig) {
			r.pushed(queue.Message{Size: 8}, queue.Taken)
			r.pushed(queue.Message{Size: 8}, queue.Full)
			r.q.Unstored(1)
			r.push(queue.Message{Size: 8})
		},
		"dead letters count": func(r *rig) {
			r.push(queue.Message{Size: 8})
			r.take(1)
			r.nack(1, 0)
			r.state(1, "dead")
			r.pushed(queue.Message{Size: 8}, queue.Full)
		},
		"a large one fits an empty queue": func(r *rig) {
			r.true(r.q.HasRoom(11))
			r.push(queue.Message{Size: 11})
			r.pushed(queue.Message{}, queue.Full)
		},
	})
}

func TestDropOld(t *testing.T) {
	cases(t, queue.Settings{MaxMessages: 4, MaxBytes: 10, DropOld: true}, map[string]func(*rig){
		"the oldest, whatever its priority": func(r *rig) {
			r.push(queue.Message{Priority: 9})
			r.push(plain(4)...)
			r.effects("remove 1 dropped")
			r.takes(2, 3, 4, 5)
		},
		"ready ones, then delayed ones": func(r *rig) {
			r.push(queue.Message{Due: r.now + 9}, queue.Message{Due: r.now + 5}, queue.Message{}, queue.Message{})
			r.push(queue.Message{Size: 1})
			r.effects("remove 3 dropped")
			r.push(queue.Message{Size: 10})
			r.effects("remove 4 dropped", "remove 5 dropped")
			r.push(queue.Message{Size: 10})
			r.effects("remove 6 dropped")
			r.takes(7)
			r.pushed(queue.Message{Size: 1}, queue.Full) // the delayed ones would not be enough
			r.effects()
			r.push(queue.Message{})
			r.push(queue.Message{})
			r.effects("remove 8 dropped")
			r.takes(9)
			r.push(queue.Message{})
			r.effects("remove 1 dropped")
		},
		"behind a key": func(r *rig) {
			r.push(queue.Message{Key: "a"}, queue.Message{Key: "a"}, queue.Message{Key: "a"}, queue.Message{})
			r.take(1)
			r.push(queue.Message{})
			r.effects("remove 2 dropped")
			r.ack(1)
			r.takes(3, 4, 5)
		},
		"not leased, pending or dead ones": func(r *rig) {
			r.push(plain(3)...)
			r.take(1)
			r.reject(1, "")
			r.take(2)
			r.take(3)
			r.pushed(queue.Message{}, queue.Taken)
			r.false(r.q.HasRoom(1))
			r.pushed(queue.Message{}, queue.Full)
			r.effects("save 1 tries=1 dead: rejected")
			r.nack(3, 0)
			r.true(r.q.HasRoom(1))
			r.pushed(queue.Message{}, queue.Taken)
			r.effects("save 3 tries=1", "remove 3 dropped")
		},
		"nothing when that is not enough": func(r *rig) {
			r.push(queue.Message{Size: 5}, queue.Message{Size: 5})
			r.take(1)
			r.pushed(queue.Message{Size: 6}, queue.Full)
			r.effects()
			r.true(r.q.HasRoom(5))
			r.push(queue.Message{Size: 5})
			r.effects("remove 2 dropped")
		},
		"a large one takes the place of all": func(r *rig) {
			r.push(plain(3)...)
			r.push(queue.Message{Size: 99})
			r.effects("remove 1 dropped", "remove 2 dropped", "remove 3 dropped")
			r.takes(4)
		},
	})
}

func TestTTL(t *testing.T) {
	cases(t, queue.Settings{TTL: 20}, map[string]func(*rig){
		"set by Push": func(r *rig) {
			for _, m := range []struct{ expires, want int64 }{{0, r.now + 20}, {r.now + 3, r.now + 3}} {
				p := queue.Message{Expires: m.expires}
				if r.q.Push(r.now, &p); p.Expires != m.want {
					r.Errorf("%+v", p)
				}
			}
		},
		"ready": func(r *rig) {
			r.push(plain(1)...)
			r.due(20)
			r.tick(19)
			r.effects()
			r.tick(1)
			r.effects("remove 1 expired")
		},
		"Take does not wait for Tick": func(r *rig) {
			r.push(queue.Message{Expires: r.now + 1, Key: "a"}, queue.Message{Expires: r.now + 1}, queue.Message{Key: "a"})
			r.now++
			r.take(3)
			r.effects("remove 1 expired", "remove 2 expired")
		},
		"delayed, and behind a key": func(r *rig) {
			r.push(queue.Message{Due: r.now + 50}, queue.Message{Key: "a", Expires: r.now + 90}, queue.Message{Key: "a"})
			r.take(2)
			r.tick(5)
			r.true(r.q.Extend(r.now, r.c, 2, 30))
			r.tick(15)
			r.effects("remove 1 expired", "remove 3 expired")
			r.state(2, "leased")
		},
		"not leased": func(r *rig) {
			r.push(plain(2)...)
			r.takes(1, 2)
			for _, seq := range []uint64{1, 2} {
				r.true(r.q.Extend(r.now, r.c, seq, 30))
			}
			r.due(30)
			r.tick(25)
			r.effects()
			r.due(5)
			r.nack(1, 3)
			r.effects("remove 1 expired")
			r.ack(2)
			r.effects("remove 2 acked")
		},
		"not dead letters; requeued ones": func(r *rig) {
			r.push(plain(1)...)
			r.take(1)
			r.reject(1, "")
			r.due(-1)
			r.tick(100)
			r.effects("save 1 tries=1 dead: rejected")
			r.q.Requeue(r.now, 0)
			r.effects("save 1 tries=0")
			r.tick(0)
			r.effects("remove 1 expired")
		},
	})
}

func TestDedup(t *testing.T) {
	a, b := queue.Message{ID: "a"}, queue.Message{ID: "b"}
	cases(t, queue.Settings{Dedup: 10}, map[string]func(*rig){
		"within the window": func(r *rig) {
			r.push(a)
			r.pushed(a, queue.Duplicate)
			r.push(b)
			r.tick(9)
			r.pushed(a, queue.Duplicate)
			r.now++
			r.push(a)
			if s := r.q.Stats(); s.Duplicates != 2 || s.Pushed != 3 || s.Marks != 2 {
				r.Errorf("%+v", s)
			}
		},
		"pending, and when it is gone": func(r *rig) {
			r.pushed(a, queue.Taken)
			r.pushed(a, queue.Duplicate)
			r.q.Stored(r.now, 1)
			r.take(1)
			r.ack(1)
			r.pushed(a, queue.Duplicate)
		},
		"not when it could not be stored": func(r *rig) {
			r.pushed(a, queue.Taken)
			r.q.Unstored(1)
			r.due(-1)
			r.push(a)
			r.takes(2)
		},
		"not when it was full": func(r *rig) {
			large := queue.Message{ID: "a", Size: 1}
			r.push(queue.Message{Size: 1000})
			r.pushed(large, queue.Full)
			r.take(1)
			r.ack(1)
			r.push(large)
		},
		"forgotten by Tick": func(r *rig) {
			r.push(a)
			r.now++
			r.push(b, queue.Message{})
			r.due(9)
			r.tick(8)
			r.effects()
			r.tick(1)
			r.effects("forget 1")
			r.due(1)
			r.tick(1)
			r.effects("forget 2")
			r.due(-1)
		},
		"pushed again before Tick": func(r *rig) {
			r.push(a)
			r.now += 10
			r.push(a)
			r.due(10)
			r.tick(9)
			r.effects()
			r.pushed(a, queue.Duplicate)
			r.tick(1)
			r.effects("forget 2")
		},
		"pushed again while it is pending": func(r *rig) {
			r.pushed(a, queue.Taken)
			r.now += 10
			r.pushed(a, queue.Taken)
			r.q.Stored(r.now, 1)
			r.q.Stored(r.now, 2)
			r.tick(10)
			r.effects("forget 2")
			r.takes(1, 2)
		},
		"pending ones are forgotten once they are stored": func(r *rig) {
			r.pushed(a, queue.Taken)
			r.tick(10)
			r.due(-1)
			r.q.Stored(r.now, 1)
			r.due(0)
			r.tick(0)
			r.effects("forget 1")
		},
		"lost messages are remembered": func(r *rig) {
			r.push(a)
			r.q.Lost([]uint64{1})
			r.pushed(a, queue.Duplicate)
		},
	})
	t.Run("at most so many", func(t *testing.T) {
		r := newRig(t, queue.Settings{Dedup: 10, MaxMarks: 2})
		r.push(a, b)
		r.effects()
		r.push(queue.Message{ID: "c"})
		r.effects("forget 1")
		r.push(a)
		r.effects("forget 2")
		r.pushed(queue.Message{ID: "c"}, queue.Duplicate)
		r.check()
	})
	t.Run("none", func(t *testing.T) {
		r := newRig(t, queue.Settings{})
		r.push(a, a)
		r.due(-1)
		r.check()
	})
}

func TestPause(t *testing.T) {
	cases(t, queue.Settings{}, map[string]func(*rig){
		"": func(r *rig) {
			r.push(plain(2)...)
			r.take(1)
			r.q.Pause()
			r.true(r.q.Paused())
			r.false(r.q.Ready())
			r.take(0)
			r.push(queue.Message{Due: r.now + 10})
			r.tick(10) // leases and delays go on
			r.effects("save 1 tries=1")
			r.q.Resume()
			r.false(r.q.Paused())
			r.takes(1, 2, 3)
		},
	})
}

func TestPurge(t *testing.T) {
	cases(t, queue.Settings{}, map[string]func(*rig){
		"": func(r *rig) {
			r.push(queue.Message{Key: "a"}, queue.Message{Key: "a"}, queue.Message{Due: r.now + 50}, queue.Message{}, queue.Message{Priority: 9})
			r.take(5)
			r.reject(5, "")
			r.take(1)
			r.pushed(queue.Message{}, queue.Taken)
			r.effects("save 5 tries=1 dead: rejected")
			if n := r.q.Purge(false); n != 3 {
				r.Errorf("purged %d", n)
			}
			r.effects("remove 2 purged", "remove 3 purged", "remove 4 purged")
			r.state(1, "leased")
			r.state(5, "dead")
			r.state(6, "pending")
			r.due(10)
			if n := r.q.Purge(true); n != 1 {
				r.Errorf("purged %d", n)
			}
			r.effects("remove 5 purged")
		},
		"all that wait behind a key": func(r *rig) {
			r.push(queue.Message{Key: "a"}, queue.Message{Key: "a"}, queue.Message{Key: "a"})
			r.take(1)
			r.nack(1, 5) // it holds the key
			if n := r.q.Purge(false); n != 3 {
				r.Errorf("purged %d", n)
			}
			r.push(queue.Message{Key: "a"})
			r.takes(4)
		},
	})
}

func TestLost(t *testing.T) {
	cases(t, queue.Settings{}, map[string]func(*rig){
		"": func(r *rig) {
			r.push(queue.Message{Key: "a"}, queue.Message{Key: "a"}, queue.Message{}, queue.Message{Due: r.now + 5})
			r.take(1)
			r.q.Lost([]uint64{1, 3, 4, 99})
			r.effects()
			r.false(r.q.Ack(r.now, r.c, 1))
			r.takes(2)
			if s := r.q.Stats(); s.Lost != 3 || s.Leased != 1 || s.Ready+s.Delayed != 0 {
				r.Errorf("%+v", s)
			}
		},
	})
}

// A Tick does so much at a time, and Due says that there is more.
func TestTickInSteps(t *testing.T) {
	r := newRig(t, queue.Settings{MaxMessages: math.MaxInt, TTL: 10, Dedup: time.Hour})
	n := queue.TickSteps*2 + 5
	r.push(plain(n)...)
	r.now += 10
	for left := n; left > 0; left = max(0, left-queue.TickSteps) {
		if got := r.q.Stats().Ready; got != left {
			t.Fatalf("%d are left, want %d", got, left)
		}
		r.due(0)
		r.tick(0)
	}
	r.due(-1)
	r.check()
}
