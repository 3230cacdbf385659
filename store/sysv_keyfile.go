package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxSegments is the highest project id used with ftok. 0 and 255 make the keys 0 and
// -1 possible, and POSIX leaves 0 undefined.
const maxSegments = 254

// segmentState is what the key file says of a segment number.
type segmentState string

const (
	segmentFree     segmentState = "free"     // no queue of ours
	segmentMaking   segmentState = "making"   // msgget comes next; the queue holds nothing yet
	segmentLive     segmentState = "live"     // ours, with this msqid
	segmentRemoving segmentState = "removing" // empty; IPC_RMID comes next
	segmentStrange  segmentState = "strange"  // somebody else has a queue of this key
)

// segmentLine is one segment's line in the key file.
type segmentLine struct {
	key   Key
	id    int // msqid; when making the time, in seconds since 1970
	state segmentState
}

// keyFile is NAME.key, the file whose inode makes the keys of a queue's segments. It
// is created once and written in place only, since a new file has a new inode. It is
// text with fields of fixed width, a header and a line to a segment number; each is
// written by one pwrite(2) within a page or two, which a kill does not tear. An flock(2)
// on it is what keeps a second process out.
//
//	postbus queue 1: never replace or copy this file, its inode makes the keys
//	name jobs
//	created 2026-11-26T15:29:51Z
//	uid 0000000999
//	dev 0x000000000000fe00 ino 0x0000000000021c5f
//	boot 2555d6bc-7215-4814-94b2-fba2e3e79766 ipcns 0x00000000effffffb
//	high 0x0000000000000400 messages -000000001
//	segment 001 key 0x01001c5f msqid 0000032769 live
type keyFile struct {
	f       *os.File
	path    string
	created string
	uid     int
	host    hostID
	dev     uint64
	ino     uint64
	high    uint64 // no message ever had a higher seq
	count   int    // messages at the last Close; -1 since the open after it
	lines   []segmentLine
	start   int64 // where they begin
}

// hostID says which kernel's queues, since its start, and which IPC namespace's.
type hostID struct {
	boot string
	ns   uint64
}

const headerTop = "postbus queue 1: never replace or copy this file, its inode makes the keys\nname %s\n"

const headerFields = `created %s
uid %010d
dev 0x%016x ino 0x%016x
boot %36s ipcns 0x%016x
high 0x%016x messages %010d
`

const lineFormat = "segment %03d key 0x%08x msqid %010d %-8s\n"

func readHostID() (hostID, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return hostID{}, fmt.Errorf("store: the id of this boot: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/ipc", &st); err != nil && !errors.Is(err, unix.ENOENT) {
		return hostID{}, fmt.Errorf("store: the IPC namespace: %w", err)
	}
	return hostID{strings.TrimSpace(string(boot)), st.Ino}, nil
}

// checkName refuses what is not the name of a file in the state directory.
func checkName(name string) error {
	if name == "" || len(name) > 200 || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r < ' ' || r == 0x7f }) {
		return fail(ErrBadName, nil, "%q is no name for a queue's files: 1 to 200 bytes without / and control characters, not beginning with a dot", name)
	}
	return nil
}

// openKeyFile opens dir/name.key and locks it, creating it where flags have O_CREATE.
func openKeyFile(dir, name string, flags int) (*keyFile, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name+".key")
	for {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|flags, 0o600)
		if err != nil {
			return nil, fileFailure(err)
		}
		k := &keyFile{f: f, path: path}
		again, err := k.lock()
		if err == nil && !again {
			err = k.load(name)
		}
		if err == nil && !again {
			return k, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// fileFailure puts an error of a file in words.
func fileFailure(err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		return fail(ErrNotAllowed, err, "the state directory must belong to the user the broker runs as")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fail(ErrNoSpace, err, "the file system of the state directory is full: make room on it")
	case errors.Is(err, unix.ENOENT):
		return fail(ErrNotFound, err, "no such queue, or no state directory")
	}
	return fmt.Errorf("store: %w", err)
}

