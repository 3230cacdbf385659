package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// errKilled is what a hook panics with: what is in the kernel and the files stays as it is at that
// moment, as with kill -9, and everything in memory is thrown away.
var errKilled = errors.New("killed")

// killAt returns a hook that kills at the nth step, and whether it did.
func killAt(n int) (hook func(string), done *string) {
	done = new(string)
	return func(step string) {
		if n--; n == 0 {
			*done = step
			panic(errKilled)
		}
	}, done
}

// run calls f and tells whether it was killed.
func run(f func()) (dead bool) {
	defer func() {
		if v := recover(); v != nil {
			if v != errKilled {
				panic(v)
			}
			dead = true
		}
	}()
	f()
	return false
}

// script is what a store is made to do, and what of it was confirmed.
type script struct {
	t       *testing.T
	s       *store.SysV
	added   map[uint64]int // size
	marks   map[uint64]bool
	removed map[uint64]bool
	doubt   map[uint64]bool // a Remove of it was begun
}

func (sc *script) add(sizes ...int) {
	seq := sc.s.Stats().High
	var entries []store.Entry
	first := seq + 1
	for _, size := range sizes {
		seq++
		entries = append(entries, store.Entry{Kind: store.Message, Seq: seq, Data: storetest.Fill(seq, size)},
			store.Entry{Kind: store.Mark, Seq: seq, Data: []byte("m")}, store.Entry{Kind: store.State, Seq: seq, Data: []byte("s")})
	}
	if _, err := sc.s.Append(entries); err != nil {
		sc.t.Fatal(err)
	}
	for i, size := range sizes {
		sc.added[first+uint64(i)] = size
		sc.marks[first+uint64(i)] = true
	}
}

func (sc *script) remove(seqs ...uint64) {
	for _, seq := range seqs {
		sc.doubt[seq] = true
	}
	if err := sc.s.Remove(seqs); err != nil {
		sc.t.Fatal(err)
	}
	for _, seq := range seqs {
		sc.removed[seq] = true
	}
}

// play is a life in few steps: small and chained messages, over several segments, taken
// out of order, so that segments come and go.
func (sc *script) play(dir string, opts store.SysVOptions) {
	var err error
	if sc.s, err = store.OpenSysV(dir, "q", &opts); err != nil {
		sc.t.Fatal(err)
	}
	sc.add(10, 9000, 0)
	sc.remove(2)
	sc.add(20_000)
	sc.add(30_000, 5)
	sc.remove(4, 1)
	sc.remove(5)
	sc.add(70_000, 8176, 8177)
	sc.remove(7, 9)
	if err := sc.s.Close(); err != nil {
		sc.t.Fatal(err)
	}
}

// check opens the store for good and compares.
func (sc *script) check(dir string, opts store.SysVOptions) {
	sc.t.Helper()
	s, err := store.OpenSysV(dir, "q", &opts)
	if err != nil {
		sc.t.Fatal(err)
	}
	defer func() {
		s.Close()
		if err := store.DeleteSysV(dir, "q"); err != nil {
			sc.t.Error(err)
		}
	}()
	found, states := map[uint64]bool{}, map[uint64]bool{}
	var last uint64
	err = s.Each(func(e store.Entry) error {
		switch e.Kind {
		case store.Message:
			if e.Seq <= last {
				sc.t.Errorf("message %d after %d", e.Seq, last)
			}
			last = e.Seq
			found[e.Seq] = true
			if !bytes.Equal(e.Data, storetest.Fill(e.Seq, len(e.Data))) {
				sc.t.Errorf("message %d is not what was stored", e.Seq)
			}
			if size, ok := sc.added[e.Seq]; ok && size != len(e.Data) {
				sc.t.Errorf("message %d has %d bytes of %d", e.Seq, len(e.Data), size)
			}
		case store.State:
			states[e.Seq] = true
		case store.Mark:
			delete(sc.marks, e.Seq)
			if _, known := sc.added[e.Seq]; !known && !found[e.Seq] {
				sc.t.Errorf("mark %d is there without the message before it", e.Seq)
			}
		}
		return nil
	})
	if err != nil {
		sc.t.Error(err)
	}
	for seq := range sc.added {
		if sc.removed[seq] && found[seq] {
			sc.t.Errorf("message %d came back", seq)
		}
		if !sc.doubt[seq] && (!found[seq] || !states[seq]) {
			sc.t.Errorf("message %d is lost: there %v, its state %v", seq, found[seq], states[seq])
		}
	}
	for seq := range sc.marks {
		sc.t.Errorf("mark %d is lost", seq)
	}
	for seq := range sc.added {
		last = max(last, seq)
	}
	if st := s.Stats(); st.LastLost != nil || st.High < last || s.Strange() != 0 {
		sc.t.Errorf("%+v, %d strange records", st, s.Strange())
	}
	sc.checkEmptied(dir, opts, s)
}

