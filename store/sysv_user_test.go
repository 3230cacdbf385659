package store_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/postbus/postbus/store"
)

// TestSysVOtherUser runs part of the tests as a user without rights, and opens root's
// store as that user.
func TestSysVOtherUser(t *testing.T) {
	const env = "POSTBUS_TEST_ROOTS_STORE"
	if dir := os.Getenv(env); dir != "" {
		_, err := store.OpenSysV(dir, "q", nil)
		if !errors.Is(err, store.ErrNotAllowed) {
			t.Errorf("open of another user's store: %v", err)
		}
		noQueuesLeft(t)
		own := t.TempDir()
		s := mustOpen(t, own, nil)
		addMessages(t, s, 10, 20_000, 30)
		s.Abandon()
		s = mustOpen(t, own, nil)
		if err := s.Remove(messages(t, s)); err != nil {
			t.Error(err)
		}
		return
	}
	noQueuesLeft(t)
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	// The test's program lies in a directory that only its user may search.
	dir, err := os.MkdirTemp("", "postbus-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "test")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, dir, nil)
	addMessages(t, s, 10)
	s.Close()
	cmd := exec.Command(path, "-test.run=^TestSysVOtherUser$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env+"="+dir, "TMPDIR="+dir, noExitDelay())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	t.Logf("as nobody: %v\n%s", err, out)
	if err != nil {
		t.Fail()
	}
}
