package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
)

// oldQueue returns a kernel queue as an old program has it, and the file and project id of its
// key. It is removed at the end.
func oldQueue(t testing.TB) (q *store.Foreign, path string, proj int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "old.conf")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for proj = 1; proj < 255; proj++ {
		key, err := store.Ftok(path, proj)
		if err != nil {
			t.Fatal(err)
		}
		q, made, err := store.MakeForeign(key, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if !made { // another program's file has these keys
			continue
		}
		t.Cleanup(func() {
			if err := q.Remove(); err != nil && !errors.Is(err, store.ErrRemoved) {
				t.Error(err)
			}
		})
		return q, path, proj
	}
	t.Fatal("no free key")
	return nil, "", 0
}

// sendOld sends messages of these types; each body says its place, and some are the same.
func sendOld(t testing.TB, q *store.Foreign, types ...int64) (sent []string) {
	t.Helper()
	for i, mtype := range types {
		body := bytes.Repeat([]byte{'a' + byte(i%7)}, []int{0, 1, 100, 300, 1, 2000, 3}[i%7])
		if err := q.Send(store.NewRecord(mtype, body)); err != nil {
			t.Fatal(err)
		}
		sent = append(sent, fmt.Sprintf("%d %s", mtype, body))
	}
	return sent
}

// sink is a destination that takes a message of one id once, as a queue does.
type sink struct {
	ids      map[string]bool
	took     []string // "TYPE BODY", in order
	again    int      // messages that came a second time
	guessed  int
	refuse   error
	refuseAt int // how many it takes before
}

func (s *sink) name() string { return "queue test" }

func (s *sink) deliver(_ context.Context, batch []parcel, kept func(i int)) error {
	for i, p := range batch {
		if s.refuse != nil && len(s.took) >= s.refuseAt {
			return s.refuse
		}
		if s.ids == nil {
			s.ids = make(map[string]bool)
		}
		if len(p.id) > 128 {
			return fmt.Errorf("id %q is too long", p.id)
		}
		if s.ids[p.id] {
			s.again++
		} else {
			s.ids[p.id] = true
			s.took = append(s.took, fmt.Sprintf("%d %s", p.mtype, p.body))
		}
		if p.guessed {
			s.guessed++
		}
		kept(i)
	}
	return nil
}

// check compares what it took with what was sent. A guessed length may be too short.
func (s *sink) check(t testing.TB, sent []string) {
	t.Helper()
	bad := len(s.took) != len(sent)
	short := 0
	for i := 0; !bad && i < len(sent); i++ {
		if s.took[i] != sent[i] {
			short++
			bad = !strings.HasPrefix(sent[i], s.took[i]) || short > s.guessed
		}
	}
	if bad {
		t.Errorf("took %d messages, %.80q, want %d: %.80q", len(s.took), s.took, len(sent), sent)
	}
}

// killed is what a hook panics with, in place of SIGKILL.
type killed struct{ step string }

// abandon lets go of the journal as a kill does.
func (j *importJournal) abandon() {
	unix.Munmap(j.mem)
	j.f.Close()
}

// importOnce imports all there is as one process, or until hook panics; then it returns the step.
func importOnce(t testing.TB, dir string, q *store.Foreign, to destination, take bool, hook func(step string)) (step string, im *importer, err error) {
	t.Helper()
	j, err := openJournal(filepath.Join(dir, "journal"), true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if k, ok := recover().(killed); ok {
			step = k.step
			j.abandon()
		} else if cerr := j.close(); cerr != nil {
			t.Error(cerr)
		}
	}()
	im = &importer{source: q, journal: j, to: to, take: take, guess: firstGuess, step: hook}
	if err = im.resume(t.Context()); err != nil {
		return "", im, err
	}
	for {
		if n, err := im.batch(t.Context(), 5); n == 0 || err != nil {
			return "", im, err
		}
	}
}

// oldTypes are those of the messages in the tests of kills: more than a batch.
var oldTypes = []int64{1, 2, 1, 1, 7, 1, 1 << 50, 3, 3, 3, 3, 3}

