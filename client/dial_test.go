package client_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/broker/brokertest"
	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// noBus sees to it that nothing outside the test is found, and returns the directory
// that the user's bus would have.
func noBus(t *testing.T) string {
	t.Helper()
	runtimeDir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", runtimeDir)
	t.Setenv("POSTBUS_ADDRESS", "")
	t.Setenv("POSTBUS_AUTOSTART", "")
	return filepath.Join(runtimeDir, "postbus")
}

func TestSearchFails(t *testing.T) {
	checkGoroutines(t)
	own := noBus(t)
	_, err := client.Dial(testContext(t), nil)
	wantError(t, err, client.ErrNoBroker)
	wantError(t, err, fs.ErrNotExist)
	for _, address := range append(wire.DirAddresses(own), wire.DirAddresses(wire.SystemDir)...) {
		if !strings.Contains(err.Error(), address.String()+": connect: no such file or directory") {
			t.Errorf("%s is not in %q", address, err)
		}
	}

	dir := t.TempDir()
	for _, named := range []func() (*client.Client, error){
		func() (*client.Client, error) { return client.Dial(testContext(t), &client.Options{Address: dir}) },
		func() (*client.Client, error) {
			t.Setenv("POSTBUS_ADDRESS", dir)
			return client.Dial(testContext(t), &client.Options{Autostart: true})
		},
	} {
		_, err := named()
		wantError(t, err, client.ErrNoBroker)
		if strings.Contains(err.Error(), own) || !strings.Contains(err.Error(), filepath.Join(dir, wire.StreamSocket)) {
			t.Errorf("not what was named: %q", err)
		}
	}
	for _, address := range []string{"tcp:localhost", "unix:", "unix:@abstract"} {
		_, err := client.Dial(testContext(t), &client.Options{Address: address})
		wantError(t, err, client.ErrBadOption)
	}
}

// Each way in which a socket does not do has its own words.
func TestSearchErrors(t *testing.T) {
	dir := t.TempDir()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dead"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	l := listen(t, "unix")
	for address, want := range map[string]string{
		"unix:" + filepath.Join(dir, "dead"):       "nobody serves it",
		"unix:" + filepath.Join(dir, "none"):       "no such file",
		"unixpacket:" + l.path:                     "use unix:" + l.path,
		"unix:" + filepath.Join(l.path, "no", "x"): "not a directory",
	} {
		_, err := client.Dial(testContext(t), &client.Options{Address: address})
		wantError(t, err, client.ErrNoBroker)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q is not in %q", address, want, err)
		}
	}
}

func TestSearchOrder(t *testing.T) {
	checkGoroutines(t)
	own := noBus(t)
	bus := brokertest.StartAt(t, own, nil)
	if c := dial(t, nil); c.Server().Address != bus.Address("unixpacket") {
		t.Errorf("found %s", c.Server().Address)
	}
	if err := os.Remove(filepath.Join(own, wire.PacketSocket)); err != nil {
		t.Fatal(err)
	}
	if c := dial(t, nil); c.Server().Address != bus.Address("unix") {
		t.Errorf("found %s", c.Server().Address)
	}
	named := brokertest.Start(t, nil)
	t.Setenv("POSTBUS_ADDRESS", named.Dir)
	if c := dial(t, nil); c.Server().Address != named.Address("unixpacket") {
		t.Errorf("found %s", c.Server().Address)
	}
	if c := dial(t, &client.Options{Address: bus.Address("unix")}); c.Server().Address != bus.Address("unix") {
		t.Errorf("found %s", c.Server().Address)
	}
}

// A path that does not fit a socket address does all the same.
func TestLongPath(t *testing.T) {
	checkGoroutines(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	bus := brokertest.StartAt(t, dir, nil)
	if c := dial(t, &client.Options{Address: dir}); c.Server().Address != bus.Address("unixpacket") {
		t.Errorf("found %s", c.Server().Address)
	}
}

// A bus that this user may not use is not the same as none.
func TestNotAllowed(t *testing.T) {
	l := listen(t, "unix")
	if err := os.Chmod(l.path, 0); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		_, err := client.Dial(testContext(t), &client.Options{Address: l.address()})
		wantError(t, err, client.ErrNotAllowed)
		wantError(t, err, fs.ErrPermission)
		if errors.Is(err, client.ErrNoBroker) || !strings.Contains(err.Error(), l.path) {
			t.Errorf("got %v", err)
		}
	})
}

