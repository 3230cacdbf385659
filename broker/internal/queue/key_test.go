package queue_test

import (
	"testing"

	"github.com/postbus/postbus/broker/internal/queue"
)

func TestKey(t *testing.T) {
	a, b := queue.Message{Key: "a"}, queue.Message{Key: "b"}
	cases(t, queue.Settings{MaxTries: 3}, map[string]func(*rig){
		"one in flight": func(r *rig) {
			r.push(a, a, b, queue.Message{}, a)
			r.takes(1, 3, 4)
			if s := r.q.Stats(); s.Ready != 2 {
				r.Errorf("%+v", s)
			}
			r.false(r.q.Ready())
			r.ack(1)
			r.takes(2)
			r.ack(2)
			r.takes(5)
		},
		"nack keeps the order": func(r *rig) {
			r.push(a, a)
			r.take(1)
			r.nack(1, 0)
			r.take(1)
			r.take(0)
		},
		"a returned delay blocks": func(r *rig) {
			r.push(a, a)
			r.take(1)
			r.nack(1, 5)
			r.take(0)
			r.tick(5)
			r.take(1)
			r.take(0)
			r.nack(1, 0) // settled: it is one of those that wait
			r.takes(1)
			r.ack(1)
			r.takes(2)
		},
		"a first delay does not": func(r *rig) {
			r.push(queue.Message{Key: "a", Due: r.now + 5}, a, a)
			r.take(2)
			r.tick(5)
			r.take(0)
			r.ack(2)
			r.takes(1) // by seq among the waiting
			r.ack(1)
			r.takes(3)
		},
		"one that comes late takes the front": func(r *rig) {
			r.push(queue.Message{Key: "a", Due: r.now + 5}, a, queue.Message{})
			r.tick(5)
			r.takes(1, 3)
			r.ack(1)
			r.takes(2)
		},
		"but not from one that was returned with a delay": func(r *rig) {
			r.push(queue.Message{Key: "a", Due: r.now + 5}, a)
			r.take(2)
			r.nack(2, 7)
			r.tick(5)
			r.take(0)
			r.tick(2)
			r.takes(2)
			r.nack(2, 0)
			r.takes(1)
		},
		"its own priority": func(r *rig) {
			r.push(a, queue.Message{Key: "a", Priority: 9}, queue.Message{}, queue.Message{Key: "b", Priority: 1})
			r.takes(4, 1, 3)
			r.ack(1)
			r.takes(2)
		},
		"a dead letter frees it": func(r *rig) {
			r.push(a, a)
			r.take(1)
			r.reject(1, "")
			r.takes(2)
		},
		"a lost lease does": func(r *rig) {
			r.push(a, a)
			r.take(1)
			r.q.Lost([]uint64{1})
			r.takes(2)
		},
		"an expiry does": func(r *rig) {
			r.push(queue.Message{Key: "a", Expires: r.now + 3}, a)
			r.take(1)
			r.nack(1, 2)
			r.take(0)
			r.now += 3
			r.q.Tick(r.now)
			r.effects("save 1 tries=1 due=1002", "remove 1 expired")
			r.takes(2)
		},
		"a purge does, and a consumer that leaves": func(r *rig) {
			r.push(a, a)
			r.take(1)
			r.nack(1, 5)
			r.q.Purge(false)
			r.push(a, a)
			r.take(3)
			r.q.Leave(r.now, r.c)
			r.c = r.q.Consumer()
			r.takes(3)
		},
		"a pending one does not block": func(r *rig) {
			r.pushed(a, queue.Taken)
			r.push(a)
			r.takes(2)
			r.q.Stored(r.now, 1)
			r.takes()
			r.ack(2)
			r.takes(1)
		},
		"a requeued one is in its place": func(r *rig) {
			r.push(a, a, a)
			r.take(1)
			r.reject(1, "")
			r.q.Requeue(r.now, 0)
			r.takes(1)
			r.ack(1)
			r.takes(2)
		},
	})
}

// A key's messages go in order, however many there are, and cost no more each.
func TestManyOfOneKey(t *testing.T) {
	const n = 20000
	r := newRig(t, queue.Settings{MaxMessages: n})
	for range n {
		r.push(queue.Message{Key: "a"})
	}
	for seq := range uint64(n) {
		r.take(seq + 1)
		r.ack(seq + 1)
	}
	r.check()
}
