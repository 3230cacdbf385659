package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

func openDisk(t testing.TB, dir string, opts *store.DiskOptions) *store.Disk {
	t.Helper()
	d, err := store.OpenDisk(dir, "q", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// small are segments that a test fills quickly.
var small = store.WithSegments(store.DiskOptions{MaxBytes: -1}, 16<<10, 64<<10)

func TestDiskContract(t *testing.T) {
	for name, opts := range map[string]*store.DiskOptions{
		"default":  nil,
		"small":    small,
		"interval": {SyncInterval: 10 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, func(t testing.TB, dir string) store.Store { return openDisk(t, dir, opts) })
		})
	}
}

func TestDiskCrash(t *testing.T) {
	storetest.Crash(t, storetest.Scale(200, 10, 8), func(t testing.TB, dir string) store.Store { return openDisk(t, dir, small) })
}

// TestDiskModel does everything at random, in segments of a few pages, with many
// reopens, and compares with maps.
func TestDiskModel(t *testing.T) {
	for seed := range uint64(storetest.Scale(40, 3, 1)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1))
			dir := t.TempDir()
			d := openDisk(t, dir, small)
			m := newModel()
			for i := range 2000 {
				must(t, m.step(rng, d))
				if rng.IntN(200) == 0 {
					must(t, d.Close())
					d = openDisk(t, dir, small)
					if r := d.Report(); r.Torn != nil || len(r.Damage) != 0 {
						t.Fatalf("a clean close left %+v", r)
					}
				}
				if i%100 == 0 {
					if s := d.Invariant(); s != "" {
						t.Fatal(s)
					}
				}
			}
			m.compare(t, d)
			must(t, d.Close())
			r, err := store.Check(dir, "q")
			if err != nil || r.Messages != len(m.messages) || r.Marks != len(m.marks) || r.Torn != nil {
				t.Errorf("Check: %+v, %v", r, err)
			}
		})
	}
}

func TestDiskLock(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	if _, err := store.OpenDisk(dir, "q", nil); !errors.Is(err, store.ErrInUse) {
		t.Errorf("second open: %v", err)
	}
	if _, err := store.Check(dir, "q"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("check of an open queue: %v", err)
	}
	if err := store.DeleteDisk(dir, "q"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("delete of an open queue: %v", err)
	}
	must(t, d.Close())
	must(t, store.DeleteDisk(dir, "q"))
	must(t, store.DeleteDisk(dir, "q"))
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("delete left %v", entries)
	}
	if _, err := store.Check(dir, "q"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("check of no queue: %v", err)
	}
	if _, err := store.OpenDisk(dir, "a/b", nil); !errors.Is(err, store.ErrBadName) {
		t.Errorf("a bad name: %v", err)
	}
}

// A crash while a queue is deleted leaves the directory under its second name.
func TestDiskDeleteAgain(t *testing.T) {
	dir := t.TempDir()
	must(t, openDisk(t, dir, nil).Close())
	must(t, os.Rename(filepath.Join(dir, "q.disk"), filepath.Join(dir, "q.disk.deleted")))
	d := openDisk(t, dir, nil)
	if d.Stats().High != 0 {
		t.Error("the deleted queue is back")
	}
	if _, err := os.Stat(filepath.Join(dir, "q.disk.deleted")); !os.IsNotExist(err) {
		t.Error("what was left of the delete is still there")
	}
}

func TestDiskInterval(t *testing.T) {
	dir := t.TempDir()
	f := newPowerFiles(1)
	opts := store.WithFiles(store.WithSegments(store.DiskOptions{SyncInterval: time.Millisecond}, 16<<10, 16<<10), f)
	d := openDisk(t, dir, opts)
	if d.Interval() != time.Millisecond {
		t.Error(d.Interval())
	}
	body := make([]byte, 512)
	seq := uint64(0)
	for syncs := f.syncs.Load(); f.syncs.Load() < syncs+20; {
		seq++
		_, err := d.Append([]store.Entry{{Kind: store.Message, Seq: seq, Data: body}})
		must(t, err)
		must(t, d.Sync())
		if seq > 20 {
			must(t, d.Remove([]uint64{seq - 20}))
		}
	}
	must(t, d.Close())
	d = openDisk(t, dir, opts)
	if got := d.Stats().Messages; got != min(20, int(seq)) {
		t.Errorf("%d messages", got)
	}
}

// Large bodies get segments of their own size, and the store comes back to small ones.
func TestDiskLargeBodies(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, small)
	rng := rand.New(rand.NewPCG(1, 1))
	m := newModel()
	for i := range 12 {
		must(t, m.append(d, store.Message, randomBody(rng, 100<<10*(i%4+1)+rng.IntN(9))))
		must(t, d.Sync())
	}
	must(t, d.Close())
	d = openDisk(t, dir, small)
	m.compare(t, d)
	must(t, m.remove(d, m.seqs()))
	// Large spares are removed beside the caller, one after the other: it takes some more Syncs.
	for n := 0; n < 200 || n < 5000 && d.Stats().Used > 512<<10; n++ {
		must(t, m.append(d, store.Message, randomBody(rng, 1000)))
		must(t, d.Sync())
		must(t, m.remove(d, m.seqs()[:1]))
	}
	if used := d.Stats().Used; used > 512<<10 {
		t.Errorf("%d bytes used for next to nothing", used)
	}
	n, err := d.Append([]store.Entry{{Kind: store.Message, Seq: 1 << 40, Data: make([]byte, d.Stats().MaxMessage+1)}})
	if n != 0 || !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("too large: %d, %v", n, err)
	}
}
