package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// writeLog fills a store in dir and returns, for each message, the segment file and the
// offset behind its record, in order. Nothing is removed, so nothing is moved.
func writeLog(t *testing.T, dir string, messages int, clean bool) []place {
	t.Helper()
	d := openDisk(t, dir, small)
	rng := rand.New(rand.NewPCG(7, 7))
	for seq := range uint64(messages) {
		_, err := d.Append([]store.Entry{{Kind: store.Message, Seq: seq + 1, Data: damageBody(seq + 1)}})
		must(t, err)
		if rng.IntN(8) == 0 {
			must(t, d.Sync())
		}
	}
	must(t, d.Sync())
	places := make([]place, messages)
	for i := range places {
		seg, off := d.Place(uint64(i) + 1)
		places[i] = place{seg, off, off + 24 + int64(len(damageBody(uint64(i)+1)))}
	}
	if clean {
		must(t, d.Close())
	} else {
		d.Abandon()
	}
	return places
}

type place struct {
	path     string
	off, end int64 // without padding
}

func damageBody(seq uint64) []byte { return bytes.Repeat([]byte{byte(seq), 1}, int(seq*37%300)) }

func copyQueue(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	must(t, os.CopyFS(to, os.DirFS(from)))
	return to
}

// checkDamaged opens the damaged queue in dir: it is refused and the damage named, and
// with Salvage all but the messages in lost is there and stays there.
func checkDamaged(t *testing.T, dir string, n int, path string, at int64, lost []uint64) {
	t.Helper()
	path = filepath.Join(dir, "q.disk", filepath.Base(path))
	r, err := store.Check(dir, "q")
	var damaged *store.DamagedError
	if !errors.As(err, &damaged) || !errors.Is(err, store.ErrDamaged) {
		t.Fatalf("Check: %+v, %v", r, err)
	}
	if !slices.ContainsFunc(r.Damage, func(d store.Damage) bool { return d.Path == path && d.Offset <= at && at < d.Offset+d.Length }) {
		t.Fatalf("damage at %s %d is not named: %v", path, at, err)
	}
	if _, err := store.OpenDisk(dir, "q", small); !errors.Is(err, store.ErrDamaged) {
		t.Fatalf("open: %v", err)
	}
	opts := *small
	opts.Salvage = true
	d := openDisk(t, dir, &opts)
	if len(d.Report().Damage) == 0 {
		t.Error("Salvage did not report the damage")
	}
	checkMessages(t, d, n, lost)
	_, err = d.Append([]store.Entry{{Kind: store.Message, Seq: d.Stats().High + 1, Data: []byte("more")}})
	must(t, err)
	must(t, d.Remove([]uint64{d.Stats().High}))
	must(t, d.Close())
	d = openDisk(t, dir, small)
	if r := d.Report(); len(r.Damage) != 0 || r.Torn != nil {
		t.Errorf("after Salvage: %+v", r)
	}
	checkMessages(t, d, n, lost)
	must(t, d.Close())
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
}

func checkMessages(t *testing.T, d *store.Disk, n int, lost []uint64) {
	t.Helper()
	for seq := uint64(1); seq <= uint64(n); seq++ {
		b, err := d.Read(nil, seq)
		switch {
		case slices.Contains(lost, seq):
			if !errors.Is(err, store.ErrNotFound) {
				t.Fatalf("message %d is lost, and Read says %v", seq, err)
			}
		case err != nil || !bytes.Equal(b, damageBody(seq)):
			t.Fatalf("message %d: %v", seq, err)
		}
	}
}

// A flipped bit in a message costs that message, and is named.
func TestDiskFlippedBits(t *testing.T) {
	const n = 2000
	dir := t.TempDir()
	places := writeLog(t, dir, n, true)
	rng := rand.New(rand.NewPCG(1, 1))
	for range storetest.Scale(200, 10, 8) {
		seq := rng.Uint64N(n) + 1
		p := places[seq-1]
		at, mask := p.off+rng.Int64N(p.end-p.off), byte(1)<<rng.IntN(8)
		t.Run(fmt.Sprintf("%d+%d", seq, at-p.off), func(t *testing.T) {
			t.Parallel()
			dir := copyQueue(t, dir)
			flip(t, dir, p.path, at, mask)
			checkDamaged(t, dir, n, p.path, at, []uint64{seq})
		})
	}
}

func flip(t *testing.T, dir, path string, at int64, mask byte) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "q.disk", filepath.Base(path)), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := []byte{0}
	_, err = f.ReadAt(b, at)
	must(t, err)
	b[0] ^= mask
	_, err = f.WriteAt(b, at)
	must(t, err)
}

// A whole range overwritten, over record boundaries.
func TestDiskOverwritten(t *testing.T) {
	const n = 1000
	dir := t.TempDir()
	places := writeLog(t, dir, n, true)
	first, last := uint64(300), uint64(310)
	if places[first-1].path != places[last-1].path {
		first, last = 320, 330
	}
	p := places[first-1]
	dir = copyQueue(t, dir)
	f, err := os.OpenFile(filepath.Join(dir, "q.disk", filepath.Base(p.path)), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, int(places[last-1].off-p.off)+3), p.off)
	must(t, err)
	must(t, f.Close())
	var lost []uint64
	for seq := first; seq <= last; seq++ {
		lost = append(lost, seq)
	}
	checkDamaged(t, dir, n, p.path, p.off, lost)
}

