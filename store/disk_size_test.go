package store_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// A million messages, or what is a release's share of them: their memory is bounded, and the last costs what the first did.
func TestDiskMillion(t *testing.T) {
	const batch = 500
	n := storetest.Scale(1_000_000, 100_000, 100_000)
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	body := make([]byte, 128)
	before := heap()
	var times []time.Duration
	start := time.Now()
	for seq := uint64(1); seq <= uint64(n); {
		entries := make([]store.Entry, batch)
		for i := range entries {
			entries[i] = store.Entry{Kind: store.Message, Seq: seq, Data: body}
			seq++
		}
		_, err := d.Append(entries)
		must(t, err)
		must(t, d.Sync())
		if seq%100_000 == 1 {
			times = append(times, time.Since(start))
			start = time.Now()
		}
	}
	t.Logf("100,000 pushes, %d a sync: first %v, last %v", batch, times[0], times[len(times)-1])
	index := d.IndexBytes()
	t.Logf("%.1f bytes of index a message, the heap grew %.1f", float64(index)/float64(n), float64(heap()-before)/float64(n))
	if index > 26*n {
		t.Errorf("the index takes %d bytes for %d messages", index, n)
	}
	must(t, d.Close())
	start = time.Now()
	d = openDisk(t, dir, nil)
	t.Logf("opened in %v", time.Since(start))
	if got := d.IndexBytes(); got > 26*n {
		t.Errorf("opened, the index takes %d bytes", got)
	}
	ackMillion(t, d, n, batch)
}

// ackMillion removes all in a random order within windows, as consumers do.
func ackMillion(t *testing.T, d *store.Disk, n, batch int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	var times []time.Duration
	var worst time.Duration
	var buf []byte
	start := time.Now()
	window := make([]uint64, 2*batch)
	for first := 0; first < n; first += len(window) {
		for i := range window {
			window[i] = uint64(first + i + 1)
		}
		rng.Shuffle(len(window), func(i, j int) { window[i], window[j] = window[j], window[i] })
		for half := range 2 {
			acks := window[half*batch : (half+1)*batch]
			for _, seq := range acks {
				var err error
				if buf, err = d.Read(buf[:0], seq); err != nil {
					t.Fatal(err)
				}
			}
			call := time.Now()
			must(t, d.Remove(acks))
			worst = max(worst, time.Since(call))
			must(t, d.Sync())
		}
		if (first+len(window))%100_000 == 0 {
			times = append(times, time.Since(start))
			start = time.Now()
		}
	}
	t.Logf("100,000 takes and acks, %d a sync: first %v, last %v; longest Remove %v", batch, times[0], times[len(times)-1], worst)
	if s := d.Stats(); s.Messages != 0 || s.Used > 64<<20 {
		t.Errorf("at the end %+v", s)
	}
	if index := d.IndexBytes(); index > 1<<20 {
		t.Errorf("the index of nothing takes %d bytes", index)
	}
}

// Messages that stay, among many that go: the index stays small, and so does the disk.
func TestDiskSparse(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	body := make([]byte, 200)
	all, kept := uint64(storetest.Scale(400_000, 100_000, 50_000)), 0
	var worst time.Duration
	for seq := uint64(1); seq <= all; seq += 100 {
		var entries []store.Entry
		var gone []uint64
		for i := range uint64(100) {
			entries = append(entries, store.Entry{Kind: store.Message, Seq: seq + i, Data: body})
			if (seq+i)%20 != 0 {
				gone = append(gone, seq+i)
			}
		}
		kept += len(entries) - len(gone)
		call := time.Now()
		_, err := d.Append(entries)
		must(t, err)
		must(t, d.Remove(gone))
		worst = max(worst, time.Since(call))
		must(t, d.Sync())
	}
	s := d.Stats()
	t.Logf("%d messages of 200 bytes kept of %d: %.1f bytes of index each, %d MiB on disk, longest call %v",
		kept, all, float64(d.IndexBytes())/float64(kept), s.Used>>20, worst)
	if s.Messages != kept || d.IndexBytes() > 56*kept || s.Used > 4*int64(kept)*256+16<<20 {
		t.Errorf("%+v, %d bytes of index", s, d.IndexBytes())
	}
}
