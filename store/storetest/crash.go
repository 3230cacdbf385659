package storetest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/postbus/postbus/store"
)

// childDir is set in the environment of a child that is to be killed.
const childDir = "POSTBUS_STORETEST_DIR"

// What the child reports: one byte and a seq, once it holds.
const (
	opening   = 'o' // from now on
	added     = 'A' // message seq, its state and its mark, after Sync
	removing  = 'r' // may be gone from now on
	removed   = 'R' // after Sync
	forgotten = 'F' // marks up to seq, after Sync
	forgets   = 'f' // may be gone from now on
)

// Crash appends, syncs and removes at full speed in child processes that are killed
// (SIGKILL) at random moments, and checks after each that everything confirmed is
// there and nothing confirmed as removed comes back. The child is the test's own
// program, run again with only this test and POSTBUS_STORETEST_DIR set; there Crash
// is the child and does not return. So call it first thing in a test of its own.
func Crash(t *testing.T, rounds int, open Open) {
	if dir := os.Getenv(childDir); dir != "" {
		child(func() store.Store { return open(t, dir) })
	}
	dir := t.TempDir()
	c := &crash{T: t, live: map[uint64]bool{}, marks: map[uint64]bool{}}
	total := 0
	for round := range rounds {
		limit := 50 + rand.IntN(3000)
		if round%4 == 3 {
			limit = 1 // as soon as it opens the store
		}
		reports := c.runChild(dir, limit)
		c.follow(reports)
		total += len(reports)
		s := open(t, dir)
		c.check(s)
		if err := s.Close(); err != nil {
			t.Fatalf("round %d: Close: %v", round, err)
		}
		if t.Failed() {
			t.Fatalf("round %d of %d", round, rounds)
		}
	}
	t.Logf("%d rounds, %d reports, %d messages live at the end, high %d", rounds, total, len(c.live), c.high)
}

// crash is what the children's reports say must be there.
type crash struct {
	*testing.T
	live    map[uint64]bool // true: confirmed; false: may be there
	gone    map[uint64]bool // confirmed as removed in this round
	marks   map[uint64]bool // likewise
	unmarks uint64          // marks up to it are confirmed as forgotten
	maybe   uint64          // marks up to it may be
	high    uint64
}

type report struct {
	what byte
	seq  uint64
}

// runChild runs a child until it has made limit reports, kills it, and returns all
// that it reported.
func (c *crash) runChild(dir string, limit int) (reports []report) {
	c.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		c.Fatal(err)
	}
	defer in.Close()
	name := "^" + strings.ReplaceAll(c.Name(), "/", "$/^") + "$"
	cmd := exec.Command(os.Args[0], "-test.run="+name, "-test.timeout=60s")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.ExtraFiles = []*os.File{out}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	out.Close()
	for r := bufio.NewReader(in); ; {
		var b [9]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			break
		}
		reports = append(reports, report{b[0], binary.LittleEndian.Uint64(b[1:])})
		if len(reports) == limit {
			if err := cmd.Process.Kill(); err != nil {
				c.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		c.Fatalf("the child ended by itself: %v\n%s", err, said.String())
	}
	return reports
}

func (c *crash) follow(reports []report) {
	c.gone = map[uint64]bool{}
	for _, r := range reports {
		switch r.what {
		case added:
			c.live[r.seq], c.marks[r.seq] = true, true
			c.high = max(c.high, r.seq)
		case removing:
			c.live[r.seq] = false
		case removed:
			delete(c.live, r.seq)
			c.gone[r.seq] = true
		case forgets:
			c.maybe = r.seq
		case forgotten:
			c.unmarks = r.seq
		}
	}
}

