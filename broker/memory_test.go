package broker_test

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// An idle connection with a subscription takes at most 4 KiB of the broker's heap.
func TestIdleConnectionsAreSmall(t *testing.T) {
	const n, most = 2000, 4 << 10
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			hello := append(wire.AppendCold(nil, wire.TypeHello, &wire.Hello{Version: 1, Client: "idle"}),
				subscribe(wire.Subscribe{Sub: 1, Filters: []string{"build/linux/#"}})...)
			p := r.join(unix.SOCK_STREAM, nil)
			ends := make([]int, n)
			defer func() {
				for _, fd := range ends {
					unix.Close(fd)
				}
			}()
			before := heap()
			for i := range ends {
				fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				ends[i] = fds[0]
				r.loop.Join(fds[1], kind == unix.SOCK_SEQPACKET)
				r.send(fds[0], hello)
				r.settle()
				r.drain(fds[0])
			}
			r.say(p, publish("build/linux/done", 1000)) // and each has got something
			for _, fd := range ends {
				if r.drain(fd) < 1000 {
					t.Fatal("a subscriber got nothing")
				}
			}
			if each := (heap() - before) / n; each > most || each < 100 {
				t.Errorf("each of %d connections takes %d bytes, at most %d are fine", n, each, most)
			} else {
				t.Logf("each takes %d bytes", each)
			}
			if got := r.loop.Stats(); got.Connections != n+1 || got.Subscriptions != n {
				t.Errorf("%+v", got)
			}
		})
	}
}

// heap returns the bytes of the heap that are in use.
func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what has a finalizer goes with the second
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
