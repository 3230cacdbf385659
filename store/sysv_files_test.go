package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
)

func paddedID(id int) string { return fmt.Sprintf("msqid %010d", id) }

// rewrite replaces old by new in a file, in place.
func rewrite(t testing.TB, path, old, new string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(old)) {
		t.Fatalf("no %q in %s", old, text)
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte(old), []byte(new), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSysVReboot opens what was written in another boot, or another IPC namespace.
func TestSysVReboot(t *testing.T) {
	noQueuesLeft(t)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, old, new, why string
		clean               bool
		lost                int
	}{
		{"boot", strings.TrimSpace(string(boot)), "00000000-1111-2222-3333-444444444444", "started again", true, 2},
		{"boot after a crash", strings.TrimSpace(string(boot)), "00000000-1111-2222-3333-444444444444", "started again", false, -1},
		{"namespace", "ipcns 0x0", "ipcns 0x1", "IPC namespace", true, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, dir, nil)
			addMessages(t, s, 10, 20_000)
			if _, err := s.Append([]store.Entry{{Kind: store.Settings, Data: []byte("kept")}, {Kind: store.State, Seq: 1}, {Kind: store.Mark, Seq: 2}}); err != nil {
				t.Fatal(err)
			}
			ids := s.IDs()
			t.Cleanup(func() { rmid(t, ids...) })
			if test.clean {
				s.Close()
			} else {
				s.Abandon()
			}
			rewrite(t, dir+"/q.key", test.old, test.new)
			s = mustOpen(t, dir, nil)
			var lost *store.LostError
			if !errors.As(s.Stats().LastLost, &lost) || lost.Messages != test.lost || !strings.Contains(lost.Error(), test.why) {
				t.Errorf("told: %v", s.Stats().LastLost)
			}
			if st := s.Stats(); st.Messages != 0 || st.Marks != 0 || st.High < 2 {
				t.Errorf("%+v", st)
			}
			var got []string
			_ = s.Each(func(e store.Entry) error { got = append(got, string(e.Data)); return nil })
			if len(got) != 1 || got[0] != "kept" {
				t.Errorf("entries %q, want the settings", got)
			}
			claimed := claims(t, dir)
			for _, id := range ids {
				if claimed[id] != store.Orphaned {
					t.Errorf("queue %d of %v is not Orphaned", id, claimed)
				}
			}
			seqs := addMessages(t, s, 5, 6)
			s.Close()
			s = mustOpen(t, dir, nil)
			if got := messages(t, s); len(got) != 2 || got[0] != seqs[0] || s.Stats().LastLost != nil {
				t.Errorf("messages %v, lost %v", got, s.Stats().LastLost)
			}
		})
	}
}

func TestSysVInUse(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	if _, err := store.OpenSysV(dir, "q", nil); !errors.Is(err, store.ErrInUse) {
		t.Errorf("second open: %v", err)
	}
	if err := store.DeleteSysV(dir, "q"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("Delete of an open one: %v", err)
	}
	addMessages(t, s, 1, 2, 3)
	ids := s.IDs()
	s.Close()
	if err := store.DeleteSysV(dir, "q"); err != nil {
		t.Error(err)
	}
	var ds store.QueueDS
	if err := store.Msgctl(ids[0], unix.IPC_STAT, &ds); err == nil {
		t.Error("the kernel queue is there after Delete")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("files left: %v", left)
	}
	if err := store.DeleteSysV(dir, "q"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Delete of none: %v", err)
	}
}

func TestSysVNames(t *testing.T) {
	noQueuesLeft(t)
	for _, name := range []string{"", ".", "..", ".x", "a/b", "a\x00b", "a\nb", strings.Repeat("x", 201)} {
		if _, err := store.OpenSysV(t.TempDir(), name, nil); !errors.Is(err, store.ErrBadName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"a", "with space", "100%d %s", "héé", strings.Repeat("x", 200)} {
		dir := t.TempDir()
		for range 2 {
			s, err := store.OpenSysV(dir, name, nil)
			if err != nil {
				t.Fatalf("%q: %v", name, err)
			}
			addMessages(t, s, 3)
			s.Abandon()
		}
		if err := store.DeleteSysV(dir, name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := store.OpenSysV(t.TempDir()+"/none", "q", nil); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no directory: %v", err)
	}
}

// TestSysVCopiedKeyFile copies a key file whose kernel queues are in use by the original.
func TestSysVCopiedKeyFile(t *testing.T) {
	noQueuesLeft(t)
	dir, other := t.TempDir(), t.TempDir()
	s := mustOpen(t, dir, nil)
	addMessages(t, s, 1)
	text, err := os.ReadFile(dir + "/q.key")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other+"/q.key", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.OpenSysV(other, "q", nil); !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), "copy") {
		t.Errorf("open of a copy: %v", err)
	}
	if got := messages(t, s); len(got) != 1 {
		t.Errorf("messages %v", got)
	}
}