// check compares s with the reports and takes what it finds for what is there now.
func (c *crash) check(s store.Store) {
	c.Helper()
	found, marks := map[uint64]bool{}, map[uint64]bool{}
	states := map[uint64]bool{}
	err := s.Each(func(e store.Entry) error {
		switch e.Kind {
		case store.Message:
			found[e.Seq] = true
			if c.gone[e.Seq] {
				c.Errorf("message %d came back", e.Seq)
			}
			if !bytes.Equal(e.Data, Fill(e.Seq, childSize(e.Seq))) {
				c.Errorf("message %d is not what was stored: %s", e.Seq, brief(e.Data))
			}
		case store.State:
			states[e.Seq] = true
		case store.Mark:
			marks[e.Seq] = true
			if e.Seq <= c.unmarks {
				c.Errorf("mark %d came back", e.Seq)
			}
		}
		return nil
	})
	if err != nil {
		c.Fatalf("Each: %v", err)
	}
	for seq, confirmed := range c.live {
		if confirmed && (!found[seq] || !states[seq]) {
			c.Errorf("message %d is lost: there %v, its state %v", seq, found[seq], states[seq])
		}
	}
	for seq := range c.marks {
		if seq > c.maybe && !marks[seq] {
			c.Errorf("mark %d is lost", seq)
		}
	}
	for seq := range marks {
		_, known := c.live[seq]
		if !known && !found[seq] && !c.gone[seq] && !c.marks[seq] {
			c.Errorf("mark %d is there without the message before it", seq)
		}
	}
	st := s.Stats()
	if st.High < c.high {
		c.Errorf("high is %d after message %d", st.High, c.high)
	}
	if st.LastLost != nil {
		c.Errorf("told as lost: %v", st.LastLost)
	}
	// What was under way may be there without its state: it's live, and the next child
	// makes it whole.
	c.live, c.marks, c.high = found, marks, st.High
	for seq := range found {
		c.live[seq] = states[seq]
	}
}

// childSize returns the size of message seq: mostly small, some of several chunks.
func childSize(seq uint64) int {
	switch {
	case seq%50 == 0:
		return int(seq % 30_000)
	case seq%7 == 0:
		return 0
	}
	return int(seq * 13 % 400)
}

// child works on a store until it is killed.
func child(open func() store.Store) {
	w := &worker{out: bufio.NewWriter(os.NewFile(3, "reports"))}
	if err := w.report(opening, 0); err != nil {
		os.Exit(1)
	}
	w.s = open()
	fmt.Fprintln(os.Stderr, w.work())
	os.Exit(1)
}

type worker struct {
	s    store.Store
	out  *bufio.Writer
	live []uint64
}

func (w *worker) report(what byte, seqs ...uint64) error {
	for _, seq := range seqs {
		b := append(make([]byte, 0, 9), what)
		if _, err := w.out.Write(binary.LittleEndian.AppendUint64(b, seq)); err != nil {
			return err
		}
	}
	return w.out.Flush()
}

func (w *worker) work() error {
	err := w.s.Each(func(e store.Entry) error {
		if e.Kind == store.Message {
			w.live = append(w.live, e.Seq)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for turn := 1; ; turn++ {
		if err := w.add(1 + rand.IntN(8)); err != nil {
			return err
		}
		for len(w.live) > 200 || len(w.live) > 0 && rand.IntN(3) > 0 {
			if err := w.remove(); err != nil {
				return err
			}
		}
		if turn%40 == 0 {
			if err := w.forget(); err != nil {
				return err
			}
		}
	}
}

func (w *worker) add(n int) error {
	high := w.s.Stats().High
	var entries []store.Entry
	var seqs []uint64
	for i := range n {
		seq := high + 1 + uint64(i)
		entries = append(entries,
			store.Entry{Kind: store.Message, Seq: seq, Data: Fill(seq, childSize(seq))},
			store.Entry{Kind: store.State, Seq: seq, Data: []byte("state")}, store.Entry{Kind: store.Mark, Seq: seq, Data: []byte("mark")})
		seqs = append(seqs, seq)
	}
	if _, err := w.s.Append(entries); err != nil {
		return err
	}
	if err := w.s.Sync(); err != nil {
		return err
	}
	w.live = append(w.live, seqs...)
	return w.report(added, seqs...)
}

// remove removes a few, from the front or from anywhere.
func (w *worker) remove() error {
	var seqs []uint64
	for range min(1+rand.IntN(6), len(w.live)) {
		i := 0
		if rand.IntN(3) == 0 {
			i = rand.IntN(len(w.live))
		}
		seqs = append(seqs, w.live[i])
		w.live = append(w.live[:i], w.live[i+1:]...)
	}
	if err := w.report(removing, seqs...); err != nil {
		return err
	}
	if err := w.s.Remove(seqs); err != nil {
		return err
	}
	if err := w.s.Sync(); err != nil {
		return err
	}
	return w.report(removed, seqs...)
}

func (w *worker) forget() error {
	high := w.s.Stats().High
	if high < 100 {
		return nil
	}
	if err := w.report(forgets, high-100); err != nil {
		return err
	}
	if err := w.s.Forget(high - 100); err != nil {
		return err
	}
	if err := w.s.Sync(); err != nil {
		return err
	}
	return w.report(forgotten, high-100)
}
