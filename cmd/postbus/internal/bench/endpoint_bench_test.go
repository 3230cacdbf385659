package bench

import (
	"testing"

	"github.com/postbus/postbus/wire"
)

// What the endpoints cost is the floor of every figure; these say how much it is.

func BenchmarkSubscriber(b *testing.B) {
	const size = 128
	j := &job{Relay: true, Publishers: 1, Size: size, Policy: wire.Block, Topics: []string{"bench/1234/0"}}
	batch := newBatch(j, defaultWriteSize)
	s := &subscriber{job: j}
	l := &listener{
		endpoint: &endpoint{limit: wire.FrameLimit(size), buf: make([]byte, readBuffer)},
		tally:    newTally(1),
	}
	b.SetBytes(int64(batch.frame))
	for n := 0; n < b.N; {
		frames := batch.take(batch.many, newTag(0, uint64(n)), 0, 0)
		l.from, l.to = 0, copy(l.buf, frames)
		if err := s.takeAll(l, 0); err != nil {
			b.Fatal(err)
		}
		n += batch.many
	}
}

func BenchmarkPublisher(b *testing.B) {
	batch := newBatch(&job{Size: 128, Topics: []string{"bench/1234/0"}}, defaultWriteSize)
	b.SetBytes(int64(batch.frame))
	for n := 0; n < b.N; n += batch.many {
		batch.take(batch.many, newTag(0, uint64(n)), 0, 0)
	}
}
