package store_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// inNamespace runs the calling test again in an IPC namespace of its own, with kernel.NAME
// set as sysctls say. It returns true there, and false, with the child's output in the log, here.
func inNamespace(t *testing.T, sysctls ...string) bool {
	t.Helper()
	const env = "POSTBUS_TEST_IPCNS"
	if os.Getenv(env) == t.Name() {
		for _, s := range sysctls {
			set(t, s)
		}
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), env+"="+t.Name(), noExitDelay())
	cmd.SysProcAttr = newNamespace(syscall.CLONE_NEWIPC)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("no IPC namespace to be had: %v", err)
	}
	t.Logf("in a namespace of its own: %v\n%s", err, out)
	if err != nil {
		t.Fail()
	} else if bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")) {
		t.SkipNow()
	}
	return false
}

func set(t *testing.T, sysctl string) {
	t.Helper()
	name, value, _ := strings.Cut(sysctl, "=")
	if err := os.WriteFile("/proc/sys/kernel/"+name, []byte(value), 0); err != nil {
		t.Skipf("sysctl kernel.%s: %v", sysctl, err)
	}
}

// fill appends messages of size until an error and returns how many went in and the error.
func fill(t *testing.T, s store.Store, size int) (n int, err error) {
	t.Helper()
	for {
		seq := s.Stats().High + 1
		if _, err := s.Append([]store.Entry{{Kind: store.Message, Seq: seq, Data: storetest.Fill(seq, size)}}); err != nil {
			if s.Stats().High != seq-1 {
				t.Error("high was raised by a message that was refused")
			}
			return n, err
		}
		n++
	}
}

// TestSysVFull fills the kernel queues a store may have, and goes on when there is room again.
func TestSysVFull(t *testing.T) {
	noQueuesLeft(t)
	dir := t.TempDir()
	opts := &store.SysVOptions{MaxSegments: 3}
	s := mustOpen(t, dir, opts)
	if s.Stats().MaxMessage != 6*8176 { // the host's limits are not Linux's own, which a new namespace has
		if inNamespace(t) {
			t.Fatalf("largest message of 3 kernel queues is %d, want %d", s.Stats().MaxMessage, 6*8176)
		}
		return
	}
	n, err := fill(t, s, 1000)
	if n != 48 || !errors.Is(err, store.ErrFull) || !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), "sysctl -w kernel.msgmnb=65536 (kernel queues that exist keep their size") {
		t.Fatalf("%d messages, then %v", n, err)
	}
	if s.Stats().Free > 3*1016 {
		t.Errorf("%d bytes free", s.Stats().Free)
	}
	// A chain that finds room for its first chunks only leaves none of them.
	if err := s.Remove([]uint64{1, 2, 3, 4, 5, 6, 7, 8, 20}); err != nil {
		t.Fatal(err)
	}
	if n, err := fill(t, s, 20_000); n != 0 || !errors.Is(err, store.ErrFull) {
		t.Errorf("%d messages of 20000 bytes, then %v", n, err)
	}
	if n, err := fill(t, s, 1000); n != 9 || !errors.Is(err, store.ErrFull) {
		t.Errorf("%d more, then %v", n, err)
	}
	s.Abandon()
	s = mustOpen(t, dir, opts)
	if got := messages(t, s); len(got) != 48 {
		t.Errorf("%d messages", len(got))
	}
	if n, err := fill(t, s, 49_057); n != 0 || !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("%d, %v", n, err)
	}
}

// TestSysVAllSegments fills all 254 and empties them again.
func TestSysVAllSegments(t *testing.T) {
	noQueuesLeft(t)
	s := mustOpen(t, t.TempDir(), nil)
	n, err := fill(t, s, 1000)
	if !errors.Is(err, store.ErrFull) || len(s.IDs()) != 254 {
		t.Fatalf("%d messages in %d kernel queues, then %v", n, len(s.IDs()), err)
	}
	t.Logf("%d messages of 1000 bytes, then: %v", n, err)
	if err := s.Remove(messages(t, s)); err != nil || len(s.IDs()) > 3 {
		t.Errorf("%d kernel queues when empty, %v", len(s.IDs()), err)
	}
}

func TestSysVNoQueueLeft(t *testing.T) {
	if !inNamespace(t, "msgmni=3") {
		return
	}
	s := mustOpen(t, t.TempDir(), nil)
	other := mustOpen(t, t.TempDir(), nil)
	addMessages(t, other, 10)
	n, err := fill(t, s, 1000)
	if n != 32 || !errors.Is(err, store.ErrNoSpace) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "kernel.msgmni=6") {
		t.Errorf("%d messages, then %v", n, err)
	}
	if err := s.Remove([]uint64{3}); err != nil {
		t.Error(err)
	}
	addMessages(t, s, 900)
	third := mustOpen(t, t.TempDir(), nil)
	if _, err := fill(t, third, 1); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("without a queue: %v", err)
	}
}

func TestSysVLargerLimits(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	addMessages(t, s, 100, 9000)
	s.Abandon()
	set(t, "msgmax=1048576")
	set(t, "msgmnb=8388608")
	s = mustOpen(t, dir, nil)
	large := addMessages(t, s, 1_000_000, 5_000_000, 1_048_560, 1_048_561)
	if ids := s.IDs(); len(ids) != 1 { // the queue from before was enlarged
		t.Errorf("%d kernel queues", len(ids))
	}
	if got := s.Stats().MaxMessage; got != 254*8*1_048_560 {
		t.Errorf("largest message %d", got)
	}
	set(t, "msgmax=4096")
	addMessages(t, s, 10_000) // in smaller chunks than the store knew of
	if got := s.Stats().MaxMessage; got != 65535*4080 {
		t.Errorf("largest message %d", got)
	}
	_, err := s.Read(nil, large[0])
	wantLowered(t, "Read", err)
	if got := s.Stats(); got.Messages != 7 || got.Lost != 0 {
		t.Errorf("%+v", got)
	}
	s.Abandon()
	for _, opts := range []*store.SysVOptions{nil, {NoCopy: true}, nil} {
		_, err = store.OpenSysV(dir, "q", opts)
		wantLowered(t, "Open", err)
	}
	set(t, "msgmax=1048576")
	s = mustOpen(t, dir, &store.SysVOptions{NoCopy: true})
	all := messages(t, s)
	if len(all) != 7 || s.Stats().LastLost != nil {
		t.Errorf("messages %v, lost %v", all, s.Stats().LastLost)
	}
	set(t, "msgmax=4096")
	if err := s.Remove(all); err != nil || len(s.IDs()) > 3 {
		t.Errorf("%v, %d kernel queues left", err, len(s.IDs()))
	}
}

func wantLowered(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrTooLarge) || !strings.Contains(err.Error(), "raise it again") {
		t.Errorf("%s with kernel.msgmax lowered: %v", what, err)
	}
}

// TestSysVSuiteLarge runs the contract with one record to a megabyte.
func TestSysVSuiteLarge(t *testing.T) {
	if inNamespace(t, "msgmax=1048576", "msgmnb=8388608") {
		storetest.Run(t, openSysV(nil))
	}
}

// TestSysVSuiteSmall runs the contract with chains of many chunks.
func TestSysVSuiteSmall(t *testing.T) {
	if inNamespace(t, "msgmax=128", "msgmnb=16384") {
		storetest.Run(t, openSysV(nil))
	}
}