// lock locks the file; again tells that it was deleted in between.
func (k *keyFile) lock() (again bool, err error) {
	if err := unix.Flock(int(k.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, fail(ErrInUse, err, "%s is open in another process: fuser -v %s names it", k.path, k.path)
	}
	var mine, named unix.Stat_t
	if err := unix.Fstat(int(k.f.Fd()), &mine); err != nil {
		return false, fmt.Errorf("store: fstat %s: %w", k.path, err)
	}
	if err := unix.Stat(k.path, &named); err != nil || mine.Ino != named.Ino || mine.Dev != named.Dev {
		return true, nil
	}
	k.dev, k.ino = mine.Dev, mine.Ino
	return false, nil
}

// close unlocks the file, also for a child that was forked and has not yet called exec,
// and closes it.
func (k *keyFile) close() error {
	return errors.Join(unix.Flock(int(k.f.Fd()), unix.LOCK_UN), k.f.Close())
}

// load reads the file, or writes the header of a new one.
func (k *keyFile) load(name string) error {
	text, err := io.ReadAll(k.f)
	if err != nil {
		return fmt.Errorf("store: read %s: %w", k.path, err)
	}
	if len(text) == 0 { // new, or its maker was killed right here
		return k.create(name)
	}
	dev, ino := k.dev, k.ino
	if err := k.parse(string(text), name); err != nil {
		return fail(ErrDamaged, err, "%s is not what was written: remove it and %s.log to begin anew; the kernel queues of it, if any, are shown by ipcs -q", k.path, strings.TrimSuffix(k.path, ".key"))
	}
	if euid := os.Geteuid(); k.uid != euid {
		return fail(ErrNotAllowed, unix.EPERM, "%s and its kernel queues belong to uid %d, this is uid %d: run as that user", k.path, k.uid, euid)
	}
	return k.checkPlace(dev, ino)
}

func (k *keyFile) create(name string) (err error) {
	k.created, k.uid = time.Now().UTC().Format(time.RFC3339), os.Geteuid()
	if k.host, err = readHostID(); err != nil {
		return err
	}
	if err := k.writeHeader(name); err != nil {
		return err
	}
	// Once in the queue's life, so that a power cut leaves a file that can be read.
	if err := k.f.Sync(); err != nil {
		return fileFailure(err)
	}
	dir, err := os.Open(filepath.Dir(k.path))
	if err != nil {
		return fileFailure(err)
	}
	defer dir.Close()
	return dir.Sync()
}

// parse sets all fields from text.
func (k *keyFile) parse(text, name string) error {
	lines := strings.SplitAfter(text, "\n")
	if len(lines) < 8 || lines[1] != "name "+name+"\n" {
		return errors.New("no header of this queue")
	}
	_, err := fmt.Sscanf(strings.Join(lines[2:7], ""), headerFields,
		&k.created, &k.uid, &k.dev, &k.ino, &k.host.boot, &k.host.ns, &k.high, &k.count)
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	for i, line := range lines[7:] {
		if line == "" {
			break
		}
		var number int
		var key uint32
		var s segmentLine
		if _, err := fmt.Sscanf(line, "segment %d key 0x%x msqid %d %s\n", &number, &key, &s.id, &s.state); err != nil || number != i+1 || number > maxSegments {
			return fmt.Errorf("line %d: %q", i+8, line)
		}
		s.key = Key(key)
		k.lines = append(k.lines, s)
	}
	return nil
}

// checkPlace compares the file's place, dev and ino, with the recorded one. A copy with
// the original's queues in it must not take them; after a reboot there are none.
func (k *keyFile) checkPlace(dev, ino uint64) error {
	host, err := readHostID()
	if err != nil {
		return err
	}
	if ino != k.ino && host == k.host {
		for _, s := range k.lines {
			if s.state == segmentLive {
				return fail(ErrDamaged, nil, "%s is a copy (inode %d, written as %d): its kernel queues belong to the original; put that back, or remove this file to begin anew", k.path, ino, k.ino)
			}
		}
	}
	k.dev, k.ino = dev, ino // a dev may change when a file system is mounted again
	return nil
}

func (k *keyFile) name() string { return strings.TrimSuffix(filepath.Base(k.path), ".key") }

func (k *keyFile) header(name string) string {
	return fmt.Sprintf(headerTop+headerFields, name, k.created, k.uid, k.dev, k.ino, k.host.boot, k.host.ns, k.high, k.count)
}

func (k *keyFile) writeHeader(name string) error {
	return k.write(k.header(name), 0)
}

func (k *keyFile) write(text string, at int64) error {
	if _, err := k.f.WriteAt([]byte(text), at); err != nil {
		return fileFailure(err)
	}
	return nil
}

// key returns the key of segment number.
func (k *keyFile) key(number int) Key { return ftok(k.dev, k.ino, number) }

// line returns what is recorded of segment number.
func (k *keyFile) line(number int) segmentLine {
	if number > len(k.lines) {
		return segmentLine{state: segmentFree}
	}
	return k.lines[number-1]
}

// set records segment number, which is at most one above those recorded.
func (k *keyFile) set(number int, s segmentLine) error {
	text := fmt.Sprintf(lineFormat, number, uint32(s.key), s.id, s.state)
	if k.start == 0 {
		k.start = int64(len(k.header(k.name()))) // all fields are of fixed width
	}
	if err := k.write(text, k.start+int64((number-1)*len(text))); err != nil {
		return err
	}
	if number > len(k.lines) {
		k.lines = append(k.lines, s)
	} else {
		k.lines[number-1] = s
	}
	return nil
}

// reset drops all lines, then records the host as it is now: killed in between, the
// next open finds the old host again and does the same.
func (k *keyFile) reset(host hostID) error {
	if err := k.f.Truncate(int64(len(k.header(k.name())))); err != nil {
		return fileFailure(err)
	}
	k.lines, k.host = nil, host
	return k.writeHeader(k.name())
}
