package store_test

import (
	"errors"
	"testing"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// openSysV returns a storetest.Open for opts, whose kernel queues are removed at the end.
func openSysV(opts *store.SysVOptions) storetest.Open {
	return func(t testing.TB, dir string) store.Store {
		t.Helper()
		return mustOpen(t, dir, opts)
	}
}

func mustOpen(t testing.TB, dir string, opts *store.SysVOptions) *store.SysV {
	t.Helper()
	s, err := store.OpenSysV(dir, "q", opts)
	if err != nil {
		t.Fatal(err)
	}
	noteKeys(t, dir)
	t.Cleanup(func() {
		s.Close()
		if err := store.DeleteSysV(dir, "q"); err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
	return s
}

func TestSysV(t *testing.T) {
	noQueuesLeft(t)
	storetest.Run(t, openSysV(nil))
}

// TestSysVNoCopy runs the suite as on a kernel without MSG_COPY: each reopen rotates.
func TestSysVNoCopy(t *testing.T) {
	noQueuesLeft(t)
	storetest.Run(t, openSysV(&store.SysVOptions{NoCopy: true}))
}

func TestSysVCrash(t *testing.T) {
	noQueuesLeft(t)
	storetest.Crash(t, storetest.Scale(200, 20, 8), openSysV(nil))
}

func TestSysVCrashNoCopy(t *testing.T) {
	noQueuesLeft(t)
	storetest.Crash(t, storetest.Scale(200, 20, 8), openSysV(&store.SysVOptions{NoCopy: true}))
}
