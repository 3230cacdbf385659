package wire

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Names within a bus directory.
const (
	PacketSocket = "bus.sock"    // SOCK_SEQPACKET
	StreamSocket = "stream.sock" // SOCK_STREAM
	LockFile     = "broker.lock" // flock(2), held for the broker's life
	RestartFile  = "restart"     // what an orderly stop leaves for the next broker
)

// SystemDir is the system's bus directory.
const SystemDir = "/run/postbus"

// UserDir returns the user's bus directory: $XDG_RUNTIME_DIR/postbus, or
// /tmp/postbus-UID where that is not set.
func UserDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "postbus")
	}
	return fmt.Sprintf("/tmp/postbus-%d", os.Getuid())
}

// Address is one socket.
type Address struct {
	Network string // "unixpacket" (SOCK_SEQPACKET) or "unix" (SOCK_STREAM)
	Path    string
}

// String returns the form ParseAddress takes, such as "unix:/run/postbus/stream.sock".
func (a Address) String() string { return a.Network + ":" + a.Path }

// DirAddresses returns the sockets of a bus directory, the preferred one first.
func DirAddresses(dir string) []Address {
	return []Address{
		{Network: "unixpacket", Path: filepath.Join(dir, PacketSocket)},
		{Network: "unix", Path: filepath.Join(dir, StreamSocket)},
	}
}

// ParseAddress reads "unixpacket:PATH", "unix:PATH" or the path of a bus
// directory and returns the sockets to try, in order.
func ParseAddress(s string) ([]Address, error) {
	network, path, ok := strings.Cut(s, ":")
	switch {
	case ok && (network == "unixpacket" || network == "unix"):
		if path == "" {
			return nil, fmt.Errorf("address %q has no path: use %s:/path/to/socket", s, network)
		}
		if strings.HasPrefix(path, "@") {
			return nil, fmt.Errorf("address %q is abstract: postbus uses socket files only, for their permissions", s)
		}
		return []Address{{Network: network, Path: path}}, nil
	case s == "":
		return nil, fmt.Errorf("the address is empty: use unixpacket:PATH, unix:PATH or a bus directory")
	case ok && !strings.Contains(network, "/"):
		return nil, fmt.Errorf("address %q: kind %q is unknown: use unixpacket:PATH, unix:PATH or a bus directory", s, network)
	}
	return DirAddresses(s), nil
}

// maxSunPath is the longest path that fits sockaddr_un with its NUL (unix(7)).
const maxSunPath = 107

// WithShortPath calls use with a path for the socket file at path that fits a
// socket address: path itself, or when that is above 107 bytes one through
// /proc/self/fd, valid during the call only.
func WithShortPath(path string, use func(short string) error) error {
	if len(path) <= maxSunPath {
		return use(path)
	}
	dir, base := filepath.Dir(path), filepath.Base(path)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	short := fmt.Sprintf("/proc/self/fd/%d/%s", fd, base)
	if len(short) > maxSunPath {
		return fmt.Errorf("socket name %q has %d bytes: a socket's file name must stay below %d", base, len(base), maxSunPath-20)
	}
	return use(short)
}