// asNobody runs do without the rights of root, if the test has them. They are those of
// the thread, hence the lock: do must not leave it to others.
func asNobody(t *testing.T, do func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		do()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	seteuid := func(uid int) {
		const keep = ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			t.Fatal(errno)
		}
	}
	seteuid(65534)
	defer seteuid(0)
	do()
}

func TestTrusted(t *testing.T) {
	for _, test := range []struct {
		server, user uint32
		want         bool
	}{{1000, 1000, true}, {0, 1000, true}, {1001, 1000, false}, {1000, 0, false}, {65534, 1000, false}} {
		if got := client.Trusted(test.server, test.user); got != test.want {
			t.Errorf("uid %d for uid %d: %v", test.server, test.user, got)
		}
	}
}

// Somebody who took the name of the user's bus is not spoken to. Only root can play him;
// for other users TestTrusted has the rule.
func TestImpostor(t *testing.T) {
	own := noBus(t)
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	l := listenAt(t, "unixpacket", filepath.Join(own, wire.PacketSocket))
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		return
	}
	// Whoever calls listen(2) last is the server that SO_PEERCRED tells.
	asNobody(t, func() {
		_ = raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 10) })
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Dial(testContext(t), &client.Options{Autostart: true, AutostartCommand: []string{"false"}})
	wantError(t, err, client.ErrNotAllowed)
	if !strings.Contains(err.Error(), "uid 65534") {
		t.Errorf("got %v", err)
	}
	// One that was named may be anybody's.
	go func() {
		_ = l.accept().conn.Close() // the one that was not spoken to
		l.accept().greet(nil)
	}()
	c := dial(t, &client.Options{Address: l.address()})
	_ = c.Close()
}

// A full backlog is waited out, though connect fails at once.
func TestFullBacklog(t *testing.T) {
	for _, network := range []string{"unixpacket", "unix"} {
		t.Run(network, func(t *testing.T) {
			checkGoroutines(t)
			l := listen(t, network)
			raw, err := l.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			_ = raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) })
			if err != nil {
				t.Fatal(err)
			}
			waiting := 0
			for ; ; waiting++ {
				conn, err := net.Dial(network, l.path)
				if errors.Is(err, syscall.EAGAIN) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
			}
			short, cancel := context.WithTimeout(testContext(t), 20*time.Millisecond)
			defer cancel()
			_, err = client.Dial(short, &client.Options{Address: l.address()})
			wantError(t, err, client.ErrNoBroker)
			wantError(t, err, syscall.EAGAIN)

			go func() {
				for range waiting {
					_ = l.accept().conn.Close()
				}
				l.accept().greet(nil)
			}()
			_ = dial(t, &client.Options{Address: l.address()}).Close()
		})
	}
}

// connect(2) succeeds while a broker stops; the next one is waited for.
func TestResetBeforeWelcome(t *testing.T) {
	for _, network := range []string{"unixpacket", "unix"} {
		t.Run(network, func(t *testing.T) {
			checkGoroutines(t)
			l := listen(t, network)
			go func() {
				_ = l.accept().conn.Close()
				s := l.accept()
				s.expect(wire.TypeHello, nil)
				s.cold(wire.TypeGoodbye, &wire.Goodbye{Code: wire.CodeShutdown})
				_ = s.conn.Close()
				l.accept().greet(nil)
			}()
			_ = dial(t, &client.Options{Address: l.address()}).Close()
		})
	}
}

func TestNoWelcome(t *testing.T) {
	checkGoroutines(t)
	l := listen(t, "unix")
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		l.accept().expect(wire.TypeHello, nil)
		cancel()
	}()
	_, err := client.Dial(ctx, &client.Options{Address: l.address()})
	wantError(t, err, context.Canceled)
	wantError(t, err, client.ErrNoBroker)
}

