// Package queue decides what happens to the messages of one work queue: which is
// delivered next and to whom, when a lease runs out, what becomes of a message that
// nobody can handle. It knows no bodies, no frames and no stores.
//
// A [Queue] is data with plain functions: no clock (the time is an argument), no
// goroutine, no lock. What is to be kept it says as [Effect]s, which its owner reads
// and clears after each call.
//
//	q := queue.New(queue.Settings{MaxMessages: 1000, MaxBytes: 1 << 20, Lease: 30 * time.Second}, 0)
//	seq, verdict := q.Push(now, &queue.Message{Size: len(body), Time: now})
//	// keep the body under seq, then:
//	q.Stored(now, seq)
//	c := q.Consumer()
//	d, ok := q.Take(now, c, 0)
//	q.Ack(now, c, d.Seq)
//	for _, e := range q.Effects() { // Remove seq: it was acked
//	}
//	q.ClearEffects()
//
// # A message's states
//
//	        Push           Stored            Take
//	(new) --------> pending ------+--> ready ------> leased --Ack--> (gone)
//	                   |          |    ^   ^           | | |
//	          Unstored |          v    |   |  returned | | | Nack with delay
//	                   v       delayed-+   +-----------+ | +-----> delayed
//	                (gone)                       ^       | Reject, or returned too often
//	                                     Requeue |       v
//	                                             +----- dead --Moved--> (gone)
//
// Ready, delayed and returned messages whose TTL is over, and those that Purge or
// drop-old take, are gone too.
//
// # Inside
//
// Messages lie in chunks by seq (table.go), without a pointer for a plain one. Lists
// and timers (line.go) are a first-in-first-out part, for what comes in order, and a
// heap for the rest. Their entries are not searched for when a message moves on: an
// entry that no longer applies is skipped when it comes up, and when a list is mostly
// such entries it is built anew. So each operation costs O(1), or O(log n) at worst.
package queue