// checkEmptied removes all messages and looks whether anything of them is left in the kernel.
func (sc *script) checkEmptied(dir string, opts store.SysVOptions, s *store.SysV) {
	sc.t.Helper()
	if err := s.Remove(messages(sc.t, s)); err != nil {
		sc.t.Error(err)
	}
	s.Abandon()
	s, err := store.OpenSysV(dir, "q", &opts)
	if err != nil {
		sc.t.Fatal(err)
	}
	if left := messages(sc.t, s); len(left) > 0 {
		sc.t.Errorf("messages %v came back", left)
	}
	for _, id := range s.IDs() {
		var ds store.QueueDS
		if err := store.Msgctl(id, unix.IPC_STAT, &ds); err != nil || ds.Qnum() > 0 {
			sc.t.Errorf("kernel queue %d: %d records left, %v", id, ds.Qnum(), err)
		}
	}
	s.Close()
}

func newScript(t *testing.T) *script {
	return &script{t: t, added: map[uint64]int{}, marks: map[uint64]bool{}, removed: map[uint64]bool{}, doubt: map[uint64]bool{}}
}

// killedOpen opens the store with a kill at its nth step and tells which, if any.
func killedOpen(t *testing.T, dir string, opts store.SysVOptions, n int) string {
	hook, step := killAt(n)
	opts.SetHook(hook)
	run(func() {
		s, err := store.OpenSysV(dir, "q", &opts)
		if err != nil {
			t.Fatal(err)
		}
		s.Abandon()
	})
	return *step
}

// TestSysVSteps kills at every step of a script (at every second, these or those, without
// POSTBUS_FULL), then twice more in what opens the store after it.
func TestSysVSteps(t *testing.T) {
	noQueuesLeft(t)
	for _, opts := range []store.SysVOptions{{}, {NoCopy: true}} {
		t.Run(fmt.Sprintf("NoCopy=%v", opts.NoCopy), func(t *testing.T) {
			steps := map[string]int{}
			stride := storetest.Scale(1, 2, 2)
			for n := 1 + rand.IntN(stride); ; n += stride {
				dir := t.TempDir()
				sc := newScript(t)
				hook, step := killAt(n)
				hooked := opts
				hooked.SetHook(hook)
				dead := run(func() { sc.play(dir, hooked) })
				noteKeys(t, dir)
				if sc.s != nil {
					sc.s.Abandon()
				}
				first := killedOpen(t, dir, opts, 1+rand.IntN(30))
				second := killedOpen(t, dir, opts, 1+rand.IntN(30))
				sc.check(dir, opts)
				if t.Failed() {
					t.Fatalf("killed at step %d (%s), then at %q, then at %q", n, *step, first, second)
				}
				if !dead {
					t.Logf("up to %d steps: %v", n-1, steps)
					break
				}
				steps[*step]++
			}
		})
	}
}

// TestSysVRotationSteps kills at every step of a rotation, and at every step of the rotation
// after that one (at every tenth, another each time, without POSTBUS_FULL).
func TestSysVRotationSteps(t *testing.T) {
	noQueuesLeft(t)
	opts := store.SysVOptions{NoCopy: true}
	pairs, stride := 0, storetest.Scale(1, 10, 10)
	for first := 1; ; first++ {
		var firstStep string
		start := 1 + first%stride
		for second := start; ; second += stride {
			dir := t.TempDir()
			sc := newScript(t)
			var err error
			if sc.s, err = store.OpenSysV(dir, "q", &opts); err != nil {
				t.Fatal(err)
			}
			noteKeys(t, dir)
			sc.add(8176, 8277, 100, 0) // the chain crosses from a full segment to the next
			sc.s.Abandon()
			firstStep = killedOpen(t, dir, opts, first)
			secondStep := killedOpen(t, dir, opts, second)
			sc.check(dir, opts)
			if t.Failed() {
				t.Fatalf("killed at step %d (%s), then at %d (%s)", first, firstStep, second, secondStep)
			}
			pairs++
			if secondStep == "" {
				break
			}
		}
		if firstStep == "" {
			t.Logf("%d steps, %d pairs of kills", first-1, pairs)
			return
		}
	}
}

// TestSysVRotationLeft opens a store with MSG_COPY after a rotation was killed.
func TestSysVRotationLeft(t *testing.T) {
	noQueuesLeft(t)
	for n := 1; ; n++ {
		dir := t.TempDir()
		sc := newScript(t)
		sc.s = mustOpen(t, dir, nil)
		sc.add(100, 9000, 0)
		sc.s.Abandon()
		step := killedOpen(t, dir, store.SysVOptions{NoCopy: true}, n)
		sc.check(dir, store.SysVOptions{})
		if _, err := os.Stat(dir + "/q.rot"); err == nil {
			t.Error("the journal of the rotation stays")
		}
		if t.Failed() {
			t.Fatalf("killed at step %d (%s)", n, step)
		}
		if step == "" {
			return
		}
	}
}
