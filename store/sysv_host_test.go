package store_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
)

// noExitDelay is a variable for the environment of a test's child, which under the race
// detector would wait a second before it ends.
func noExitDelay() string { return "GORACE=" + os.Getenv("GORACE") + " atexit_sleep_ms=0" }

// newNamespace puts a test's child into a namespace of its own, for which an ordinary user
// has to become root of a user namespace first.
func newNamespace(flag uintptr) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: flag}
	if uid := os.Getuid(); uid != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// queues returns the lines of /proc/sysvipc/msg by msqid.
func queues(t testing.TB) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("/proc/sysvipc/msg")
	if err != nil {
		t.Skipf("no System V message queues here: %v", err)
	}
	all := make(map[string][]string)
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n")[1:] {
		fields := strings.Fields(line)
		all[fields[1]] = fields
	}
	return all
}

// ours has the test's key files by the low 24 bits of their keys, which all segments share. They
// stay open, also when they are removed: a free inode goes to the next file made, of any
// program, and with it the keys.
var ours = map[uint32]*os.File{}

// noteKeys remembers the keys of dir's queue.
func noteKeys(t testing.TB, dir string) {
	t.Helper()
	path := filepath.Join(dir, "q.key")
	key, err := store.Ftok(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if ours[uint32(key)] != nil {
		return
	}
	if ours[uint32(key)], err = os.Open(path); err != nil {
		t.Fatal(err)
	}
}

// noQueuesLeft compares the host's queues before and after the test, those with keys of
// the test's key files. Another program's file may have the same keys by chance: a queue that a
// program still running used last is its own.
func noQueuesLeft(t *testing.T) {
	t.Helper()
	if os.Getenv("POSTBUS_STORETEST_DIR") != "" {
		return
	}
	before := queues(t)
	t.Cleanup(func() {
		for id, fields := range queues(t) {
			key, err := strconv.ParseInt(fields[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if ours[uint32(key)&0xffffff] != nil && before[id] == nil && !othersUse(fields[5]) && !othersUse(fields[6]) {
				t.Errorf("kernel queue %s stays behind: %s", id, strings.Join(fields, " "))
			}
		}
		for key, f := range ours {
			f.Close()
			delete(ours, key)
		}
	})
}

// othersUse tells whether pid is another process that runs; a test's children have ended.
func othersUse(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err == nil && n != 0 && n != os.Getpid() && unix.Kill(n, 0) != unix.ESRCH
}
