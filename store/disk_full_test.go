package store_test

import (
	"errors"
	"maps"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// full is a store in a room that is too small for what is pushed, and what it should hold.
type full struct {
	t    *testing.T
	rng  *rand.Rand
	dir  string
	opts *store.DiskOptions
	d    *store.Disk
	m    *model
	most int // bytes of a message
}

// push appends messages until one is refused, and says how many were not.
func (f *full) push(atMost int) (n int) {
	f.t.Helper()
	for ; n < atMost; n++ {
		err := f.m.append(f.d, store.Message, randomBody(f.rng, f.rng.IntN(f.most)))
		if errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrNoSpace) {
			return n
		}
		must(f.t, err)
	}
	return n
}

// some returns up to n messages, from anywhere or from the front.
func (f *full) some(n int) []uint64 {
	seqs := f.m.seqs()
	if f.rng.IntN(3) > 0 {
		f.rng.Shuffle(len(seqs), func(i, j int) { seqs[i], seqs[j] = seqs[j], seqs[i] })
	}
	return seqs[:min(len(seqs), n)]
}

func (f *full) step() {
	f.t.Helper()
	switch n := f.rng.IntN(24); {
	case n < 5:
		f.push(1 + f.rng.IntN(300))
	case n < 12:
		for _, s := range f.some(1 + f.rng.IntN(60)) {
			must(f.t, f.m.remove(f.d, []uint64{s}))
			if f.rng.IntN(2) == 0 {
				f.push(1)
			}
		}
	case n < 13:
		must(f.t, f.m.remove(f.d, f.some(f.rng.IntN(1000))))
	case n < 18:
		f.states(f.some(1 + f.rng.IntN(400)))
	case n < 19:
		_ = f.m.append(f.d, store.Mark, nil)
	case n < 20 && f.m.high > 20:
		upTo := f.m.high - uint64(f.rng.IntN(20))
		maps.DeleteFunc(f.m.marks, func(s uint64, _ []byte) bool { return s <= upTo })
		must(f.t, f.d.Forget(upTo))
	case n < 21:
		must(f.t, f.d.Close())
		f.d = openDisk(f.t, f.dir, f.opts)
	default:
		must(f.t, f.d.Sync())
	}
}

// states gives each message another State, of no more bytes than have room kept.
func (f *full) states(seqs []uint64) {
	f.t.Helper()
	for _, s := range seqs {
		e := store.Entry{Kind: store.State, Seq: s, Data: randomBody(f.rng, f.rng.IntN(25))}
		if _, err := f.d.Append([]store.Entry{e}); err != nil {
			f.t.Fatal(err)
		}
		f.m.apply(e)
	}
}

// run does all that fills and empties, then empties it for good.
func (f *full) run(steps int) {
	f.t.Helper()
	f.d, f.m = openDisk(f.t, f.dir, f.opts), newModel()
	all := f.push(1 << 30)
	if all == 0 {
		f.t.Fatal("nothing fits")
	}
	f.states(f.m.seqs()) // every one, the room for that is reserved
	f.push(10)
	for i := range steps {
		f.step()
		if i%50 == 0 {
			if s := f.d.Invariant(); s != "" {
				f.t.Fatal(s)
			}
		}
	}
	f.m.compare(f.t, f.d)
	f.push(1 << 30)
	f.states(f.m.seqs())
	for _, s := range f.some(1 << 30) { // one by one, with a push after each, as a broker tries again
		must(f.t, f.m.remove(f.d, []uint64{s}))
		if f.rng.IntN(4) == 0 {
			f.push(1)
		}
	}
	must(f.t, f.m.remove(f.d, f.m.seqs()))
	must(f.t, f.d.Sync())
	again := f.push(1 << 30)
	if again == 0 || all > 20 && again < all/2 {
		f.t.Errorf("%d messages fit at first, %d after all were removed", all, again)
	}
	must(f.t, f.d.Close())
	f.d = openDisk(f.t, f.dir, f.opts)
	f.m.compare(f.t, f.d)
	must(f.t, f.m.remove(f.d, f.m.seqs()))
	must(f.t, f.d.Close())
}

// What is full can be emptied, whatever is done meanwhile: no Remove, Forget or State is ever
// refused for want of room, and the room comes back.
func TestDiskFullRoom(t *testing.T) {
	dir := onTmpfs(t)
	if dir == "" {
		return
	}
	for seed := range uint64(storetest.Scale(6, 1, 1)) {
		for _, most := range []int{2000, 12_000, 100, 1}[:storetest.Scale(4, 4, 3)] {
			f := &full{t: t, rng: rand.New(rand.NewPCG(seed, uint64(most))), dir: dir, opts: small, most: most}
			f.run(storetest.Scale(600, 200, 100))
			must(t, store.DeleteDisk(dir, "q"))
		}
	}
}

func TestDiskFullMaxBytes(t *testing.T) {
	dir := onTmpfs(t) // quick to sync
	if dir == "" {
		return
	}
	opts := store.WithSegments(store.DiskOptions{MaxBytes: 512 << 10}, 16<<10, 64<<10)
	for seed := range uint64(storetest.Scale(6, 1, 1)) {
		for _, most := range []int{120_000, 50_000, 12_000, 2000, 100, 1}[:storetest.Scale(6, 6, 5)] {
			f := &full{t: t, rng: rand.New(rand.NewPCG(seed, uint64(most))), dir: dir, opts: opts, most: most}
			f.run(storetest.Scale(600, 200, 50))
			must(t, store.DeleteDisk(dir, "q"))
		}
	}
}

// The broker's case: a disk of 8 MiB, segments of the usual size, and after each Remove an
// Append that was refused is tried again.
func TestDiskFullRetry(t *testing.T) {
	tmpfsMiB = 8
	dir := onTmpfs(t)
	if dir == "" {
		return
	}
	for _, size := range []int{20_000, 1000, 100}[:storetest.Scale(3, 3, 2)] {
		d := openDisk(t, dir, nil)
		m := newModel()
		body := make([]byte, size)
		pushed, oldest := 0, uint64(1)
		for range 3000 + 10<<20/(size+48) {
			err := m.append(d, store.Message, body)
			if err == nil {
				pushed++
				continue
			}
			if !errors.Is(err, store.ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			must(t, m.remove(d, []uint64{oldest}))
			oldest++
			must(t, d.Sync())
		}
		if pushed == len(m.messages) || len(m.messages)*(size+48) < 4<<20 {
			t.Errorf("%d bytes: %d pushed, %d there", size, pushed, len(m.messages))
		}
		t.Logf("%d bytes: %d pushed, %d there", size, pushed, len(m.messages))
		must(t, m.remove(d, m.seqs()))
		must(t, d.Sync())
		must(t, m.append(d, store.Message, body))
		must(t, d.Close())
		d = openDisk(t, dir, nil)
		m.compare(t, d)
		must(t, d.Close())
		must(t, store.DeleteDisk(dir, "q"))
	}
}
