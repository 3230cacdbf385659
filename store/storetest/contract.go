package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/postbus/postbus/store"
)

func testEmpty(b *bench) {
	b.check()
	b.reopen()
	data, err := b.s.Read([]byte("as it was"), 1)
	b.wantError("Read", err, store.ErrNotFound)
	if string(data) != "as it was" {
		b.Errorf("Read of nothing changed dst: %q", data)
	}
	b.remove()
	b.remove(1, 2, 3)
	b.forget(10)
	b.append()
}

func testOrder(b *bench) {
	b.append(settings("s"), message(1, "one"), message(2, "two"), mark(2, "id2"), state(2, "tried"), message(7, "seven"))
	b.append(mark(1, "id1"), message(8, "eight"))
	b.check()
	b.reopen()
	b.append(message(9, "nine"), message(1000, "far"), message(store.MaxSeq-1, "almost"), message(store.MaxSeq, "last"))
	b.check()
}

func testReplace(b *bench) {
	b.append(settings("old"), message(1, "m"), state(1, "a"), mark(1, "x"), mark(5, "y"))
	b.append(settings("new and longer"), state(1, "bb"), mark(1, ""))
	b.check()
	b.reopen()
	b.append(settings(""), state(1, "c"), state(1, "d"), mark(5, "z"))
	b.append(state(2, "of nobody"))
	b.check()
}

// testStateBeforeMessage appends States that come before their messages, in one call with them.
func testStateBeforeMessage(b *bench) {
	b.append(state(1, "too early"), message(1, "one"))
	b.append(message(2, "two"), state(3, "too early"), mark(2, "id"), state(2, "in time"), message(3, "three"), message(5, "five"), state(4, "of nobody"))
	b.check()
	b.reopen()
	b.append(settings("s"), state(6, "too early"), message(6, "six"), state(6, "in time"), state(7, "too early"), message(7, "seven"))
	b.check()
}

func testRemove(b *bench) {
	for seq := uint64(1); seq <= 500; seq++ {
		b.append(message(seq, fmt.Sprint("message ", seq)), state(seq, fmt.Sprint(seq)))
	}
	r := rand.New(rand.NewPCG(1, 2))
	order := r.Perm(500)
	for i, at := range order[:450] {
		b.remove(uint64(at + 1))
		if i%90 == 0 {
			b.check()
			b.reopen()
		}
	}
	b.remove(uint64(order[0]+1), uint64(order[460]+1), 10_000, uint64(order[460]+1))
	b.append(state(uint64(order[0]+1), "of a removed one"))
	b.check()
}

func testMarks(b *bench) {
	for seq := uint64(1); seq <= 50; seq++ {
		b.append(message(seq, "m"), mark(seq, fmt.Sprint("id", seq)))
		b.remove(seq)
	}
	b.check()
	b.reopen()
	b.forget(20)
	b.check()
	b.append(mark(3, "come back"))
	b.reopen()
	b.forget(2)
	b.check()
	b.forget(store.MaxSeq)
	b.append(mark(60, "after"))
}

func testEmptyData(b *bench) {
	b.append(settings(""), message(1, ""), state(1, ""), mark(1, ""), store.Entry{Kind: store.Message, Seq: 2})
	b.check()
	b.reopen()
	data, err := b.s.Read(nil, 2)
	if err != nil || len(data) != 0 {
		b.Errorf("Read: %q, %v", data, err)
	}
}

func testNotKept(b *bench) {
	buf := []byte("settings")
	entries := []store.Entry{{Kind: store.Settings, Data: buf[:8]}, {Kind: store.Message, Seq: 1, Data: buf[:3]}, {Kind: store.State, Seq: 1, Data: buf[1:5]}, {Kind: store.Mark, Seq: 1, Data: buf}}
	b.append(entries...)
	copy(buf, "XXXXXXXX")
	clear(entries)
	b.check()
	data, err := b.s.Read(nil, 1)
	if err != nil {
		b.Fatal(err)
	}
	copy(data, "YYY")
	again, err := b.s.Read([]byte("before "), 1)
	if err != nil || string(again) != "before set" {
		b.Errorf("Read: %q, %v", again, err)
	}
}

