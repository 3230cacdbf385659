package store_test

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// keyFile reads dir's only key file.
func keyFile(t *testing.T, dir string) *store.SysVKeyFile {
	t.Helper()
	all, err := store.SysVKeyFiles(dir)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d key files, %v", len(all), err)
	}
	return &all[0]
}

// claims returns what each kernel queue that is not Unrelated is to dir's key file.
func claims(t *testing.T, dir string) map[int]store.Claim {
	t.Helper()
	all, err := store.HostQueues()
	if err != nil {
		t.Fatal(err)
	}
	k := keyFile(t, dir)
	found := make(map[int]store.Claim)
	for i := range all {
		if _, c := k.Claim(&all[i]); c != store.Unrelated {
			found[all[i].ID] = c
		}
	}
	return found
}

func TestSysVKeyFiles(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	addMessages(t, s, 8000, 8000, 8000)
	k := keyFile(t, dir)
	if k.Name != "q" || k.UID != os.Getuid() || !k.ThisHost || len(k.Segments()) != 2 || k.Messages != -1 || k.High < 3 {
		t.Errorf("%+v", k)
	}
	got := claims(t, dir)
	for i, id := range s.IDs() {
		if k.Segments()[i+1] != id {
			t.Errorf("segments %v, ids %v", k.Segments(), s.IDs())
		}
		if got[id] != store.Owned {
			t.Errorf("queue %d of %v is not Owned", id, got)
		}
	}
	if len(got) != 2 {
		t.Errorf("claims %v, of ours are %v", got, s.IDs())
	}
	if err := os.WriteFile(dir+"/bad.key", []byte("scribble"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := store.SysVKeyFiles(dir)
	if len(all) != 1 || !errors.Is(err, store.ErrDamaged) {
		t.Errorf("with a damaged one: %d, %v", len(all), err)
	}
	if _, err := store.SysVKeyFiles(dir + "/no"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no such directory: %v", err)
	}
}

// sentByAnother makes records in a queue of dir's segment number by a process that has ended.
func sentByAnother(t *testing.T, dir string, number int, records ...string) *store.HostQueue {
	t.Helper()
	key, err := store.Ftok(dir+"/q.key", number)
	if err != nil {
		t.Fatal(err)
	}
	f, made, err := store.MakeForeign(key, 0o600)
	if err != nil || !made {
		t.Fatalf("MakeForeign: %v, made %v", err, made)
	}
	t.Cleanup(func() {
		if err := f.Remove(); err != nil && !errors.Is(err, store.ErrRemoved) {
			t.Error(err)
		}
	})
	cmd := exec.Command(os.Args[0], append([]string{"-test.run=^TestChildSends$", "-test.v", "--", strconv.Itoa(f.ID())}, records...)...)
	cmd.Env = append(os.Environ(), "POSTBUS_TEST_SEND=1", noExitDelay())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	q, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &q
}

// TestChildSends sends, for sentByAnother, a record for each argument: a number is the seq of one of ours.
func TestChildSends(t *testing.T) {
	if os.Getenv("POSTBUS_TEST_SEND") == "" {
		t.Skip("the child of another test")
	}
	args := os.Args[len(os.Args)-1:]
	for i, arg := range os.Args {
		if arg == "--" {
			args = os.Args[i+1:]
		}
	}
	id, err := strconv.Atoi(args[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, arg := range args[1:] {
		record := store.NewRecord(1, []byte(arg))
		if seq, err := strconv.ParseUint(arg, 10, 64); err == nil {
			record = store.EncodeChunk(seq, 0, 1, storetest.Fill(seq, 20))
		}
		if err := store.MsgsndRaw(id, record); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRemoveSysVOrphan(t *testing.T) {
	noQueuesLeft(t)
	for _, test := range []struct {
		name    string
		records []string
		doubt   string // "": removed
	}{
		{"ours", []string{"1", "2", "3"}, ""},
		{"empty", nil, "it is empty"},
		{"of another program", []string{"hello"}, "place 0 of it is not a record"},
		{"mixed", []string{"1", "hello"}, "place 1 of it is not a record"},
		{"a seq never used", []string{"1", "9000000"}, "place 1 of it is not a record"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, dir, nil)
			addMessages(t, s, 10)
			q := sentByAnother(t, dir, 7, test.records...)
			if got := claims(t, dir); got[q.ID] != store.Orphaned || got[s.IDs()[0]] != store.Owned {
				t.Errorf("claims %v of orphan %d and %v", got, q.ID, s.IDs())
			}
			n, err := store.RemoveSysVOrphan(dir, "q", q)
			if test.doubt == "" {
				if err != nil || n != len(test.records) || claims(t, dir)[q.ID] != 0 {
					t.Errorf("%d records, %v", n, err)
				}
				return
			}
			if !errors.Is(err, store.ErrNotAllowed) || !strings.Contains(err.Error(), test.doubt) || !strings.Contains(err.Error(), "ipcrm -q "+strconv.Itoa(q.ID)) {
				t.Errorf("%v, want %q", err, test.doubt)
			}
			if claims(t, dir)[q.ID] != store.Orphaned {
				t.Error("it was removed")
			}
		})
	}
}

// TestRemoveSysVOrphanOwned refuses what is a queue's, or some running program's.
func TestRemoveSysVOrphanOwned(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	addMessages(t, s, 10)
	owned, err := store.OpenForeignID(s.IDs()[0])
	if err != nil {
		t.Fatal(err)
	}
	q, err := owned.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.RemoveSysVOrphan(dir, "q", &q); !errors.Is(err, store.ErrNotAllowed) || !strings.Contains(err.Error(), "it is queue q's") {
		t.Errorf("an owned one: %v", err)
	}
	other := sentByAnother(t, dir, 9, "1")
	if err := store.MsgsndRaw(other.ID, store.EncodeChunk(1, 0, 1, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := store.RemoveSysVOrphan(dir, "q", other); !errors.Is(err, store.ErrNotAllowed) || !strings.Contains(err.Error(), "which sent to it last, is running") {
		t.Errorf("one of a running program: %v", err)
	}
	unrelated := foreign(t)
	if q, err = unrelated.Stat(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.RemoveSysVOrphan(dir, "q", &q); !errors.Is(err, store.ErrNotAllowed) {
		t.Errorf("one with another key: %v", err)
	}
	if got := messages(t, s); len(got) != 1 {
		t.Errorf("messages %v", got)
	}
}
