package client_test

import (
	"testing"

	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
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