func testBadEntries(b *bench) {
	b.append(message(5, "five"))
	for _, test := range []struct {
		name  string
		entry store.Entry
	}{
		{"seq 0", message(0, "x")},
		{"a seq again", message(5, "x")},
		{"a lower seq", message(4, "x")},
		{"a seq above the highest", message(store.MaxSeq+1, "x")},
		{"a mark without seq", mark(0, "x")},
		{"a state above the highest", state(store.MaxSeq+1, "x")},
		{"settings with a seq", store.Entry{Kind: store.Settings, Seq: 1}},
		{"no kind", store.Entry{Seq: 6}},
		{"an unknown kind", store.Entry{Kind: 5, Seq: 6}},
	} {
		seq := b.model.high + 1
		n, err := b.s.Append([]store.Entry{message(seq, "good"), test.entry, message(seq+1, "after")})
		b.wantError(test.name, err, store.ErrBadEntry)
		if n != 1 {
			b.Errorf("%s: n is %d, want 1", test.name, n)
		}
		b.model.add(message(seq, "good"))
		b.check()
	}
	b.reopen()
}

func testHigh(b *bench) {
	b.append(message(1, "a"), message(9, "b"), mark(9, "b"))
	b.remove(1, 9)
	b.forget(9)
	b.check()
	b.reopen()
	if b.level != store.LevelMemory {
		n, err := b.s.Append([]store.Entry{message(9, "again")})
		if n != 0 {
			b.Errorf("seq 9 was taken twice")
		}
		b.wantError("a seq from before", err, store.ErrBadEntry)
	}
	b.append(message(10, "c"))
}

func testEachStops(b *bench) {
	b.append(settings("s"), message(1, "a"), state(1, "b"), message(2, "c"), mark(1, "d"), mark(2, "e"))
	stop := errors.New("enough")
	for limit := range 6 {
		calls := 0
		err := b.s.Each(func(store.Entry) error {
			if calls == limit {
				return stop
			}
			calls++
			return nil
		})
		if err != stop || calls != limit {
			b.Errorf("stopped after %d: %v after %d", limit, err, calls)
		}
	}
}

// boundaries returns sizes around every boundary that a store may have inside.
func boundaries() (sizes []int) {
	edges := []int{0, 1, 8, 64, 128, 256, 512, 4096, 8192, 16384, 32768, 65536, 1 << 17, 1 << 18}
	for _, edge := range edges[:Scale(14, 14, 12)] {
		for _, d := range []int{-65, -64, -33, -32, -31, -25, -24, -23, -17, -16, -15, -9, -8, -7, -1, 0, 1} {
			if edge+d >= 0 {
				sizes = append(sizes, edge+d)
			}
		}
	}
	return sizes
}

func testSizes(b *bench) {
	seq := uint64(0)
	for i, size := range boundaries() {
		seq++
		b.append(store.Entry{Kind: store.Message, Seq: seq, Data: Fill(seq, size)})
		data, err := b.s.Read(nil, seq)
		if err != nil || !bytes.Equal(data, b.model.messages[seq]) {
			b.Fatalf("Read of %d bytes: %s, %v", size, brief(data), err)
		}
		if seq > 12 {
			b.remove(seq - 12)
		}
		if i%40 == 0 {
			b.reopen()
		}
	}
	b.append(store.Entry{Kind: store.Mark, Seq: 1, Data: Fill(1, 70_000)}, store.Entry{Kind: store.State, Seq: seq, Data: Fill(2, 70_000)},
		store.Entry{Kind: store.Settings, Data: Fill(3, 70_000)})
	b.check()
}

func testTooLarge(b *bench) {
	limit := b.s.Stats().MaxMessage
	if limit < 0 || limit > 16<<20 {
		b.append(store.Entry{Kind: store.Message, Seq: 1, Data: Fill(1, 2<<20)})
		return
	}
	n, err := b.s.Append([]store.Entry{{Kind: store.Message, Seq: 1, Data: make([]byte, limit+1)}})
	b.wantError("one byte too many", err, store.ErrTooLarge)
	if n != 0 {
		b.Errorf("n is %d", n)
	}
	b.check()
	b.append(store.Entry{Kind: store.Message, Seq: 1, Data: Fill(1, limit)})
	b.reopen()
	b.remove(1)
	b.reopen()
	b.append(message(2, "after"))
}

