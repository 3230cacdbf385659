package broker_test

import (
	"bytes"
	"testing"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// benchBus starts a broker with an empty queue of the level.
func benchBus(b *testing.B, level string) (pusher, consumer *speaker) {
	b.Helper()
	dir := b.TempDir()
	bus := brokertest.Start(b, &broker.Options{StateDir: dir})
	b.Cleanup(func() {
		if level == "kernel" {
			bus.Close()
			if err := store.DeleteSysV(dir, "q"); err != nil {
				b.Error(err)
			}
		}
	})
	pusher, consumer = greet(b, bus, "unixpacket"), greet(b, bus, "unixpacket")
	pusher.declare("q", wire.QueueSettings{Level: level, MaxMessages: 100_000_000, MaxBytes: 1 << 40})
	return pusher, consumer
}

// pushMany pushes n messages, pipelined within the window, and waits until they are kept.
func (s *speaker) pushMany(frame []byte, n int) {
	s.t.Helper()
	const window = 8000
	sent, acked := uint64(0), uint64(0)
	from := s.settled
	for acked < uint64(n) {
		for sent < uint64(n) && sent-acked < window {
			s.out = append(s.out, frame...)
			if sent++; sent%300 == 0 {
				s.flush()
			}
		}
		if sent == uint64(n) {
			s.ping(1)
		}
		s.flush()
		var a wire.Ack
		typ, payload := s.next()
		if typ == wire.TypePong {
			continue
		}
		if err := a.Decode(payload); err != nil {
			s.t.Fatal(err)
		}
		acked = a.UpTo - from
	}
	s.settled = from + uint64(n)
}

// takeMany takes n messages and acks them in ranges as they come.
func (s *speaker) takeMany(n int) {
	s.t.Helper()
	taken := 0
	var first, last uint64
	for ; taken < n; taken++ {
		typ, payload := s.next()
		for typ != wire.TypeMessage {
			typ, payload = s.next()
		}
		var m wire.Message
		if err := m.Decode(payload); err != nil {
			s.t.Fatal(err)
		}
		if first == 0 {
			first = m.Seq
		}
		if last = m.Seq; last-first == 100 || taken == n-1 {
			s.ack(1, first, last).flush()
			first = 0
		}
	}
}

func BenchmarkQueue(b *testing.B) {
	for _, level := range []string{"memory", "kernel", "disk"} {
		frame := wire.AppendPublish(nil, &wire.Publish{Topic: []byte("@queue/q"), Body: bytes.Repeat([]byte("x"), 128)})
		b.Run(level+"/push", func(b *testing.B) {
			if level == "kernel" {
				b.Skip("a kernel queue holds no more than some thousand messages")
			}
			pusher, _ := benchBus(b, level)
			b.ReportAllocs()
			for b.Loop() {
				pusher.pushMany(frame, 100_000)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/message")
		})
		b.Run(level+"/take", func(b *testing.B) {
			pusher, consumer := benchBus(b, level)
			n := 100_000
			if level == "kernel" {
				n = 10_000
			}
			b.ReportAllocs()
			pusher.pushMany(frame, n)
			consumer.consume(wire.Consume{Sub: 1, Queue: "q", Prefetch: 1000})
			for b.Loop() {
				consumer.takeMany(n)
				b.StopTimer()
				consumer.held = nil
				pusher.pushMany(frame, n)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/message")
		})
	}
}
