package store_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// addMessages appends one message to a size and returns the seqs.
func addMessages(t testing.TB, s store.Store, sizes ...int) (seqs []uint64) {
	t.Helper()
	for _, size := range sizes {
		seq := s.Stats().High + 1
		e := store.Entry{Kind: store.Message, Seq: seq, Data: storetest.Fill(seq, size)}
		if n, err := s.Append([]store.Entry{e}); err != nil || n != 1 {
			t.Fatalf("Append of %d bytes: %d, %v", size, n, err)
		}
		seqs = append(seqs, seq)
	}
	return seqs
}

// messages returns the seqs that are there and fails on one with other data.
func messages(t testing.TB, s store.Store) (seqs []uint64) {
	t.Helper()
	err := s.Each(func(e store.Entry) error {
		if e.Kind == store.Message {
			seqs = append(seqs, e.Seq)
			if !bytes.Equal(e.Data, storetest.Fill(e.Seq, len(e.Data))) {
				t.Errorf("message %d is not what was stored", e.Seq)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("Each: %v", err)
	}
	return seqs
}

func rmid(t testing.TB, ids ...int) {
	t.Helper()
	for _, id := range ids {
		if err := store.Msgctl(id, unix.IPC_RMID, nil); err != nil {
			t.Errorf("remove kernel queue %d: %v", id, err)
		}
	}
}

// wantLost fails unless err is a LostError of seqs with an errno inside.
func wantLost(t testing.TB, err error, seqs ...uint64) {
	t.Helper()
	var lost *store.LostError
	if !errors.As(err, &lost) || !errors.Is(err, store.ErrLost) {
		t.Fatalf("%v, want a LostError", err)
	}
	if lost.Messages != len(seqs) || len(lost.Seqs) != len(seqs) {
		t.Fatalf("%v of %v, want %v", lost, lost.Seqs, seqs)
	}
	for i, seq := range seqs {
		if lost.Seqs[i] != seq {
			t.Fatalf("lost %v, want %v", lost.Seqs, seqs)
		}
	}
	if !errors.Is(err, unix.EIDRM) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOMSG) {
		t.Errorf("no errno in %v", err)
	}
}

// TestSysVIpcrm removes kernel queues under the store.
func TestSysVIpcrm(t *testing.T) {
	for _, test := range []struct {
		name string
		call func(t *testing.T, s store.Store) error
		left int
	}{
		{"Append", func(t *testing.T, s store.Store) error {
			n, err := s.Append([]store.Entry{{Kind: store.Message, Seq: 7, Data: storetest.Fill(7, 500)}, {Kind: store.Mark, Seq: 7}})
			if n != 2 {
				t.Errorf("n is %d", n)
			}
			return err
		}, 1},
		{"Append of a chain", func(t *testing.T, s store.Store) error {
			n, err := s.Append([]store.Entry{{Kind: store.Message, Seq: 7, Data: storetest.Fill(7, 50_000)}})
			if n != 1 {
				t.Errorf("n is %d", n)
			}
			return err
		}, 1},
		{"Read", func(t *testing.T, s store.Store) error { _, err := s.Read(nil, 3); return err }, 0},
		{"Each", func(t *testing.T, s store.Store) error { return s.Each(func(store.Entry) error { return nil }) }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			noQueuesLeft(t)
			s := mustOpen(t, t.TempDir(), nil)
			seqs := addMessages(t, s, 100, 8000, 8000, 20_000, 0, 5)
			rmid(t, s.IDs()...)
			wantLost(t, test.call(t, s), seqs...)
			if st := s.Stats(); st.Lost != 6 || st.LastLost == nil || st.Messages != test.left || len(messages(t, s)) != test.left {
				t.Errorf("%+v, want %d messages", st, test.left)
			}
			addMessages(t, s, 10, 20_000)
			if got := messages(t, s); len(got) != test.left+2 {
				t.Errorf("messages %v", got)
			}
		})
	}
	t.Run("Remove", func(t *testing.T) {
		noQueuesLeft(t)
		s := mustOpen(t, t.TempDir(), nil)
		addMessages(t, s, 100, 100, 100)
		rmid(t, s.IDs()...)
		wantLost(t, s.Remove([]uint64{2}), 1, 3)
		if err := s.Remove([]uint64{1, 2, 3}); err != nil {
			t.Error(err)
		}
	})
}

// TestSysVIpcrmOne removes one of several kernel queues: only its messages are lost, the
// rest of their chains does not stay behind.
func TestSysVIpcrmOne(t *testing.T) {
	noQueuesLeft(t)
	for i := range 4 {
		dir := t.TempDir()
		s := mustOpen(t, dir, nil)
		addMessages(t, s, 8000, 20_000, 100, 20_000, 200) // over four segments
		ids := s.IDs()
		if len(ids) != 4 {
			t.Fatalf("%d kernel queues", len(ids))
		}
		rmid(t, ids[i])
		var lost *store.LostError
		for _, seq := range []uint64{1, 2, 3, 4, 5} {
			if _, err := s.Read(nil, seq); err != nil && !errors.As(err, &lost) && !errors.Is(err, store.ErrNotFound) {
				t.Fatal(err)
			}
		}
		if lost == nil {
			t.Fatalf("queue %d: nothing was told", i)
		}
		left := messages(t, s)
		if len(left)+lost.Messages != 5 || s.Stats().Lost != lost.Messages {
			t.Errorf("queue %d: %v left, %v lost", i, left, lost.Seqs)
		}
		records := 0
		for _, id := range s.IDs() {
			var ds store.QueueDS
			if err := store.Msgctl(id, unix.IPC_STAT, &ds); err != nil {
				t.Fatal(err)
			}
			records += ds.Qnum()
		}
		want := 0
		for _, seq := range left {
			want += []int{1, 3, 1, 3, 1}[seq-1]
		}
		if records != want {
			t.Errorf("queue %d: lost %v; %d records left for %v, want %d", i, lost.Seqs, records, left, want)
		}
		s.Abandon()
		s = mustOpen(t, dir, nil)
		if again := messages(t, s); len(again) != len(left) {
			t.Errorf("queue %d: %v left, after another open %v", i, left, again)
		}
	}
}

// TestSysVIpcrmClosed removes kernel queues while no store has them open.
func TestSysVIpcrmClosed(t *testing.T) {
	noQueuesLeft(t)
	for _, clean := range []bool{true, false} {
		dir := t.TempDir()
		s := mustOpen(t, dir, nil)
		addMessages(t, s, 8176, 8176, 100, 100, 100)
		ids := s.IDs()
		want := -1
		if clean {
			want = 2
			s.Close()
		} else {
			s.Abandon()
		}
		rmid(t, ids[0])
		s = mustOpen(t, dir, nil)
		var lost *store.LostError
		if !errors.As(s.Stats().LastLost, &lost) || lost.Messages != want {
			t.Errorf("closed %v: %v, want %d lost", clean, s.Stats().LastLost, want)
		}
		if got := messages(t, s); len(got) != 3 {
			t.Errorf("messages %v", got)
		}
		addMessages(t, s, 8000, 8000)
	}
}

// TestSysVStranger lets somebody else have the key of a segment first.
func TestSysVStranger(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	key, err := store.Ftok(dir+"/q.key", 1)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := store.Msgget(key, unix.IPC_CREAT|unix.IPC_EXCL|0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rmid(t, stranger) })
	if err := store.Msgsnd(stranger, 1, []byte("not yours")); err != nil {
		t.Fatal(err)
	}
	addMessages(t, s, 10, 20_000)
	text, err := os.ReadFile(dir + "/q.key")
	if err != nil || !strings.Contains(string(text), "segment 001 key "+key.String()+" msqid 0000000000 strange") {
		t.Errorf("key file: %v\n%s", err, text)
	}
	s.Abandon()
	if got := claims(t, dir); got[stranger] != store.Orphaned {
		t.Errorf("the stranger's queue of %v is not Orphaned", got)
	}
	s = mustOpen(t, dir, nil)
	if got := messages(t, s); len(got) != 2 {
		t.Errorf("messages %v", got)
	}
	s.Close()
	if err := store.DeleteSysV(dir, "q"); err != nil {
		t.Error(err)
	}
	var ds store.QueueDS
	if err := store.Msgctl(stranger, unix.IPC_STAT, &ds); err != nil || ds.Qnum() != 1 {
		t.Errorf("the stranger's queue: %v, %d messages", err, ds.Qnum())
	}
}

