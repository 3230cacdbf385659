package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
)

// freshKey returns the key of a file made for the test, which no queue has.
func freshKey(t testing.TB) store.Key {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for proj := 1; proj < 255; proj++ {
		key, err := store.Ftok(path, proj)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.OpenForeign(key); errors.Is(err, store.ErrNotFound) {
			return key
		}
	}
	t.Fatal("no free key")
	return 0
}

// foreign returns a queue as another program has made it, removed at the end.
func foreign(t testing.TB) *store.Foreign {
	t.Helper()
	f, made, err := store.MakeForeign(freshKey(t), 0o600)
	if err != nil || !made {
		t.Fatalf("MakeForeign: %v, made %v", err, made)
	}
	t.Cleanup(func() {
		if err := f.Remove(); err != nil && !errors.Is(err, store.ErrRemoved) {
			t.Error(err)
		}
		all, err := store.HostQueues()
		if err != nil || slices.ContainsFunc(all, func(q store.HostQueue) bool { return q.ID == f.ID() }) {
			t.Errorf("the queue stays behind: %v", err)
		}
	})
	return f
}

func sendAll(t testing.TB, f *store.Foreign, records ...store.Record) {
	t.Helper()
	for _, r := range records {
		if err := f.Send(r); err != nil {
			t.Fatalf("Send of type %d: %v", r.Type(), err)
		}
	}
}

func wantRecord(t testing.TB, r store.Record, err error, mtype int64, body string) {
	t.Helper()
	if err != nil || r.Type() != mtype || string(r.Body()) != body {
		t.Errorf("%q, %v, want type %d, %q", r, err, mtype, body)
	}
}

func TestForeign(t *testing.T) {
	f := foreign(t)
	sendAll(t, f, store.NewRecord(7, []byte("one")), store.NewRecord(1<<40, nil), store.NewRecord(7, []byte("three")))
	byKey, err := store.OpenForeign(f.Key())
	if err != nil || byKey.ID() != f.ID() {
		t.Fatalf("OpenForeign: %v, %v", byKey, err)
	}
	byID, err := store.OpenForeignID(f.ID())
	if err != nil || byID.Key() != f.Key() {
		t.Fatalf("OpenForeignID: %v, %v", byID, err)
	}
	if again, made, err := store.MakeForeign(f.Key(), 0o600); err != nil || made || again.ID() != f.ID() {
		t.Errorf("MakeForeign of one that is there: %v, made %v, %v", again, made, err)
	}
	buf := make(store.Record, 64)
	r, err := byKey.Copy(buf, 0)
	wantRecord(t, r, err, 7, "one")
	r, err = byKey.Copy(buf, 1)
	wantRecord(t, r, err, 1<<40, "")
	if _, err := byKey.Copy(buf, 3); !errors.Is(err, store.ErrEmpty) {
		t.Errorf("Copy past the end: %v", err)
	}
	q, err := byID.Stat()
	if err != nil || q.Messages != 3 || q.Bytes != 8 || q.LastSender != os.Getpid() || q.LastReceiver != 0 ||
		!q.Received.IsZero() || q.Sent.IsZero() || q.Mode != 0o600 || q.UID != os.Getuid() || q.Limit < 8 {
		t.Errorf("Stat: %+v, %v", q, err)
	}
	r, err = byKey.Receive(buf, 1<<40)
	wantRecord(t, r, err, 1<<40, "")
	r, err = byKey.Receive(buf, 0)
	wantRecord(t, r, err, 7, "one")
	if _, err := byKey.Receive(buf, 6); !errors.Is(err, store.ErrEmpty) {
		t.Errorf("Receive of a type that is not there: %v", err)
	}
	r, err = byKey.Receive(buf, 7)
	wantRecord(t, r, err, 7, "three")
}

