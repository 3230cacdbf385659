package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

var errPower = errors.New("the power is off")

// powerFiles is a file system that remembers what is durable, and stops at a given
// call. What was written and not synced then is there or not, sector by sector; what
// was done to names and not synced, name by name.
type powerFiles struct {
	store.DiskFiles
	mu    sync.Mutex
	rng   *rand.Rand
	left  int // calls until the power goes; negative: never
	off   bool
	syncs atomic.Int64

	names   map[string]*powerFile // as they are
	durable map[string]*powerFile
}

type powerFile struct {
	store.DiskFile
	fs      *powerFiles
	synced  []byte
	pending []write
}

type write struct {
	off  int64
	data []byte
}

func newPowerFiles(seed uint64) *powerFiles {
	return &powerFiles{
		DiskFiles: store.HostFiles, rng: rand.New(rand.NewPCG(seed, 2)), left: -1,
		names: map[string]*powerFile{}, durable: map[string]*powerFile{},
	}
}

// call counts a call; it fails when there is no power.
func (f *powerFiles) call() error {
	if f.left == 0 {
		f.off = true
	}
	if f.off {
		return errPower
	}
	f.left--
	return nil
}

func (f *powerFiles) Create(path string) (store.DiskFile, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call(); err != nil {
		return nil, err
	}
	file, err := f.DiskFiles.Create(path)
	if err != nil {
		return nil, err
	}
	p := &powerFile{DiskFile: file, fs: f}
	f.names[path] = p
	return p, nil
}

func (f *powerFiles) Open(path string) (store.DiskFile, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	file, err := f.DiskFiles.Open(path)
	if err != nil {
		return nil, err
	}
	p := f.names[path]
	if p == nil { // from before
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		p = &powerFile{fs: f, synced: b}
		f.names[path], f.durable[path] = p, p
	}
	p.DiskFile = file
	return p, nil
}

func (f *powerFiles) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call(); err != nil {
		return err
	}
	f.names[to] = f.names[from]
	delete(f.names, from)
	return f.DiskFiles.Rename(from, to)
}

func (f *powerFiles) Remove(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call(); err != nil {
		return err
	}
	delete(f.names, path)
	return f.DiskFiles.Remove(path)
}

func (f *powerFiles) SyncDir(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call(); err != nil {
		return err
	}
	f.durable = maps.Clone(f.names)
	return nil
}

func (p *powerFile) Allocate(size int64) error {
	p.fs.mu.Lock()
	defer p.fs.mu.Unlock()
	return p.fs.call()
}

func (p *powerFile) WriteAt(b []byte, off int64) (int, error) {
	p.fs.mu.Lock()
	defer p.fs.mu.Unlock()
	if err := p.fs.call(); err != nil {
		if p.fs.left == 0 { // it goes in the middle of this
			p.fs.left = -1
			p.pending = append(p.pending, write{off, bytes.Clone(b[:p.fs.rng.IntN(len(b)+1)])})
		}
		return 0, err
	}
	p.pending = append(p.pending, write{off, bytes.Clone(b)})
	return p.DiskFile.WriteAt(b, off)
}

func (p *powerFile) Datasync() error {
	p.fs.mu.Lock()
	defer p.fs.mu.Unlock()
	if err := p.fs.call(); err != nil {
		return err
	}
	p.fs.syncs.Add(1)
	for _, w := range p.pending {
		p.write(w)
	}
	p.pending = nil
	return nil
}

func (p *powerFile) write(w write) {
	if need := int(w.off) + len(w.data) - len(p.synced); need > 0 {
		p.synced = append(p.synced, make([]byte, need)...)
	}
	copy(p.synced[w.off:], w.data)
}

