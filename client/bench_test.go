package client_test

import (
	"testing"

	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

func benchClients(b *testing.B, network string) (one, other *client.Client) {
	bus := brokertest.Start(b, nil)
	o := &client.Options{Address: bus.Address(network)}
	return dial(b, o), dial(b, o)
}

// BenchmarkPublish streams to a topic that nobody is subscribed to.
func BenchmarkPublish(b *testing.B) {
	for _, network := range []string{"unixpacket", "unix"} {
		b.Run(network, func(b *testing.B) {
			c, _ := benchClients(b, network)
			body := make([]byte, 128)
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				if err := c.Publish(ctx, "bench/publish/topic", body, nil); err != nil {
					b.Fatal(err)
				}
			}
			flush(b, c)
		})
	}
}

// BenchmarkNext streams from one client to another, which takes all of it.
func BenchmarkNext(b *testing.B) {
	for _, network := range []string{"unixpacket", "unix"} {
		b.Run(network, func(b *testing.B) {
			publisher, subscriber := benchClients(b, network)
			s := subscribe(b, subscriber, "bench/next/#", &client.SubscribeOptions{Policy: client.Block})
			body := make([]byte, 128)
			ctx := b.Context()
			published := make(chan struct{})
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				defer close(published)
				for range b.N {
					if err := publisher.Publish(ctx, "bench/next/topic", body, nil); err != nil {
						b.Error(err)
						return
					}
				}
			}()
			for range b.N {
				if _, err := s.Next(ctx); err != nil {
					b.Fatal(err)
				}
			}
			<-published
		})
	}
}

// BenchmarkPublishWait is the round trip of one message and its receipt.
func BenchmarkPublishWait(b *testing.B) {
	for _, network := range []string{"unixpacket", "unix"} {
		b.Run(network, func(b *testing.B) {
			c, _ := benchClients(b, network)
			body := make([]byte, 128)
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.PublishWait(ctx, "bench/wait", body, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkConsume takes and acks what waits in a queue.
func BenchmarkConsume(b *testing.B) {
	for _, network := range []string{"unixpacket", "unix"} {
		b.Run(network, func(b *testing.B) {
			c, consumer := benchClients(b, network)
			ctx := b.Context()
			q := declare(b, c, "bench", &client.QueueOptions{MaxMessages: 100_000_000, MaxBytes: 1 << 40})
			body := make([]byte, 128)
			for range b.N {
				if err := q.PushAsync(ctx, body, nil); err != nil {
					b.Fatal(err)
				}
			}
			flush(b, c)
			s, err := consumer.Queue("bench").Consume(ctx, &client.ConsumeOptions{Prefetch: 2000})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				d, err := s.Next(ctx)
				if err == nil {
					err = d.Ack()
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			if err := s.Flush(ctx); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkReceive compares what a message costs a client that is handed it, takes it
// and, if it is of a queue, acks it, without the sockets and the broker.
func BenchmarkReceive(b *testing.B) {
	const batch = 500
	frames := func(sub uint32) []byte {
		f := wire.AppendTarget(nil, sub)
		for i := range uint64(batch) {
			f = wire.AppendMessage(f, &wire.Message{Seq: i + 1, Topic: []byte("@queue/jobs"), Body: make([]byte, 128)})
		}
		return f
	}
	b.Run("subscription", func(b *testing.B) {
		d := client.NewDesk(b)
		s, sub := d.Subscribe("#")
		messages := frames(sub)
		b.ReportAllocs()
		b.ResetTimer()
		for n := 0; n < b.N; n += batch {
			put(b, d, messages)
			for range batch {
				if _, err := s.Next(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("consumer", func(b *testing.B) {
		d, s, sub := desk(b, nil)
		messages := frames(sub)
		b.ReportAllocs()
		b.ResetTimer()
		for n := 0; n < b.N; n += batch {
			put(b, d, messages)
			for range batch {
				m, err := s.Next(b.Context())
				if err == nil {
					err = m.Ack()
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			d.Settles()
			put(b, d, wire.AppendSettled(nil, uint64(n/batch)+1))
		}
	})
}
