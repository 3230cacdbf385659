package wire_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/postbus/postbus/wire"
)

// eachTransport runs test on both socket types.
func eachTransport(t *testing.T, test func(t *testing.T, network string)) {
	for _, network := range []string{"unixpacket", "unix"} {
		t.Run(network, func(t *testing.T) { test(t, network) })
	}
}

// connect returns both ends of a connection through a socket file.
func connect(t *testing.T, network string) (dialed, accepted *net.UnixConn) {
	t.Helper()
	addr := &net.UnixAddr{Net: network, Name: filepath.Join(t.TempDir(), "s")}
	listener, err := net.ListenUnix(network, addr)
	must(t, err)
	defer listener.Close()
	dialed, err = net.DialUnix(network, nil, addr)
	must(t, err)
	t.Cleanup(func() { dialed.Close() })
	accepted, err = listener.AcceptUnix()
	must(t, err)
	t.Cleanup(func() { accepted.Close() })
	return dialed, accepted
}

// start runs write, which fills one end of a connection, while the test reads the
// other; the test does not end before it has.
func start(t *testing.T, write func() error) {
	done := make(chan error, 1)
	go func() { done <- write() }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// wantFrames reads frames until the end of the connection, which must be end.
func wantFrames(t *testing.T, r *wire.Reader, want [][]byte, end error) {
	t.Helper()
	for i, frame := range want {
		payload, err := r.Next()
		if err != nil {
			t.Fatalf("frame %d of %d: %v", i, len(want), err)
		}
		if !bytes.Equal(payload, frame[wire.HeaderSize:]) {
			t.Fatalf("frame %d has %d bytes %.32x, want %d", i, len(payload), payload, len(frame)-wire.HeaderSize)
		}
	}
	if payload, err := r.Next(); !errors.Is(err, end) {
		t.Fatalf("at the end: %.32x, %v; want %v", payload, err, end)
	}
}

// publish returns a PUBLISH frame with a body of n bytes, other bytes for
// another n.
func publish(n int) []byte {
	body := make([]byte, n)
	for i := range body {
		body[i] = byte(i) ^ byte(i>>8) ^ byte(n)
	}
	return wire.AppendPublish(nil, &wire.Publish{Topic: []byte("a/b"), Body: body})
}

func TestReaderFrames(t *testing.T) {
	const large = 3 << 20
	const packetBody = wire.DefaultMaxPacket - 15 // of a publish that fills a packet
	for name, bodies := range map[string][]int{
		"one":               {0},
		"many in a packet":  {1, 2, 3, 100, 4, 5, 6},
		"at a packet's end": {packetBody, 1, packetBody - 1, 1, packetBody + 1},
		"large":             {large},
		"large among small": {1, 2, large, 3, 4, large - 1, 300 << 10, 5},
	} {
		for _, keep := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				eachTransport(t, func(t *testing.T, network string) {
					var all []byte
					var want [][]byte
					for _, n := range bodies {
						want = append(want, publish(n))
						all = append(all, want[len(want)-1]...)
					}
					from, to := connect(t, network)
					r := wire.NewReader(to, keep)
					r.SetLimits(wire.FrameLimit(large), wire.DefaultMaxPacket)
					start(t, func() error {
						defer from.Close()
						return wire.WriteFrames(from, all, wire.DefaultMaxPacket)
					})
					wantFrames(t, r, want, io.EOF)
				})
			})
		}
	}
}

// Enough small frames to fill a Reader's buffer several times, so that frames lie
// across its end.
func TestReaderManyFrames(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		var all []byte
		var want [][]byte
		for i := range 2000 {
			want = append(want, publish(i%1500))
			all = append(all, want[i]...)
		}
		from, to := connect(t, network)
		r := wire.NewReader(to, false)
		start(t, func() error {
			defer from.Close()
			return wire.WriteFrames(from, all, 10_000)
		})
		wantFrames(t, r, want, io.EOF)
	})
}

// WriteFrames keeps whole frames together: a packet begins with one, and holds
// more than one frame or less than one, never both.
func TestWriteFramesPackets(t *testing.T) {
	from, to := connect(t, "unixpacket")
	const maxPacket = 100
	var all []byte
	for _, n := range []int{10, 10, 40, 60, 250, 10, 86, 10} { // frames of 14 bytes more
		all = append(all, publish(n)...)
	}
	must(t, wire.WriteFrames(from, nil, maxPacket)) // sends no packet: an empty one is the end
	must(t, wire.WriteFrames(from, all, maxPacket))
	must(t, from.CloseWrite())
	var got []int
	for buf := make([]byte, 1000); ; {
		n, err := to.Read(buf)
		if err == io.EOF {
			break
		}
		must(t, err)
		got = append(got, n)
	}
	want := []int{24 + 24, 54, 74, 100, 100, 64, 24, 100, 24}
	if !slices.Equal(got, want) {
		t.Errorf("packets of %v bytes, want %v", got, want)
	}
}

func TestWriteFramesToClosed(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		from, to := connect(t, network)
		must(t, to.Close())
		if err := wire.WriteFrames(from, publish(1), wire.DefaultMaxPacket); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("got %v", err)
		}
	})
}

func TestReaderByteAtATime(t *testing.T) {
	from, to := connect(t, "unix")
	want := [][]byte{publish(0), publish(300), publish(1)}
	start(t, func() error {
		defer from.Close()
		for _, b := range bytes.Join(want, nil) {
			if _, err := from.Write([]byte{b}); err != nil {
				return err
			}
		}
		return nil
	})
	wantFrames(t, wire.NewReader(to, false), want, io.EOF)
}