// TestForeignErrors checks the kind, the errno and the words of each error.
func TestForeignErrors(t *testing.T) {
	f := foreign(t)
	removed := foreign(t)
	if err := removed.Remove(); err != nil {
		t.Fatal(err)
	}
	buf := make(store.Record, store.TypeSize+3)
	full := func() error {
		for {
			if err := f.Send(store.NewRecord(1, make([]byte, 4000))); err != nil {
				return err
			}
		}
	}
	open := func(key store.Key) error { _, err := store.OpenForeign(key); return err }
	receive := func(f *store.Foreign, mtype int64) error { _, err := f.Receive(buf, mtype); return err }
	for _, test := range []struct {
		name  string
		err   error
		kind  error
		errno error
		words string
	}{
		{"full", full(), store.ErrFull, unix.EAGAIN, "is full: 4 messages of 16000 bytes, of at most 16384 of either (msg_qbytes)"},
		{"above msgmax", f.Send(store.NewRecord(1, make([]byte, 1<<20))), store.ErrTooLarge, unix.EINVAL, "sysctl -w kernel.msgmax=1048576"},
		{"type 0", f.Send(store.NewRecord(0, nil)), store.ErrBadEntry, unix.EINVAL, "types are from 1 to"},
		{"negative type", receive(f, -3), store.ErrBadEntry, nil, "types are above 0"},
		{"longer than the buffer", receive(f, 0), store.ErrTooLarge, unix.E2BIG, "longer than the 3 bytes"},
		{"send to a removed one", removed.Send(store.NewRecord(1, nil)), store.ErrRemoved, unix.EINVAL, "somebody removed it (ipcrm"},
		{"receive from a removed one", receive(removed, 0), store.ErrRemoved, unix.EINVAL, "somebody removed it"},
		{"remove a removed one", removed.Remove(), store.ErrRemoved, unix.EINVAL, "somebody removed it"},
		{"no such key", open(freshKey(t)), store.ErrNotFound, unix.ENOENT, "ipcs -q"},
		{"key 0", open(0), store.ErrBadName, nil, "IPC_PRIVATE"},
		{"key -1", open(-1), store.ErrBadName, nil, "where it failed"},
		{"no such id", func() error { _, err := store.OpenForeignID(removed.ID()); return err }(), store.ErrNotFound, unix.EINVAL, "no kernel queue with id"},
	} {
		if !errors.Is(test.err, test.kind) || test.errno != nil && !errors.Is(test.err, test.errno) || !strings.Contains(test.err.Error(), test.words) {
			t.Errorf("%s: %v", test.name, test.err)
		}
	}
	q, err := f.Stat()
	if err != nil || q.Messages != 4 {
		t.Errorf("%d messages, %v: one was taken by a call that failed", q.Messages, err)
	}
}

// TestForeignSmallQueue sends what would fit kernel.msgmax but never this queue.
func TestForeignSmallQueue(t *testing.T) {
	f := foreign(t)
	var ds store.QueueDS
	if err := store.Msgctl(f.ID(), unix.IPC_STAT, &ds); err != nil {
		t.Fatal(err)
	}
	ds.SetLimit(100)
	if err := store.Msgctl(f.ID(), unix.IPC_SET, &ds); err != nil {
		t.Fatal(err)
	}
	sendAll(t, f, store.NewRecord(1, make([]byte, 100)))
	if err := f.Send(store.NewRecord(1, make([]byte, 1))); !errors.Is(err, store.ErrFull) {
		t.Errorf("a full one: %v", err)
	}
	if err := f.Send(store.NewRecord(1, make([]byte, 101))); !errors.Is(err, store.ErrTooLarge) || !strings.Contains(err.Error(), "the 100 bytes") {
		t.Errorf("one that never fits: %v", err)
	}
}

func TestRecordOurs(t *testing.T) {
	ours := store.Record(store.EncodeChunk(7, 0, 1, []byte("body")))
	if !ours.Ours() {
		t.Error("one of ours is not")
	}
	for _, r := range []store.Record{ours[:len(ours)-1], append(slices.Clone(ours), 0), store.NewRecord(7, []byte("body")), store.NewRecord(7, nil)} {
		if r.Ours() {
			t.Errorf("%q is one of ours", r)
		}
	}
}

func TestHostQueues(t *testing.T) {
	f := foreign(t)
	sendAll(t, f, store.NewRecord(1, []byte("12345")))
	all, err := store.HostQueues()
	if err != nil {
		t.Fatal(err)
	}
	want, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	want.Limit = 0
	if i := slices.IndexFunc(all, func(q store.HostQueue) bool { return q.ID == f.ID() }); i < 0 || all[i] != want {
		t.Errorf("%+v is not in %+v", want, all)
	}
}
