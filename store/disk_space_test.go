package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// tmpfsMiB is the size of the tmpfs that is filled.
var tmpfsMiB = storetest.Scale(4, 2, 1)

// onTmpfs runs the calling test again in a process of its own, that has a tmpfs of a
// few megabytes nobody else sees. It returns its directory there, and "" outside.
func onTmpfs(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("POSTBUS_TMPFS"); dir != "" {
		// What is mounted here must not show outside (mount_namespaces(7)).
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", tmpfsMiB)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "POSTBUS_TMPFS="+t.TempDir(), noExitDelay())
	cmd.SysProcAttr = newNamespace(syscall.CLONE_NEWNS)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("no mount namespace to be had: %v", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return ""
}

// A full disk: refused in words, nothing lost, acks still taken, open and close too, and
// all is well again when space comes back.
func TestDiskNoSpace(t *testing.T) {
	dir := onTmpfs(t)
	if dir == "" {
		return
	}
	must(t, os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, tmpfsMiB<<18), 0o600))
	d := openDisk(t, dir, small)
	rng := rand.New(rand.NewPCG(1, 1))
	m := newModel()
	fill := func(size int) {
		t.Helper()
		for {
			err := m.append(d, store.Message, randomBody(rng, size))
			if err == nil {
				must(t, d.Sync())
				continue
			}
			if !errors.Is(err, store.ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			return
		}
	}
	fill(1000)
	if n := len(m.messages); n < 500*tmpfsMiB {
		t.Errorf("only %d messages of 1000 bytes in three quarters of %d MiB", n, tmpfsMiB)
	}
	m.compare(t, d)
	must(t, d.Close())
	d = openDisk(t, dir, small)
	m.compare(t, d)
	must(t, os.Remove(filepath.Join(dir, "ballast")))
	fill(8)
	m.compare(t, d)
	// All removed one by one, in no order, while there is no room for anything.
	seqs := m.seqs()
	rng.Shuffle(len(seqs), func(i, j int) { seqs[i], seqs[j] = seqs[j], seqs[i] })
	for i, s := range seqs[:len(seqs)-100] {
		must(t, m.remove(d, []uint64{s}))
		if i%16 == 0 {
			must(t, d.Sync())
		}
	}
	m.compare(t, d)
	fill(500)
	m.compare(t, d)
	must(t, m.remove(d, m.seqs()))
	must(t, d.Sync())
	fill(100)
	m.compare(t, d)
	must(t, d.Close())
	m.compare(t, openDisk(t, dir, small))
}

// MaxBytes bounds the files at every moment, and what is acked makes room.
func TestDiskMaxBytes(t *testing.T) {
	const bound = 1 << 20
	dir := t.TempDir()
	opts := store.WithSegments(store.DiskOptions{MaxBytes: bound}, 16<<10, 64<<10)
	d := openDisk(t, dir, opts)
	rng := rand.New(rand.NewPCG(1, 1))
	m := newModel()
	size := func() (n int64) {
		files, err := os.ReadDir(filepath.Join(dir, "q.disk"))
		must(t, err)
		for _, f := range files {
			if i, err := f.Info(); err == nil {
				n += i.Size()
			}
		}
		return n
	}
	fulls, most := 0, 0
	for i := range storetest.Scale(20_000, 6000, 6000) {
		err := m.append(d, store.Message, randomBody(rng, rng.IntN(500)))
		if errors.Is(err, store.ErrFull) {
			fulls++
			seqs := m.seqs()
			rng.Shuffle(len(seqs), func(i, j int) { seqs[i], seqs[j] = seqs[j], seqs[i] })
			must(t, m.remove(d, seqs[:min(len(seqs), 1+rng.IntN(200))]))
		} else {
			must(t, err)
		}
		most = max(most, int(d.Stats().Bytes))
		if i%8 == 0 {
			must(t, d.Sync())
			if s := d.Stats(); s.Used > bound || size() > bound {
				t.Fatalf("%d bytes on disk, %d used", size(), s.Used)
			}
		}
	}
	m.compare(t, d)
	if s := d.Invariant(); s != "" {
		t.Error(s)
	}
	if fulls == 0 || most < bound/2 {
		t.Errorf("full %d times, with at most %d bytes of messages", fulls, most)
	}
	t.Logf("full %d times; at most %d of %d bytes were messages' bodies", fulls, most, bound)
}

// One purge of a full queue needs more room than there is, and makes it.
func TestDiskPurgeFull(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, store.WithSegments(store.DiskOptions{MaxBytes: 1 << 20}, 16<<10, 64<<10))
	var seqs []uint64
	for {
		seq := uint64(len(seqs)) + 1
		if _, err := d.Append([]store.Entry{{Kind: store.Message, Seq: seq}}); err != nil {
			if !errors.Is(err, store.ErrFull) {
				t.Fatal(err)
			}
			break
		}
		seqs = append(seqs, seq)
	}
	must(t, d.Remove(seqs))
	must(t, d.Sync())
	if s := d.Stats(); s.Messages != 0 || s.Bytes != 0 {
		t.Errorf("%+v", s)
	}
	_, err := d.Append([]store.Entry{{Kind: store.Message, Seq: d.Stats().High + 1}})
	must(t, err)
}

// A disk that fails a sync: nothing is promised any more until the store is opened anew.
func TestDiskSyncFails(t *testing.T) {
	dir := t.TempDir()
	files := newPowerFiles(1)
	opts := store.WithFiles(small, files)
	d := openDisk(t, dir, opts)
	m := newModel()
	must(t, m.append(d, store.Message, []byte("a")))
	must(t, d.Sync())
	must(t, m.append(d, store.Message, []byte("b")))
	files.off = true
	if err := d.Sync(); !errors.Is(err, errPower) {
		t.Fatal(err)
	}
	files.off = false
	for what, err := range map[string]error{"Sync": d.Sync(), "Remove": d.Remove([]uint64{1}), "Append": m.append(d, store.Message, nil)} {
		if !errors.Is(err, errPower) {
			t.Errorf("%s after a failed sync: %v", what, err)
		}
	}
	if b, err := d.Read(nil, 1); err != nil || string(b) != "a" {
		t.Errorf("Read after a failed sync: %q, %v", b, err)
	}
	if err := d.Close(); !errors.Is(err, errPower) {
		t.Errorf("Close: %v", err)
	}
	d = openDisk(t, dir, opts)
	must(t, m.append(d, store.Message, []byte("c")))
	must(t, d.Sync())
}
