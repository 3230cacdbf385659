package broker_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/wire"
)

func TestSecondBrokerIsRefused(t *testing.T) {
	bus := brokertest.Start(t, nil)
	_, err := broker.OpenDir(bus.Dir, nil)
	if !errors.Is(err, broker.ErrInUse) {
		t.Fatalf("OpenDir beside a live broker: %v", err)
	}
	if !strings.Contains(err.Error(), bus.Dir) || !strings.Contains(err.Error(), "pid") {
		t.Errorf("the error names neither directory nor pid: %v", err)
	}
	greet(t, bus, "unix") // and the live one is as it was
}

// Without its lock file a live broker still keeps its sockets.
func TestLockFileRemoved(t *testing.T) {
	bus := brokertest.Start(t, nil)
	s := greet(t, bus, "unix")
	s.subscribe(wire.Subscribe{Sub: 1, Filters: []string{"#"}})
	if err := os.Remove(filepath.Join(bus.Dir, wire.LockFile)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also when the first has made a lock file of its own
		if _, err := broker.OpenDir(bus.Dir, nil); !errors.Is(err, broker.ErrInUse) {
			t.Fatalf("OpenDir beside a live broker without lock file: %v", err)
		}
	}
	greet(t, bus, "unixpacket").publish("a", "x").flush() // the files still lead to it
	greet(t, bus, "unix").publish("a", "y").flush()
	s.expect(wire.TypeTarget)
	s.expect(wire.TypeMessage)
	s.expect(wire.TypeMessage)
}

func TestDeadBrokersSocketsAreReplaced(t *testing.T) {
	dir := t.TempDir()
	for _, a := range wire.DirAddresses(dir) { // what kill -9 leaves
		l, err := net.ListenUnix(a.Network, &net.UnixAddr{Net: a.Network, Name: a.Path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	bus := brokertest.StartAt(t, dir, nil)
	greet(t, bus, "unix")
	greet(t, bus, "unixpacket")
}

func TestOnlySocketsAreReplaced(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, wire.PacketSocket)
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.OpenDir(dir, nil); err == nil || !strings.Contains(err.Error(), file) {
		t.Fatalf("OpenDir over a file: %v", err)
	}
	if got, _ := os.ReadFile(file); string(got) != "precious" {
		t.Error("the file was touched")
	}
}

// A broker that ends leaves a successor's sockets alone.
func TestSuccessorsSocketsStay(t *testing.T) {
	dir := t.TempDir()
	old, err := broker.OpenDir(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	var made []string
	for _, a := range wire.DirAddresses(dir) {
		if err := os.Remove(a.Path); err != nil {
			t.Fatal(err)
		}
		l, err := net.ListenUnix(a.Network, &net.UnixAddr{Net: a.Network, Name: a.Path})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		made = append(made, a.Path)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range made {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the successor's socket is gone: %v", err)
		}
	}
}

func TestDirModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077)) // it must not count
	dir := filepath.Join(t.TempDir(), "new", "bus")
	d, err := broker.OpenDir(dir, &broker.DirOptions{Mode: 0o660, DirMode: 0o711})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for path, want := range map[string]os.FileMode{
		dir:                                   0o711,
		filepath.Join(dir, wire.PacketSocket): 0o660,
		filepath.Join(dir, wire.StreamSocket): 0o660,
		filepath.Join(dir, wire.LockFile):     0o600,
	} {
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.OpenDir(open, nil); err == nil {
		t.Error("a directory that everybody can write to was taken")
	}
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	d, err := broker.OpenDir(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, a := range wire.DirAddresses(dir) {
		err := wire.WithShortPath(a.Path, func(short string) error {
			c, err := net.DialUnix(a.Network, nil, &net.UnixAddr{Net: a.Network, Name: short})
			if err == nil {
				c.Close()
			}
			return err
		})
		if err != nil {
			t.Errorf("%v: %v", a, err)
		}
	}
}

// A socket is never open to more than its final mode allows, not even before that is
// set: it is born for its owner only, whatever the umask.
func TestSocketsAreBornPrivate(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	for _, a := range wire.DirAddresses(t.TempDir()) {
		l, err := broker.Private.Listen(t.Context(), a.Network, a.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		fi, err := os.Lstat(a.Path)
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != 0o600 {
			t.Errorf("%s is born with mode %o", a.Path, got)
		}
	}
}
