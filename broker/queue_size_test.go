package broker_test

import (
	"bytes"
	"testing"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/wire"
)

// A queued message takes little of the broker's heap beside its body, and with its body
// on disk little altogether but for the cache.
func TestQueueSize(t *testing.T) {
	if broker.RaceEnabled {
		t.Skip("the race detector has memory of its own")
	}
	const n, size = 200_000, 128
	for _, c := range []struct {
		level       string
		cache, most int
	}{{"memory", 0, 350}, {"disk", 8 << 20, 150}} {
		t.Run(c.level, func(t *testing.T) {
			bus := queueBus(t, broker.Options{})
			s := greet(t, bus, "unixpacket")
			s.declare("q", wire.QueueSettings{Level: c.level, MaxMessages: n, MaxBytes: 1 << 30})
			frame := wire.AppendPublish(nil, &wire.Publish{Topic: []byte("@queue/q"), Body: bytes.Repeat([]byte("x"), size)})
			before := heap()
			s.pushMany(frame, n)
			if info := greet(t, bus, "unix").info("q"); info.Ready != n {
				t.Fatalf("pushed, the queue is %+v", info)
			}
			each := (heap() - before - c.cache) / n
			if each > c.most {
				t.Errorf("each of %d messages takes %d bytes, at most %d are fine", n, each, c.most)
			}
			t.Logf("each takes %d bytes", each)
		})
	}
}