// TestSysVIdGivenOutAgain lets the recorded id be another queue's.
func TestSysVIdGivenOutAgain(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	addMessages(t, s, 10)
	id := s.IDs()[0]
	s.Abandon()
	other, err := store.Msgget(0, unix.IPC_CREAT|0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rmid(t, other) })
	rmid(t, id)
	rewrite(t, dir+"/q.key", paddedID(id), paddedID(other))
	s = mustOpen(t, dir, nil)
	if !errors.Is(s.Stats().LastLost, store.ErrLost) || len(messages(t, s)) != 0 {
		t.Errorf("%+v", s.Stats())
	}
	s.Close()
	if err := store.DeleteSysV(dir, "q"); err != nil {
		t.Error(err)
	}
}

// TestSysVJunk puts records of others between ours, and takes some of ours.
func TestSysVJunk(t *testing.T) {
	noQueuesLeft(t)
	for _, opts := range []*store.SysVOptions{nil, {NoCopy: true}} {
		dir := t.TempDir()
		s := mustOpen(t, dir, opts)
		addMessages(t, s, 10, 20)
		id := s.IDs()[0]
		if err := store.Msgsnd(id, 77, []byte("junk that is longer than a header")); err != nil {
			t.Fatal(err)
		}
		addMessages(t, s, 30, 9000)
		if data, err := s.Read(nil, 3); err != nil || len(data) != 30 {
			t.Errorf("Read behind junk: %d bytes, %v", len(data), err)
		}
		s.Abandon()
		s = mustOpen(t, dir, opts)
		if got := messages(t, s); len(got) != 4 || s.Strange() != 1 {
			t.Errorf("messages %v, %d strange", got, s.Strange())
		}
		if err := s.Remove([]uint64{1, 2, 3, 4}); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 100)
		if n, err := store.Msgrcv(id, buf, 77, 0); err != nil || string(buf[store.MtypeSize:n]) != "junk that is longer than a header" {
			t.Errorf("the junk: %q, %v", buf[:n], err)
		}
	}
}

func TestSysVStolen(t *testing.T) {
	noQueuesLeft(t)
	s := mustOpen(t, t.TempDir(), nil)
	addMessages(t, s, 10, 20, 30)
	buf := make([]byte, 1000)
	if _, err := store.Msgrcv(s.IDs()[0], buf, 2, 0); err != nil {
		t.Fatal(err)
	}
	_, err := s.Read(nil, 2)
	wantLost(t, err, 2)
	if got := messages(t, s); len(got) != 2 {
		t.Errorf("messages %v", got)
	}
	if _, err := store.Msgrcv(s.IDs()[0], buf, 1, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove([]uint64{1}); err != nil {
		t.Errorf("Remove of a stolen one: %v", err)
	}
	if got := messages(t, s); len(got) != 1 {
		t.Errorf("messages %v", got)
	}
}