func TestReaderBuffered(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		from, to := connect(t, network)
		r := wire.NewReader(to, false)
		if r.Buffered() {
			t.Error("a new Reader has a frame")
		}
		must(t, wire.WriteFrames(from, append(publish(1), publish(2)...), wire.DefaultMaxPacket))
		for i, more := range []bool{true, false} {
			if _, err := r.Next(); err != nil || r.Buffered() != more {
				t.Errorf("after frame %d: %v, Buffered is %v", i, err, !more)
			}
		}
	})
}

func TestReaderEndInsideFrame(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		from, to := connect(t, network)
		frame := publish(100)
		_, err := from.Write(append(publish(1), frame[:50]...))
		must(t, err)
		must(t, from.Close())
		wantFrames(t, wire.NewReader(to, false), [][]byte{publish(1)}, io.ErrUnexpectedEOF)
	})
}

// A zero-length packet and the end of a connection look the same to read(2), and
// postbus takes both for the end.
func TestReaderEmptyPacketEnds(t *testing.T) {
	from, to := connect(t, "unixpacket")
	must(t, wire.WriteFrames(from, publish(1), wire.DefaultMaxPacket))
	_, err := from.Write(nil)
	must(t, err)
	must(t, wire.WriteFrames(from, publish(2), wire.DefaultMaxPacket))
	wantFrames(t, wire.NewReader(to, false), [][]byte{publish(1)}, io.EOF)
}

// A peer that closes with unread input resets the connection. On SOCK_SEQPACKET
// the kernel says so before it gives out the packets that the peer sent earlier.
func TestReaderResetBeforeQueuedPackets(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		from, to := connect(t, network)
		must(t, wire.WriteFrames(to, publish(9), wire.DefaultMaxPacket)) // from never reads this
		want := [][]byte{publish(1), publish(70_000), publish(2)}
		for _, frame := range want {
			must(t, wire.WriteFrames(from, frame, wire.DefaultMaxPacket))
		}
		must(t, from.Close())
		r := wire.NewReader(to, false)
		r.SetLimits(1<<20, wire.DefaultMaxPacket)
		wantFrames(t, r, want, syscall.ECONNRESET)
	})
}

// A packet above the limit is refused wherever in the Reader's buffer it would lie:
// also where it would be cut to just the limit.
func TestReaderRefusesLargePacket(t *testing.T) {
	const limit = 4096
	fits := publish(limit - 15)
	for _, before := range []int{1, 63, 64, 65} { // the buffer holds 64
		for _, extra := range []int{1, 1000} {
			from, to := connect(t, "unixpacket")
			r := wire.NewReader(to, true)
			r.SetLimits(1<<20, limit)
			for range before {
				must(t, wire.WriteFrames(from, fits, limit))
				if _, err := r.Next(); err != nil {
					t.Fatal(err)
				}
			}
			_, err := from.Write(make([]byte, limit+extra))
			must(t, err)
			_, err = r.Next()
			wantCode(t, err, wire.CodeTooLarge)
		}
	}
}

func TestReaderRefusesFraming(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		for prefix, code := range map[string]wire.Code{
			"\x00\x00\x00\x00": wire.CodeMalformed,
			"\x01\x00\x01\x00": wire.CodeTooLarge, // MaxCold + 1, the limit before WELCOME
			"\xff\xff\xff\xff": wire.CodeTooLarge,
		} {
			from, to := connect(t, network)
			_, err := from.Write(append(publish(1), prefix...))
			must(t, err)
			r := wire.NewReader(to, false)
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
			for range 2 { // and it stays refused
				_, err = r.Next()
				wantCode(t, err, code)
			}
		}
	})
}

func TestReaderKeep(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		var all []byte
		var want, kept [][]byte
		for i := range 400 {
			want = append(want, publish(i*11%5000))
			all = append(all, want[i]...)
		}
		from, to := connect(t, network)
		r := wire.NewReader(to, true)
		start(t, func() error {
			defer from.Close()
			return wire.WriteFrames(from, all, wire.DefaultMaxPacket)
		})
		for range want {
			payload, err := r.Next()
			must(t, err)
			kept = append(kept, payload)
		}
		for i, payload := range kept {
			if !bytes.Equal(payload, want[i][wire.HeaderSize:]) {
				t.Fatalf("frame %d was overwritten by a later read", i)
			}
		}
	})
}

// An announced length takes no memory until the bytes come: then as many again.
func TestReaderAnnouncedLength(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		for _, came := range []int{6, 100_000, 400_000} {
			from, to := connect(t, network)
			r := wire.NewReader(to, false)
			r.SetLimits(wire.LargestMaxMessage, wire.DefaultMaxPacket)
			start(t, func() error {
				defer from.Close()
				part := make([]byte, came)
				copy(part, []byte{0, 0, 0, 4, 0x95, 3}) // 64 MiB
				for packet := range slices.Chunk(part, wire.DefaultMaxPacket) {
					if _, err := from.Write(packet); err != nil {
						return err
					}
				}
				return nil
			})
			var err error
			got := allocated(func() { _, err = r.Next() })
			if err != io.ErrUnexpectedEOF {
				t.Errorf("got %v", err)
			}
			if limit := 1<<20 + 4*uint64(came); got > limit {
				t.Errorf("%d bytes allocated for a frame of which %d came, want %d at most", got, came, limit)
			}
		}
	})
}

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
