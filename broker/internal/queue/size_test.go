package queue_test

import (
	"fmt"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/postbus/postbus/broker/internal/queue"
)

// large has room for everything.
var large = queue.Settings{MaxMessages: math.MaxInt, MaxBytes: math.MaxInt64, Lease: 30 * time.Second}

// filled returns a queue in which n messages like m are ready.
func filled(s queue.Settings, n int, m queue.Message) *queue.Queue {
	q := queue.New(s, 0)
	for i := range n {
		one := m
		one.Time = int64(i)
		seq, _ := q.Push(int64(i), &one)
		q.Stored(int64(i), seq)
	}
	return q
}

// heap returns the bytes of the heap that are in use.
func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// shapes are kinds of waiting messages, and how many bytes one may take.
var shapes = []struct {
	name     string
	settings func(*queue.Settings)
	m        queue.Message
	most     int
}{
	{"plain", func(*queue.Settings) {}, queue.Message{Size: 128}, 80},
	{"ttl", func(s *queue.Settings) { s.TTL = time.Hour }, queue.Message{Size: 128}, 80},
	{"drop-old", func(s *queue.Settings) { s.DropOld = true }, queue.Message{Size: 128}, 80},
	{"one-key", func(*queue.Settings) {}, queue.Message{Size: 128, Key: "a"}, 160},
	{"delayed", func(*queue.Settings) {}, queue.Message{Size: 128, Due: math.MaxInt64}, 160},
}

func TestMemory(t *testing.T) {
	for i, shape := range shapes {
		n := 100_000
		if i == 0 && !raceEnabled {
			n = 1_000_000
		}
		if each := size(i, n); each > shape.most || each < 32 {
			t.Errorf("a message (%s) takes %d bytes, at most %d are fine", shape.name, each, shape.most)
		} else {
			t.Logf("%s: %d bytes", shape.name, each)
		}
	}
}

// size is what each of n waiting messages of a shape takes, in bytes.
func size(shape, n int) int {
	s := large
	shapes[shape].settings(&s)
	before := heap()
	q := filled(s, n, shapes[shape].m)
	each := (heap() - before) / n
	runtime.KeepAlive(q)
	return each
}

// What is left of many messages does not hold on to the memory of all of them,
// wherever the rest lie.
func TestMemoryIsGivenBack(t *testing.T) {
	const n = 100_000
	before := heap()
	q := filled(large, n, queue.Message{})
	full := heap() - before
	c := q.Consumer()
	for {
		d, ok := q.Take(0, c, 0)
		if !ok {
			break
		}
		if d.Seq%100 != 0 { // the rest become dead letters
			q.Ack(0, c, d.Seq)
		} else {
			q.Reject(0, c, d.Seq, "")
		}
		q.ClearEffects()
	}
	if err := q.Check(); err != nil {
		t.Fatal(err)
	}
	if slots := q.Slots(); slots > 5*n/100+5000 {
		t.Errorf("%d slots for %d messages", slots, n/100)
	}
	if now := heap() - before; now > full/5 {
		t.Errorf("%d bytes for a hundredth of what took %d", now, full)
	}
	q.Purge(true)
	q.ClearEffects()
	if now := heap() - before; now > full/20 {
		t.Errorf("%d bytes for nothing, where %d messages took %d", now, n, full)
	}
	runtime.KeepAlive(q)
}

// Nothing is allocated for a plain message but its share of a chunk.
func TestAllocations(t *testing.T) {
	q := filled(large, 1000, queue.Message{})
	c := q.Consumer()
	m := queue.Message{Size: 128}
	if n := testing.AllocsPerRun(1000, func() {
		for range 10 {
			seq, _ := q.Push(1, &m)
			q.Stored(1, seq)
			d, _ := q.Take(1, c, 0)
			q.Ack(1, c, d.Seq)
			q.ClearEffects()
		}
	}); n > 1 {
		t.Errorf("%v allocations for 10 messages", n)
	}
}

func benchmarkSizes(b *testing.B, f func(b *testing.B, n int)) {
	for _, n := range []int{1e3, 1e6} {
		b.Run(fmt.Sprintf("waiting=%d", n), func(b *testing.B) { f(b, n) })
	}
}

// A push that is stored, beside n that wait.
func BenchmarkPush(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, n int) {
		b.ReportAllocs()
		for left := 0; left < b.N; {
			b.StopTimer()
			q := filled(large, n, queue.Message{Size: 128})
			some := min(b.N-left, 1e6)
			b.StartTimer()
			for i := range some {
				now := int64(i)
				seq, _ := q.Push(now, &queue.Message{Size: 128, Time: now})
				q.Stored(now, seq)
			}
			left += some
		}
	})
}

// A take and its ack, and the turn's Due, while n wait.
func BenchmarkTake(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, n int) { benchmarkTake(b, n, 1) })
}

// The same with 100 leased at a time.
func BenchmarkTakeBatch(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, n int) { benchmarkTake(b, n, 100) })
}

// benchmarkTake takes from at least n, which are filled up in time that does not count.
func benchmarkTake(b *testing.B, n, batch int) {
	q := filled(large, n, queue.Message{Size: 128})
	c, seqs, now := q.Consumer(), make([]uint64, 0, batch), int64(n)
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; {
		b.StopTimer()
		for q.Len() < n+max(n/2, 10*batch) {
			seq, _ := q.Push(now, &queue.Message{Size: 128, Time: now})
			q.Stored(now, seq)
		}
		b.StartTimer()
		for ; q.Len() >= n+batch && done < b.N; done += batch {
			now++
			for range batch {
				d, _ := q.Take(now, c, 0)
				seqs = append(seqs, d.Seq)
			}
			q.Due()
			for _, seq := range seqs {
				if !q.Ack(now, c, seq) {
					b.Fatal("not leased")
				}
			}
			seqs = seqs[:0]
			q.ClearEffects()
		}
	}
}

// Push, take and ack of messages with all that one can have.
func BenchmarkAll(b *testing.B) {
	s := large
	s.TTL, s.Dedup = time.Hour, time.Microsecond
	benchmarkSizes(b, func(b *testing.B, n int) {
		q := queue.New(s, 0)
		c, now := q.Consumer(), int64(0)
		push := func() {
			now++
			m := queue.Message{Size: 128, Time: now, Key: fmt.Sprint(now % 1000), ID: fmt.Sprint(now), Priority: uint8(now % 10), Due: now + now%100}
			seq, _ := q.Push(now, &m)
			q.Stored(now, seq)
		}
		for range n {
			push()
		}
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			push()
			q.Tick(now)
			if d, ok := q.Take(now, c, 0); ok {
				q.Ack(now, c, d.Seq)
			}
			q.Due()
			q.ClearEffects()
		}
	})
}

// What a waiting message takes, of a million.
func BenchmarkMemory(b *testing.B) {
	for i, shape := range shapes {
		b.Run(shape.name, func(b *testing.B) {
			for range b.N {
				b.ReportMetric(float64(size(i, 1e6)), "B/message")
			}
		})
	}
}
