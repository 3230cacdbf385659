package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// DirOptions adjusts OpenDir. Each zero field means the default its comment gives.
type DirOptions struct {
	// Mode is the sockets' file mode: who may connect needs write permission.
	// 0 means 0600.
	Mode os.FileMode

	// DirMode is the directory's mode when OpenDir makes it. 0 means 0700.
	DirMode os.FileMode

	// Group is the gid that the sockets are given. 0 leaves the one they are born
	// with (the directory's, where that is set-gid).
	Group int
}

// Dir is a bus directory that this process serves: it holds the lock and the
// listening sockets. Clients can connect from the moment OpenDir returns.
type Dir struct {
	path      string
	lock      *os.File
	listeners []*net.UnixListener
	sockets   []ownSocket
}

// ownSocket is a socket file that we made. It may be unlinked only while the path
// still leads to that inode.
type ownSocket struct {
	path     string
	dev, ino uint64
}

// OpenDir makes the directory at path if it is not there, takes its lock, and
// listens on both sockets. Of a broker that died the sockets are replaced. It
// returns ErrInUse beside a live one, and does not wait.
func OpenDir(path string, opts *DirOptions) (*Dir, error) {
	var o DirOptions
	if opts != nil {
		o = *opts
	}
	if o.Mode == 0 {
		o.Mode = 0o600
	}
	if o.DirMode == 0 {
		o.DirMode = 0o700
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("broker: bus directory: %w", err)
	}
	if err := makeDir(path, o.DirMode); err != nil {
		return nil, fmt.Errorf("broker: bus directory: %w", err)
	}
	if err := checkDir(path); err != nil {
		return nil, err
	}
	d := &Dir{path: path}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	for _, a := range wire.DirAddresses(path) {
		if err := d.listen(a, o); err != nil {
			d.Close()
			return nil, err
		}
	}
	return d, nil
}

// Path returns the directory, absolute.
func (d *Dir) Path() string { return d.path }

// makeDir makes the directory at path, and those above it, if they are not there.
// The umask does not count: who may connect was said.
func makeDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(path, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil // what it is, checkDir looks at
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// checkDir refuses a directory in which somebody else could put sockets of his
// own in our place.
func checkDir(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("broker: bus directory %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK && (st.Uid == uint32(os.Geteuid()) || st.Uid == 0) {
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("broker: bus directory %s: %w", path, err)
		}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("broker: %s is not a directory", path)
	case st.Uid != uint32(os.Geteuid()) && st.Uid != 0:
		return fmt.Errorf("broker: bus directory %s belongs to uid %d: a bus directory is its broker's or root's", path, st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("broker: bus directory %s can be written by others than its owner (mode %04o), who could take its sockets' place: chmod go-w it, or use another", path, st.Mode&0o7777)
	}
	return nil
}

// takeLock takes the lock file's flock, which goes with the process however that
// ends. Only its holder may touch the sockets: a refused connection alone does
// not prove that a broker is dead (it may be about to listen).
func (d *Dir) takeLock() error {
	name := filepath.Join(d.path, wire.LockFile)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("broker: lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if err != unix.EWOULDBLOCK {
			return fmt.Errorf("broker: lock %s: %w", name, err)
		}
		var pid [16]byte
		n, _ := f.ReadAt(pid[:], 0)
		who := strings.TrimSpace(string(pid[:n]))
		if who == "" {
			who = "not written yet"
		}
		return fmt.Errorf("%w: %s, pid %s", ErrInUse, d.path, who)
	}
	d.lock = f
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("broker: lock %s: %w: is it a plain file?", name, err)
	}
	// Who holds it is for people only: a full disk does not keep a broker from
	// serving.
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return nil
}

// listen binds and listens at a. The file is born with mode 0600 and gets the
// final one after, so that at no moment more may connect than shall.
func (d *Dir) listen(a wire.Address, o DirOptions) error {
	if err := d.removeSocket(a); err != nil {
		return err
	}
	return wire.WithShortPath(a.Path, func(short string) error {
		l, err := private.Listen(context.Background(), a.Network, short)
		if err != nil {
			return fmt.Errorf("broker: listen: %w", err)
		}
		ul := l.(*net.UnixListener)
		ul.SetUnlinkOnClose(false)
		d.listeners = append(d.listeners, ul)
		var st unix.Stat_t
		if err := unix.Lstat(a.Path, &st); err != nil {
			return fmt.Errorf("broker: socket %s: %w", a.Path, err)
		}
		d.sockets = append(d.sockets, ownSocket{a.Path, st.Dev, st.Ino})
		if o.Group > 0 {
			if err := os.Chown(a.Path, -1, o.Group); err != nil {
				return fmt.Errorf("broker: socket group: %w", err)
			}
		}
		if err := os.Chmod(a.Path, o.Mode.Perm()); err != nil {
			return fmt.Errorf("broker: socket mode: %w", err)
		}
		return nil
	})
}

// private makes sockets whose file is born with mode 0600.
var private = net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
	var err error
	// The mode of the inode at bind is the file's (unix(7) is silent; see
	// unix_bind_bsd in the kernel), less the umask.
	if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
		return cerr
	}
	return err
}}

// removeSocket takes away a dead broker's socket file, and nothing else. A refused
// connection proves nothing (see takeLock); one that succeeds proves that a broker
// lives whose lock file somebody has removed.
func (d *Dir) removeSocket(a wire.Address) error {
	fi, err := os.Lstat(a.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("broker: socket: %w", err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("broker: %s is in the way and not a socket: move it, or use another bus directory", a.Path)
	}
	err = wire.WithShortPath(a.Path, func(short string) error {
		conn, err := net.DialUnix(a.Network, nil, &net.UnixAddr{Net: a.Network, Name: short})
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err == nil || errors.Is(err, unix.EAGAIN) { // EAGAIN: it listens, and its backlog is full
		return fmt.Errorf("%w: %s answers, though nobody holds %s", ErrInUse, a.Path, wire.LockFile)
	}
	if err := os.Remove(a.Path); err != nil {
		return fmt.Errorf("broker: socket of a broker that died: %w", err)
	}
	return nil
}

// Close stops listening, removes the socket files as far as they are still ours,
// and gives the lock back. It may be called again.
func (d *Dir) Close() error {
	for _, l := range d.listeners {
		l.Close()
	}
	for _, s := range d.sockets {
		var st unix.Stat_t
		if unix.Lstat(s.path, &st) == nil && st.Dev == s.dev && st.Ino == s.ino {
			_ = os.Remove(s.path)
		}
	}
	d.listeners, d.sockets = nil, nil
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}
