package wire_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
)

func TestParseAddress(t *testing.T) {
	packet := func(path string) []wire.Address { return []wire.Address{{Network: "unixpacket", Path: path}} }
	stream := func(path string) []wire.Address { return []wire.Address{{Network: "unix", Path: path}} }
	for s, want := range map[string][]wire.Address{
		"unixpacket:/run/x.sock": packet("/run/x.sock"),
		"unixpacket:x.sock":      packet("x.sock"),
		"unix:/run/x.sock":       stream("/run/x.sock"),
		"unix:/with:colon":       stream("/with:colon"),
		"unix:unix:x":            stream("unix:x"),
		"/run/postbus":           append(packet("/run/postbus/bus.sock"), stream("/run/postbus/stream.sock")...),
		"/run/postbus/":          append(packet("/run/postbus/bus.sock"), stream("/run/postbus/stream.sock")...),
		"bus":                    append(packet("bus/bus.sock"), stream("bus/stream.sock")...),
		"./a:b":                  append(packet("a:b/bus.sock"), stream("a:b/stream.sock")...),
		"/a:b/c":                 append(packet("/a:b/c/bus.sock"), stream("/a:b/c/stream.sock")...),

		"":             nil,
		"unix:":        nil,
		"unixpacket:":  nil,
		"unix:@hidden": nil,
		"tcp:1.2.3.4":  nil,
		"unixgram:/x":  nil,
		":/x":          nil,
		"UNIX:/x":      nil,
	} {
		got, err := wire.ParseAddress(s)
		if !reflect.DeepEqual(got, want) || (err == nil) != (want != nil) {
			t.Errorf("ParseAddress(%q) is %v, %v; want %v", s, got, err, want)
		}
	}
}

func TestAddressString(t *testing.T) {
	for _, want := range wire.DirAddresses("/run/postbus") {
		if got, err := wire.ParseAddress(want.String()); err != nil || got[0] != want {
			t.Errorf("%q is parsed as %v, %v", want, got, err)
		}
	}
}

func TestUserDir(t *testing.T) {
	for runtimeDir, want := range map[string]string{"/run/user/7": "/run/user/7/postbus", "": "/tmp/postbus-", "relative": "/tmp/postbus-"} {
		t.Setenv("XDG_RUNTIME_DIR", runtimeDir)
		if got := wire.UserDir(); !strings.HasPrefix(got, want) {
			t.Errorf("with XDG_RUNTIME_DIR %q it is %q", runtimeDir, got)
		}
	}
}

func TestWithShortPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100), strings.Repeat("e", 200))
	must(t, os.MkdirAll(dir, 0o700))
	for _, addr := range wire.DirAddresses(dir) {
		t.Run(addr.Network, func(t *testing.T) {
			var listener *net.UnixListener
			must(t, wire.WithShortPath(addr.Path, func(short string) (err error) {
				listener, err = net.ListenUnix(addr.Network, &net.UnixAddr{Net: addr.Network, Name: short})
				return err
			}))
			listener.SetUnlinkOnClose(false)
			defer listener.Close()
			if info, err := os.Stat(addr.Path); err != nil || info.Mode()&fs.ModeSocket == 0 {
				t.Fatalf("no socket at the long path: %v", err)
			}
			must(t, wire.WithShortPath(addr.Path, func(short string) error {
				conn, err := net.DialUnix(addr.Network, nil, &net.UnixAddr{Net: addr.Network, Name: short})
				if err == nil {
					err = conn.Close()
				}
				return err
			}))
			conn, err := listener.Accept()
			must(t, err)
			must(t, conn.Close())
		})
	}
}

func TestWithShortPathRelative(t *testing.T) {
	t.Chdir(t.TempDir())
	long := strings.Repeat("n", 108)
	err := wire.WithShortPath(long, func(string) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "socket's file name") {
		t.Errorf("a file name that no socket can have: %v", err)
	}
	must(t, os.Mkdir(long, 0o700))
	must(t, wire.WithShortPath(filepath.Join(long, "s"), func(short string) error {
		return os.WriteFile(short, nil, 0o600)
	}))
	if _, err := os.Stat(filepath.Join(long, "s")); err != nil {
		t.Error(err)
	}
}

func TestWithShortPathErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), strings.Repeat("d", 120), "s")
	if err := wire.WithShortPath(missing, func(string) error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v", err)
	}
	want := errors.New("from use")
	for _, path := range []string{"/s", filepath.Join("/", strings.Repeat("./", 100), "s"), "/proc/" + strings.Repeat("./", 60) + "s"} {
		if err := wire.WithShortPath(path, func(string) error { return want }); err != want {
			t.Errorf("%.20s…: got %v", path, err)
		}
	}
}

func TestWithShortPathAtTheLimit(t *testing.T) {
	for _, n := range []int{107, 108} {
		path := "/" + strings.Repeat("./", (n-2)/2) + strings.Repeat("s", n-1-(n-2)/2*2)
		must(t, wire.WithShortPath(path, func(short string) error {
			if (short == path) != (n <= 107) || len(short) > 107 {
				t.Errorf("a path of %d bytes became %q", len(path), short)
			}
			return nil
		}))
	}
}