// What a broker says instead of WELCOME, be it before it read anything.
func TestGoodbyeBeforeWelcome(t *testing.T) {
	for code, want := range map[wire.Code]error{
		wire.CodeLimit:      client.ErrLimit,
		wire.CodeVersion:    client.ErrVersion,
		wire.CodeNotAllowed: client.ErrNotAllowed,
	} {
		t.Run(code.String(), func(t *testing.T) {
			checkGoroutines(t)
			l := listen(t, "unix")
			go func() {
				s := l.accept()
				s.cold(wire.TypeGoodbye, &wire.Goodbye{Code: code, Text: "because"})
				_ = s.conn.Close()
			}()
			_, err := client.Dial(testContext(t), &client.Options{Address: l.address()})
			wantError(t, err, want)
			if !strings.Contains(err.Error(), "because") || !strings.Contains(err.Error(), l.path) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestBadWelcome(t *testing.T) {
	for name, w := range map[string]wire.Welcome{
		"version": {Version: 2, MaxPacket: 4096, MaxMessage: 1, Window: 1},
		"limits":  {Version: 1},
	} {
		t.Run(name, func(t *testing.T) {
			conn, other := socketpair(t)
			s := newScript(t, other)
			go func() {
				s.expect(wire.TypeHello, nil)
				s.cold(wire.TypeWelcome, &w)
			}()
			_, err := client.NewClient(testContext(t), conn, nil)
			if !errors.Is(err, client.ErrVersion) && !errors.Is(err, client.ErrProtocol) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestName(t *testing.T) {
	conn, other := socketpair(t)
	_, err := client.NewClient(testContext(t), conn, &client.Options{Name: strings.Repeat("x", 65)})
	wantError(t, err, client.ErrBadOption)
	newScript(t, other).closed()
}

// serveEnv makes the test program a broker for TestAutostart.
const serveEnv = "POSTBUS_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) == "" {
		os.Exit(m.Run())
	}
	if err := serveAndLeave(); err != nil && !errors.Is(err, broker.ErrIdle) && !errors.Is(err, broker.ErrInUse) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serveAndLeave() error {
	dir, err := broker.OpenDir(wire.UserDir(), nil)
	if err != nil {
		return err
	}
	b, err := broker.New(&broker.Options{IdleExit: 300 * time.Millisecond})
	if err != nil {
		return err
	}
	return b.ServeDir(dir)
}

// Many clients start a broker at once; they find the same one, it is nobody's child, and
// it leaves again.
func TestAutostart(t *testing.T) {
	checkGoroutines(t)
	own := noBus(t)
	t.Setenv(serveEnv, "1")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	opts := &client.Options{Autostart: true, AutostartCommand: []string{program}}
	var all sync.WaitGroup
	clients := make([]*client.Client, 5)
	for i := range clients {
		all.Go(func() {
			var err error
			if clients[i], err = client.Dial(testContext(t), opts); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for _, c := range clients {
		if got, want := c.Server(), clients[0].Server(); got.Bus != want.Bus || !strings.Contains(got.Address, own) {
			t.Errorf("%+v and %+v", got, want)
		}
		if err := c.Ping(testContext(t)); err != nil {
			t.Error(err)
		}
	}
	for _, c := range clients {
		_ = c.Close()
	}
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
	waitFor(t, "the broker to leave", func() bool {
		_, err := os.Stat(filepath.Join(own, wire.PacketSocket))
		return errors.Is(err, fs.ErrNotExist)
	})
}

func TestAutostartFails(t *testing.T) {
	noBus(t)
	_, err := client.Dial(testContext(t), &client.Options{Autostart: true, AutostartCommand: []string{"no-such-postbus"}})
	wantError(t, err, client.ErrNoBroker)
	if !strings.Contains(err.Error(), "no-such-postbus") {
		t.Errorf("got %v", err)
	}

	short, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	_, err = client.Dial(short, &client.Options{Autostart: true, AutostartCommand: []string{"true"}})
	wantError(t, err, client.ErrNoBroker)
	if !strings.Contains(err.Error(), "run it by hand") {
		t.Errorf("got %v", err)
	}

	t.Setenv("POSTBUS_AUTOSTART", "0")
	_, err = client.Dial(testContext(t), &client.Options{Autostart: true, AutostartCommand: []string{"no-such-postbus"}})
	wantError(t, err, client.ErrNoBroker)
	if strings.Contains(err.Error(), "no-such-postbus") {
		t.Errorf("forbidden, and done: %v", err)
	}
}