func TestSysVDamagedKeyFile(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	addMessages(t, s, 1)
	s.Close()
	rewrite(t, dir+"/q.key", "segment 001", "segment 0x1")
	if _, err := store.OpenSysV(dir, "q", nil); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("open: %v", err)
	}
	rewrite(t, dir+"/q.key", "segment 0x1", "segment 001")
	mustOpen(t, dir, nil)
}

// TestSysVLog cuts and damages the log of states, marks and settings.
func TestSysVLog(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	for seq := uint64(1); seq <= 20; seq++ {
		if _, err := s.Append([]store.Entry{{Kind: store.Mark, Seq: seq, Data: []byte("some id")}}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	whole, err := os.ReadFile(dir + "/q.log")
	if err != nil {
		t.Fatal(err)
	}
	const magic, record = 16, 17 + 7
	for size := range whole {
		if err := os.WriteFile(dir+"/q.log", whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, dir, nil)
		if st := s.Stats(); st.LastLost != nil || st.Marks != max(size-magic, 0)/record {
			t.Fatalf("cut at %d: %+v", size, st)
		}
		s.Close()
	}
	for _, at := range []int{0, 16, 100, len(whole) - 1} {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x10
		if err := os.WriteFile(dir+"/q.log", bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, dir, nil)
		if st := s.Stats(); !errors.Is(st.LastLost, store.ErrDamaged) || st.Marks != max(at-magic, 0)/record {
			t.Fatalf("damaged at %d: %+v", at, st)
		}
		s.Close()
		if kept, err := os.ReadFile(dir + "/q.log.bad"); err != nil || !bytes.Equal(kept, bad) {
			t.Errorf("damaged at %d: the log was not kept: %v", at, err)
		}
	}
}

// TestSysVLogStaysSmall replaces states and marks for long.
func TestSysVLogStaysSmall(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	addMessages(t, s, 10)
	data := make([]byte, 100)
	for i := uint64(1); i <= 20_000; i++ {
		if _, err := s.Append([]store.Entry{{Kind: store.State, Seq: 1, Data: data}, {Kind: store.Mark, Seq: i, Data: data}}); err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			if err := s.Forget(i - 50); err != nil {
				t.Fatal(err)
			}
		}
	}
	st, err := os.Stat(dir + "/q.log")
	if err != nil || st.Size() > 300_000 {
		t.Errorf("the log has %d bytes: %v", st.Size(), err)
	}
	s.Abandon()
	s = mustOpen(t, dir, nil)
	if got := s.Stats(); got.Marks != 50 || got.Messages != 1 {
		t.Errorf("%+v", got)
	}
}

// TestSysVHighAfterKill removes the newest message and dies: its seq is not given again.
func TestSysVHighAfterKill(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	for range 3 {
		s := mustOpen(t, dir, nil)
		seqs := addMessages(t, s, 1, 2, 20_000)
		if err := s.Remove(seqs[1:]); err != nil {
			t.Fatal(err)
		}
		s.Abandon()
		s = mustOpen(t, dir, nil)
		if high := s.Stats().High; high < seqs[2] {
			t.Errorf("high %d after message %d", high, seqs[2])
		}
		s.Close()
	}
}

// TestSysVDeleteMaking deletes a queue whose maker was killed between msgget(2) and the record of
// what it made. A queue that somebody used meanwhile stays.
func TestSysVDeleteMaking(t *testing.T) {
	for _, used := range []bool{false, true} {
		noQueuesLeft(t)
		dir := t.TempDir()
		opts := &store.SysVOptions{}
		var s *store.SysV
		killed := errors.New("killed")
		opts.SetHook(func(step string) {
			if step == "made" {
				s.Abandon()
				panic(killed)
			}
		})
		s = mustOpen(t, dir, opts)
		func() {
			defer func() {
				if r := recover(); r != killed {
					t.Fatal(r)
				}
			}()
			addMessages(t, s, 10)
		}()
		key, err := store.Ftok(dir+"/q.key", 1)
		if err != nil {
			t.Fatal(err)
		}
		id, err := store.Msgget(key, 0)
		if err != nil {
			t.Fatal(err)
		}
		if used {
			if err := store.Msgsnd(id, 1, []byte("not yours")); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { rmid(t, id) })
		}
		if err := store.DeleteSysV(dir, "q"); err != nil {
			t.Error(err)
		}
		if _, err := store.Msgget(key, 0); (err == nil) != used {
			t.Errorf("used %v: the kernel queue after Delete: %v", used, err)
		}
	}
}