// restore puts into dir what is there after the power came back. With kill only the
// process had ended: all that was written is there.
func (f *powerFiles) restore(t *testing.T, dir string, kill bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := maps.Clone(f.durable)
	for _, path := range slices.Sorted(maps.Keys(f.names)) {
		if kill || f.rng.IntN(2) == 0 {
			names[path] = f.names[path]
		}
	}
	for _, path := range slices.Sorted(maps.Keys(f.durable)) {
		if _, ok := f.names[path]; !ok && (kill || f.rng.IntN(2) == 0) {
			delete(names, path)
		}
	}
	must(t, os.MkdirAll(filepath.Join(dir, "q.disk"), 0o700))
	files := map[*powerFile]bool{}
	for _, path := range slices.Sorted(maps.Keys(names)) {
		p := names[path]
		if !files[p] {
			files[p] = true
			for _, w := range p.pending {
				for len(w.data) > 0 {
					n := min(len(w.data), int(512-w.off%512))
					if kill || f.rng.IntN(2) == 0 {
						p.write(write{w.off, w.data[:n]})
					}
					w.off, w.data = w.off+int64(n), w.data[n:]
				}
			}
		}
		must(t, os.WriteFile(filepath.Join(dir, "q.disk", filepath.Base(path)), p.synced, 0o600))
	}
}

// TestDiskPowerLoss stops the world at every sort of moment, and checks that what was
// synced is there.
func TestDiskPowerLoss(t *testing.T) {
	for seed := range storetest.Scale(300, 8, 5) {
		for _, kill := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d-%v", seed, kill), func(t *testing.T) {
				t.Parallel()
				powerRound(t, uint64(seed), kill)
			})
		}
	}
}

func powerRound(t *testing.T, seed uint64, kill bool) {
	rng := rand.New(rand.NewPCG(seed, 3))
	dir := t.TempDir()
	files := newPowerFiles(seed)
	m := newModel()
	removed := map[uint64]bool{} // its remove was begun
	for life := range 4 {
		opts := store.WithFiles(store.WithSegments(store.DiskOptions{MaxBytes: -1}, 8<<10, 16<<10), files)
		files.left = rng.IntN(400)
		d, err := store.OpenDisk(dir, "q", opts)
		synced := m.clone()
		if err == nil {
			for err == nil {
				before := m.seqs()
				err = m.step(rng, d)
				for _, s := range before {
					if _, ok := m.messages[s]; !ok {
						removed[s] = true
					}
				}
				if err == nil && rng.IntN(6) == 0 && d.Sync() == nil {
					synced = m.clone()
				}
			}
			d.Close()
		} else if errors.Is(err, store.ErrDamaged) {
			t.Fatal(err)
		}
		dir = t.TempDir()
		files.restore(t, dir, kill)
		files = newPowerFiles(seed*10 + uint64(life))
		m = afterPower(t, dir, files, synced, removed)
	}
}

// afterPower compares what is there with what must be, and returns it.
func afterPower(t *testing.T, dir string, files *powerFiles, synced *model, removed map[uint64]bool) *model {
	t.Helper()
	d, err := store.OpenDisk(dir, "q", store.WithSegments(store.DiskOptions{}, 8<<10, 16<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got, err := contents(d)
	must(t, err)
	for seq, body := range synced.messages {
		if b, ok := got.messages[seq]; !ok && !removed[seq] || ok && !bytes.Equal(b, body) {
			t.Fatalf("message %d was synced and is gone, or is another", seq)
		}
	}
	next := synced.high + 1
	for _, seq := range got.seqs() {
		if _, ok := synced.messages[seq]; ok {
			continue
		}
		if seq <= synced.high {
			t.Fatalf("message %d is back: its remove was synced", seq)
		}
		for ; next < seq; next++ {
			if !removed[next] {
				t.Fatalf("message %d is there and %d before it is not", seq, next)
			}
		}
		next++
	}
	if high := d.Stats().High; high < synced.high {
		t.Fatalf("High is %d, and was %d", high, synced.high)
	}
	for seq, state := range got.states {
		if _, ok := synced.states[seq]; !ok && len(state) != 8 {
			t.Fatalf("message %d has a strange State", seq)
		}
	}
	for seq := range synced.states {
		if _, ok := got.messages[seq]; ok && got.states[seq] == nil {
			t.Fatalf("message %d lost its State", seq)
		}
	}
	got.high = d.Stats().High
	return got
}