// An import is killed at each of its steps in turn, and the one after it goes on: every message
// arrives once, in order.
func TestSysVImportKilledAtEachStep(t *testing.T) {
	for _, take := range []bool{false, true} {
		t.Run(fmt.Sprintf("take=%v", take), func(t *testing.T) {
			seen := make(map[string]int)
			for at := 1; ; at++ {
				dir := t.TempDir()
				q, _, _ := oldQueue(t)
				var to sink
				sent := sendOld(t, q, oldTypes...)
				steps := 0
				step, _, err := importOnce(t, dir, q, &to, take, func(step string) {
					if steps++; steps == at {
						panic(killed{step})
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				seen[step]++
				if step != "" {
					sent = append(sent, sendOld(t, q, 9, 1)...) // the old program goes on
					if _, _, err := importOnce(t, dir, q, &to, take, nil); err != nil {
						t.Fatalf("after a kill at %q: %v", step, err)
					}
				}
				to.check(t, sent)
				leftovers(t, q, dir)
				if step == "" || t.Failed() {
					break
				}
			}
			t.Logf("killed at %v", seen)
		})
	}
}

// leftovers checks that the kernel queue is empty and the journal gone.
func leftovers(t testing.TB, q *store.Foreign, dir string) {
	t.Helper()
	if st, err := q.Stat(); err != nil || st.Messages != 0 {
		t.Errorf("the kernel queue has %d messages left, %v", st.Messages, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the journal stays behind: %v, %v", entries, err)
	}
}

// Imports are killed again and again, at random steps, some by MSG_COPY and some without.
func TestSysVImportKilledAgain(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		q, _, _ := oldQueue(t)
		var to sink
		var sent []string
		for kill := range 12 {
			sent = append(sent, sendOld(t, q, oldTypes[:r.IntN(6)]...)...)
			left := 1 + r.IntN(20)
			_, _, err := importOnce(t, dir, q, &to, r.IntN(2) == 0, func(step string) {
				if left--; left == 0 && kill < 11 {
					panic(killed{step})
				}
			})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		to.check(t, sent)
		leftovers(t, q, dir)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// Another program receives from the queue while a batch is on the way.
func TestSysVImportOtherReader(t *testing.T) {
	for _, test := range []struct {
		name  string
		types []int64
		other func(t *testing.T, q *store.Foreign) // once the batch is kept
		took  []string                             // what the destination has beyond the batch
		left  int
	}{
		{"takes the first", []int64{1, 1, 1, 1}, func(t *testing.T, q *store.Foreign) { receiveOld(t, q, 0) }, nil, 0},
		{"takes the last", []int64{1, 2, 3, 4}, func(t *testing.T, q *store.Foreign) { receiveOld(t, q, 4) }, nil, 0},
		{"takes all", []int64{1, 2, 3, 4}, func(t *testing.T, q *store.Foreign) {
			for range 4 {
				receiveOld(t, q, 0)
			}
		}, nil, 0},
		{"takes one, and a longer one comes", []int64{5, 5}, func(t *testing.T, q *store.Foreign) {
			receiveOld(t, q, 0)
			if err := q.Send(store.NewRecord(5, []byte("longer"))); err != nil {
				t.Fatal(err)
			}
		}, nil, 1},
		{"takes one, and a shorter one comes", []int64{8, 8, 5}, func(t *testing.T, q *store.Foreign) {
			receiveOld(t, q, 5)
			if err := q.Send(store.NewRecord(5, []byte("new"))); err != nil {
				t.Fatal(err)
			}
		}, []string{"5 new"}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			q, _, _ := oldQueue(t)
			var to sink
			sent := sendOld(t, q, test.types...)
			done := false
			_, im, err := importOnce(t, t.TempDir(), q, &to, false, func(step string) {
				if step == "kept" && !done {
					done = true
					test.other(t, q)
				}
			})
			if !errors.Is(err, errOtherReader) || im.journal == nil {
				t.Fatalf("%v", err)
			}
			to.check(t, append(sent, test.took...))
			if st, err := q.Stat(); err != nil || st.Messages != test.left {
				t.Errorf("%d messages left, %v; want %d", st.Messages, err, test.left)
			}
		})
	}
}

func receiveOld(t *testing.T, q *store.Foreign, mtype int64) {
	t.Helper()
	if _, err := q.Receive(make(store.Record, 9000), mtype); err != nil {
		t.Fatal(err)
	}
}

func TestSysVImportRefused(t *testing.T) {
	for _, take := range []bool{false, true} {
		dir := t.TempDir()
		q, _, _ := oldQueue(t)
		refusal := errors.New("no")
		to := sink{refuse: refusal, refuseAt: 3}
		sent := sendOld(t, q, oldTypes...)
		if _, _, err := importOnce(t, dir, q, &to, take, nil); !errors.Is(err, refusal) {
			t.Fatal(err)
		}
		to.check(t, sent[:3])
		if st, err := q.Stat(); err != nil || !take && st.Messages != len(sent) {
			t.Errorf("%d messages are left of %d, %v", st.Messages, len(sent), err)
		}
		to.refuse = nil
		_, im, err := importOnce(t, dir, q, &to, take, nil)
		if err != nil || im.resumed != 5 || im.imported != len(sent) || to.again != 0 {
			t.Errorf("resumed %d, imported %d, pushed %d again, %v", im.resumed, im.imported, to.again, err)
		}
		to.check(t, sent)
		leftovers(t, q, dir)
	}
}

// The queue is removed, or another one has come in its place, with a batch on the way.
func TestSysVImportQueueGone(t *testing.T) {
	for _, take := range []bool{false, true} {
		dir := t.TempDir()
		q, _, _ := oldQueue(t)
		other, _, _ := oldQueue(t)
		to := sink{refuse: errors.New("no"), refuseAt: 2}
		sent := sendOld(t, q, oldTypes[:5]...)
		if _, _, err := importOnce(t, dir, q, &to, take, nil); err == nil {
			t.Fatal("not refused")
		}
		if err := q.Remove(); err != nil {
			t.Fatal(err)
		}
		to.refuse = nil
		sent = append(sent, sendOld(t, other, 4, 4)...)
		if _, _, err := importOnce(t, dir, other, &to, take, nil); err != nil {
			t.Fatal(err)
		}
		to.check(t, sent)
		leftovers(t, other, dir)
	}
}

type renamed struct{ sink }

func (*renamed) name() string { return "queue another" }

func TestSysVImportElsewhere(t *testing.T) {
	dir := t.TempDir()
	q, _, _ := oldQueue(t)
	sendOld(t, q, 1, 1)
	if _, _, err := importOnce(t, dir, q, &sink{refuse: errors.New("no")}, false, nil); err == nil {
		t.Fatal("not refused")
	}
	_, _, err := importOnce(t, dir, q, &renamed{}, false, nil)
	if err == nil || !strings.Contains(err.Error(), "into queue test was cut short with 2 messages on the way") {
		t.Errorf("into another queue: %v", err)
	}
}

// A message longer than the journal, and one whose length is found by doubling.
func TestSysVJournalGrows(t *testing.T) {
	j, err := openJournal(filepath.Join(t.TempDir(), "journal"), true)
	if err != nil {
		t.Fatal(err)
	}
	defer j.abandon()
	j.limit = importBatch
	j.begin(7, "queue q", false)
	buf, err := j.room(3 * journalSize)
	if err != nil || len(buf.Body()) != 3*journalSize {
		t.Fatalf("room for %d bytes: %d, %v", 3*journalSize, len(buf), err)
	}
	copy(buf, store.NewRecord(3, bytes.Repeat([]byte("x"), 3*journalSize)))
	j.add(3 * journalSize)
	if buf, err := j.room(1 << 20); buf != nil || err != nil {
		t.Errorf("a second one: %d bytes, %v", len(buf), err)
	}
	if e := j.entry(0); j.entries() != 1 || e.mtype() != 3 || e.size() != 3*journalSize || !e.same(e.buffer()) || j.destination() != "queue q" || !j.from(7) || j.from(8) {
		t.Errorf("the entry is not what was added: %d entries", j.entries())
	}
}

func TestSysVJournalLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	if j, err := openJournal(path, false); j != nil || err != nil {
		t.Errorf("none there: %v, %v", j, err)
	}
	j, err := openJournal(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(path, true); err == nil || !errors.Is(err, unix.EWOULDBLOCK) || !strings.Contains(err.Error(), "another postbus sysv import") {
		t.Errorf("a second one: %v", err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	// One that was killed while it made the file.
	if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err = openJournal(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
}

// A journal that was scribbled on is refused, not followed.
func TestSysVJournalDamaged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	q, _, _ := oldQueue(t)
	sendOld(t, q, 1, 2, 3)
	if _, _, err := importOnce(t, dir, q, &sink{refuse: errors.New("no")}, true, nil); err == nil {
		t.Fatal("not refused")
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{journalEntries, journalEntries + 7, journalEntries + 40, journalEntries + entryHeader, journalEntries + 80 + 88 + 80 + 5, 48} {
		bad := slices.Clone(whole)
		bad[at] ^= 0x55
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(path, true)
		if err == nil {
			im := &importer{source: q, journal: j, to: &sink{}, take: true, guess: firstGuess}
			err = im.resume(t.Context())
			j.abandon()
		}
		if err == nil || !strings.Contains(err.Error(), "not what was written") {
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

// removeKernelQueues removes what a script has left in dir: the kernel queues of its
// brokers' key files, and that of a file app.conf with project id A.
func removeKernelQueues(dir string) {
	all, err := store.HostQueues()
	if err != nil {
		return
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		var files []store.SysVKeyFile
		if d.IsDir() {
			files, _ = store.SysVKeyFiles(path)
		}
		old, err := store.Ftok(path, 'A')
		for i := range all {
			mine := d.Name() == "app.conf" && err == nil && all[i].Key == old
			for k := range files {
				_, claim := files[k].Claim(&all[i])
				mine = mine || claim == store.Owned
			}
			if q, err := store.OpenForeignID(all[i].ID); mine && err == nil {
				q.Remove()
			}
		}
		return nil
	})
}
