package queue

import "math/bits"

// Stats are a queue's numbers.
type Stats struct {
	// How many messages are where. Ready includes what waits behind its key, Dead what
	// is being moved elsewhere.
	Pending, Ready, Delayed, Leased, Dead int

	Bytes int64 // of all messages
	Marks int   // dedup ids remembered

	// OldestReady is the time at which the ready message with the lowest seq was
	// pushed; 0: there is none.
	OldestReady int64

	Counters
}

// Counters are numbers that only grow, from New on.
type Counters struct {
	Pushed       uint64 // stored
	Delivered    uint64 // redelivered ones included
	Redelivered  uint64
	Acked        uint64
	Nacked       uint64
	Expired      uint64
	Dropped      uint64
	Duplicates   uint64
	Lost         uint64
	DeadLettered uint64 // messages that became dead letters
}

// Marks returns how many dedup ids are remembered.
func (q *Queue) Marks() int { return len(q.marks.ids) }

// Stats returns the queue's numbers. It looks for the oldest ready message in steps
// of 64, so that it costs some microseconds where a million are leased or dead.
func (q *Queue) Stats() Stats {
	return Stats{
		Pending: q.counts[pending], Ready: q.Waiting(), Delayed: q.counts[delayed],
		Leased: q.counts[leased], Dead: q.counts[dead],
		Bytes: q.bytes, Marks: len(q.marks.ids), OldestReady: q.oldestReady(), Counters: q.did,
	}
}

// Len returns how many messages there are, in all states.
func (q *Queue) Len() int { return q.table.n }

// Waiting returns how many messages are ready, as Stats does.
func (q *Queue) Waiting() int { return q.counts[ready] + q.counts[behind] }

// Bytes returns the size of all messages, as Stats does.
func (q *Queue) Bytes() int64 { return q.bytes }

func (q *Queue) oldestReady() int64 {
	if q.Waiting() == 0 {
		return 0
	}
	for _, c := range q.table.order {
		if c.waiting != 0 {
			return c.ref(c.number*chunkSize + uint64(bits.TrailingZeros64(c.waiting))).s.time
		}
	}
	return 0
}