// A file that was cut off costs what was behind, and is named.
func TestDiskTruncated(t *testing.T) {
	const n = 2000
	dir := t.TempDir()
	places := writeLog(t, dir, n, true)
	rng := rand.New(rand.NewPCG(2, 1))
	for range storetest.Scale(100, 6, 5) {
		p := places[rng.IntN(n)]
		at := 1024 + rng.Int64N(p.end-1024)
		t.Run(fmt.Sprintf("%s-%d", filepath.Base(p.path), at), func(t *testing.T) {
			t.Parallel()
			dir := copyQueue(t, dir)
			must(t, os.Truncate(filepath.Join(dir, "q.disk", filepath.Base(p.path)), at))
			var lost []uint64
			for i, q := range places {
				if q.path == p.path && q.end > at {
					lost = append(lost, uint64(i)+1)
				}
			}
			checkDamaged(t, dir, n, p.path, at, lost)
		})
	}
}

func TestDiskMissingFile(t *testing.T) {
	const n = 2000
	dir := t.TempDir()
	places := writeLog(t, dir, n, true)
	p := places[n/2]
	var lost []uint64
	for i, q := range places {
		if q.path == p.path {
			lost = append(lost, uint64(i)+1)
		}
	}
	dir = copyQueue(t, dir)
	path := filepath.Join(dir, "q.disk", filepath.Base(p.path))
	must(t, os.Remove(path))
	if _, err := store.Check(dir, "q"); !errors.Is(err, store.ErrDamaged) {
		t.Fatal(err)
	}
	opts := *small
	opts.Salvage = true
	d := openDisk(t, dir, &opts)
	checkMessages(t, d, n, lost)
	must(t, d.Close())
	checkMessages(t, openDisk(t, dir, small), n, lost)
}

// One bad header copy loses nothing; two lose the file, in the middle or at the end.
func TestDiskHeaders(t *testing.T) {
	const n = 2000
	dir := t.TempDir()
	places := writeLog(t, dir, n, true)
	for _, seq := range []int{1, n / 2, n} {
		p := places[seq-1]
		t.Run(fmt.Sprint(seq), func(t *testing.T) {
			one := copyQueue(t, dir)
			flip(t, one, p.path, 9, 1)
			r, err := store.Check(one, "q")
			if err != nil || len(r.Damage) != 1 || r.Damage[0].Lost {
				t.Errorf("one copy: %+v, %v", r, err)
			}
			d := openDisk(t, one, small)
			checkMessages(t, d, n, nil)
			must(t, d.Close())
			if r, err := store.Check(one, "q"); err != nil || len(r.Damage) != 0 {
				t.Errorf("one copy, healed: %+v, %v", r, err)
			}
			two := copyQueue(t, dir)
			flip(t, two, p.path, 9, 1)
			flip(t, two, p.path, 512+20, 1)
			var lost []uint64
			for i, q := range places {
				if q.path == p.path {
					lost = append(lost, uint64(i)+1)
				}
			}
			checkDamaged(t, two, n, p.path, p.off, lost)
		})
	}
}

// What a crash tears off at the end is no damage: all before it is there, it is named,
// and what comes next is not disturbed by it.
func TestDiskTornTail(t *testing.T) {
	const n = 301
	dir := t.TempDir()
	places := writeLog(t, dir, n, false)
	last := places[n-1]
	for cut := last.off + 1; cut < last.end; cut += 7 {
		dir := copyQueue(t, dir)
		f, err := os.OpenFile(filepath.Join(dir, "q.disk", filepath.Base(last.path)), os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt(make([]byte, last.end-cut), cut)
		must(t, err)
		must(t, f.Close())
		r, err := store.Check(dir, "q")
		if err != nil || r.Torn == nil || r.Torn.Offset != last.off || r.Messages != n-1 {
			t.Fatalf("cut at %d of %d to %d: %+v, %v", cut, last.off, last.end, r, err)
		}
		d := openDisk(t, dir, small)
		checkMessages(t, d, n, []uint64{n})
		_, err = d.Append([]store.Entry{{Kind: store.Message, Seq: n + 1}})
		must(t, err)
		must(t, d.Close())
		d = openDisk(t, dir, small)
		if d.Report().Torn != nil || d.Stats().Messages != n {
			t.Fatalf("after the torn tail: %+v %+v", d.Report(), d.Stats())
		}
		must(t, d.Close())
	}
}

// Damage that comes while the queue is open is told by Read, Each and compaction.
func TestDiskDamageWhileOpen(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, small)
	for seq := range uint64(400) {
		_, err := d.Append([]store.Entry{{Kind: store.Message, Seq: seq + 1, Data: make([]byte, 200)}})
		must(t, err)
	}
	must(t, d.Sync())
	path, off := d.Place(10)
	flip(t, dir, path, off+30, 4)
	var damaged *store.DamagedError
	if _, err := d.Read(nil, 10); !errors.As(err, &damaged) || damaged.Damage[0].Path != path || damaged.Damage[0].Offset != off {
		t.Errorf("Read: %v", err)
	}
	if err := d.Each(func(store.Entry) error { return nil }); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("Each: %v", err)
	}
	for seq := uint64(20); seq <= 400; seq++ {
		must(t, d.Remove([]uint64{seq}))
		must(t, d.Sync())
	}
	for seq := uint64(1); seq < 20; seq++ {
		if _, err := d.Read(nil, seq); (err != nil) != (seq == 10) {
			t.Errorf("message %d after compaction: %v", seq, err)
		}
	}
}