func testMany(b *bench) {
	const batch = 1000
	many := uint64(Scale(100_000, 10_000, 10_000))
	entries := make([]store.Entry, 0, batch)
	for seq := uint64(1); seq <= many; seq++ {
		if entries = append(entries, store.Entry{Kind: store.Message, Seq: seq, Data: Fill(seq, int(seq%9))}); len(entries) == batch {
			b.append(entries...)
			entries = entries[:0]
		}
	}
	b.check()
	b.reopen()
	seqs := make([]uint64, 0, batch)
	for seq := uint64(1); seq <= many; seq++ {
		if seq%(many/10) == 0 {
			continue
		}
		if seqs = append(seqs, seq); len(seqs) == batch {
			b.remove(seqs...)
			seqs = seqs[:0]
		}
	}
	b.remove(seqs...)
	b.reopen()
}

// testRandom does what comes, on a store and on the model.
func testRandom(b *bench) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("POSTBUS_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	defer func() {
		if b.Failed() {
			b.Logf("again with POSTBUS_SEED=%d", seed)
		}
	}()
	r := rand.New(rand.NewPCG(seed, 0))
	for range Scale(1500, 1500, 800) {
		switch n := r.IntN(100); {
		case n < 50:
			b.append(randomEntries(r, b.model)...)
		case n < 85:
			b.remove(randomSeqs(r, b.model)...)
		case n < 90:
			b.forget(uint64(r.Int64N(int64(b.model.high + 2))))
		case n < 97:
			b.readOne(r)
		default:
			b.check()
			b.reopen()
		}
	}
}

func randomEntries(r *rand.Rand, m *model) (entries []store.Entry) {
	high := m.high
	for range 1 + r.IntN(8) {
		switch n := r.IntN(10); {
		case n < 6:
			high += 1 + uint64(r.IntN(3))
			size := r.IntN(300)
			if r.IntN(20) == 0 {
				size = r.IntN(20_000)
			}
			entries = append(entries, store.Entry{Kind: store.Message, Seq: high, Data: Fill(high, size)})
		case n < 8:
			entries = append(entries, state(1+uint64(r.Int64N(int64(high+1))), strings.Repeat("s", r.IntN(40))))
		case n < 9 && high > 0:
			entries = append(entries, mark(1+uint64(r.Int64N(int64(high))), strings.Repeat("i", r.IntN(40))))
		default:
			entries = append(entries, settings(strings.Repeat("q", r.IntN(400))))
		}
	}
	return entries
}

// randomSeqs returns some that are there and some that are not.
func randomSeqs(r *rand.Rand, m *model) (seqs []uint64) {
	live := sortedKeys(m.messages)
	for range 1 + r.IntN(10) {
		switch {
		case len(live) == 0 || r.IntN(8) == 0:
			seqs = append(seqs, 1+uint64(r.Int64N(int64(m.high+5))))
		case r.IntN(2) == 0:
			seqs = append(seqs, live[0])
			live = live[1:]
		default:
			seqs = append(seqs, live[r.IntN(len(live))])
		}
	}
	return seqs
}

func (b *bench) readOne(r *rand.Rand) {
	b.Helper()
	seq := 1 + uint64(r.Int64N(int64(b.model.high+2)))
	data, err := b.s.Read(nil, seq)
	if want, ok := b.model.messages[seq]; !ok {
		b.wantError("Read", err, store.ErrNotFound)
	} else if err != nil || !bytes.Equal(data, want) {
		b.Fatalf("Read of %d: %s, %v, want %s", seq, brief(data), err, brief(want))
	}
}

func testClosed(b *bench) {
	b.append(message(1, "kept"))
	if err := b.s.Close(); err != nil {
		b.Fatal(err)
	}
	if err := b.s.Close(); err != nil {
		b.Errorf("second Close: %v", err)
	}
	_, err := b.s.Append([]store.Entry{message(2, "x")})
	b.wantError("Append", err, store.ErrClosed)
	b.wantError("Remove", b.s.Remove([]uint64{1}), store.ErrClosed)
	b.wantError("Forget", b.s.Forget(1), store.ErrClosed)
	_, err = b.s.Read(nil, 1)
	b.wantError("Read", err, store.ErrClosed)
	b.wantError("Each", b.s.Each(func(store.Entry) error { return nil }), store.ErrClosed)
	b.wantError("Sync", b.s.Sync(), store.ErrClosed)
	if level := b.s.Stats().Level; level != b.level {
		b.Errorf("level %q", level)
	}
	b.s = b.open(b.T, b.dir)
	if b.level == store.LevelMemory {
		b.model = newModel()
	}
}
