package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// HostQueue is what the kernel tells of a message queue, whoever's it is.
type HostQueue struct {
	Key                     Key
	ID                      int // msqid
	Mode                    uint32
	UID, GID                int // of the owner
	CUID, CGID              int // of the creator
	Messages, Bytes         int
	Limit                   int // msg_qbytes, most of either; 0 where it was not asked for
	LastSender              int // pid of the last msgsnd; 0: none yet. It may be another process's by now
	LastReceiver            int // pid of the last msgrcv
	Sent, Received, Changed time.Time
}

// HostQueues returns the message queues of this IPC namespace, as /proc/sysvipc/msg has them:
// those of all users, without Limit.
func HostQueues() ([]HostQueue, error) {
	list, err := os.ReadFile("/proc/sysvipc/msg")
	if err != nil {
		return nil, fmt.Errorf("store: the list of kernel queues: %w", err)
	}
	var all []HostQueue
	lines := bufio.NewScanner(bytes.NewReader(list))
	for first := true; lines.Scan(); first = false {
		if first { // the names of the columns
			continue
		}
		var q HostQueue
		var sent, received, changed int64
		if _, err := fmt.Sscanf(lines.Text(), "%d %d %o %d %d %d %d %d %d %d %d %d %d %d",
			&q.Key, &q.ID, &q.Mode, &q.Bytes, &q.Messages, &q.LastSender, &q.LastReceiver,
			&q.UID, &q.GID, &q.CUID, &q.CGID, &sent, &received, &changed); err != nil {
			return all, fmt.Errorf("store: the list of kernel queues: line %q: %w", lines.Text(), err)
		}
		q.Sent, q.Received, q.Changed = unixTime(sent), unixTime(received), unixTime(changed)
		all = append(all, q)
	}
	return all, nil
}

// SysVHost returns what the kernel queues of this process belong to: the boot of the host and the
// inode of the IPC namespace. With either, all of them are others.
func SysVHost() (boot string, ipc uint64, err error) {
	host, err := readHostID()
	return host.boot, host.ns, err
}

// SysVKeyFile is what NAME.key says of a queue, to look at: see SysV for what it is for.
type SysVKeyFile struct {
	Name     string // of the queue
	Path     string
	UID      int    // whose queue it is
	Boot     string // the boot of the host whose kernel queues it has,
	IPC      uint64 // and their IPC namespace's inode
	ThisHost bool   // both are those of this process
	High     uint64 // no message has a higher seq
	Messages int    // at the last Close; -1 while it is open, and after a crash

	created string
	base    uint32 // what the keys have in common
	lines   []segmentLine
}

// SysVKeyFiles reads the key files in dir. It changes nothing, takes no lock, and may run beside
// a broker. Where some are damaged it returns the others and, joined, an ErrDamaged for each.
func SysVKeyFiles(dir string) (all []SysVKeyFile, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fileFailure(err)
	}
	host, err := readHostID()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".key") {
			continue
		}
		k, fileErr := readSysVKeyFile(filepath.Join(dir, e.Name()), host)
		if errors.Is(fileErr, os.ErrNotExist) { // deleted meanwhile
			continue
		}
		if fileErr != nil {
			err = errors.Join(err, fileErr)
			continue
		}
		all = append(all, k)
	}
	return all, err
}

func readSysVKeyFile(path string, host hostID) (k SysVKeyFile, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return k, fileFailure(err)
	}
	f := &keyFile{path: path}
	if err := f.parse(string(text), f.name()); err != nil {
		return k, fail(ErrDamaged, err, "%s is not what was written", path)
	}
	key, err := Ftok(path, 0)
	if err != nil {
		return k, fileFailure(err)
	}
	return SysVKeyFile{
		Name: f.name(), Path: path, UID: f.uid, Boot: f.host.boot, IPC: f.host.ns, ThisHost: f.host == host,
		High: f.high, Messages: f.count, created: f.created, base: uint32(key), lines: f.lines,
	}, nil
}

// Claim says what a kernel queue is to a queue's key file.
type Claim int

// The claims.
const (
	Unrelated Claim = iota // its key is none of the file's
	Owned                  // the file has it as a segment, or is about to
	Orphaned               // of the same user, but not in the file: left by a crash, or from before a change of IPC namespace; or another program's that has the key by chance
	Stranger               // of another user: stepped over
)

// Segments returns the msqids of the kernel queues that the file has as its own, by segment number.
func (k *SysVKeyFile) Segments() map[int]int {
	ids := make(map[int]int)
	for i, line := range k.lines {
		if line.state == segmentLive || line.state == segmentRemoving {
			ids[i+1] = line.id
		}
	}
	return ids
}

// Claim tells what q, from a list made before the file was read, is to the file, and which
// segment its key is that of.
func (k *SysVKeyFile) Claim(q *HostQueue) (segment int, c Claim) {
	segment = int(uint32(q.Key) >> 24)
	if uint32(q.Key)&0xffffff != k.base || segment < 1 || segment > maxSegments || q.Key == keyFailed {
		return 0, Unrelated
	}
	if q.UID != k.UID || q.CUID != k.UID {
		return segment, Stranger
	}
	var line segmentLine
	if segment <= len(k.lines) {
		line = k.lines[segment-1]
	}
	switch line.state {
	case segmentMaking:
		if k.ThisHost {
			return segment, Owned
		}
	case segmentLive, segmentRemoving:
		if k.ThisHost && line.id == q.ID {
			return segment, Owned
		}
	}
	return segment, Orphaned
}

// RemoveSysVOrphan removes q, which the key file of queue name in dir has as Orphaned, if it is
// proved that q was that queue's: each record in it is one of ours and of a seq that the queue has used; it
// was made after the queue was; no process that still runs sent to it last; and no other key file in dir
// has it. It fails with ErrNotAllowed where that is not so, and the text says why; an empty one proves
// nothing. It returns how many records were in it.
func RemoveSysVOrphan(dir, name string, q *HostQueue) (records int, err error) {
	files, err := SysVKeyFiles(dir)
	if err != nil {
		return 0, err
	}
	f := &Foreign{key: q.Key, id: q.ID}
	state, err := f.Stat()
	if err != nil {
		return 0, err
	}
	doubt := func(format string, args ...any) error {
		return fail(ErrNotAllowed, nil, "%v is not proved to be queue %s's: %s; if no program needs it: ipcrm -q %d", f, name, fmt.Sprintf(format, args...), q.ID)
	}
	var k *SysVKeyFile
	for i := range files {
		_, c := files[i].Claim(&state)
		switch {
		case c == Owned:
			return 0, doubt("it is queue %s's", files[i].Name)
		case c == Orphaned && files[i].Name == name:
			k = &files[i]
		}
	}
	if k == nil {
		return 0, doubt("its key is none of that queue's, or it is another user's")
	}
	if state.Messages == 0 {
		return 0, doubt("it is empty")
	}
	if pid := state.LastSender; pid == 0 {
		return 0, doubt("who sent to it last is in another pid namespace")
	} else if unix.Kill(pid, 0) != unix.ESRCH {
		return 0, doubt("process %d, which sent to it last, is running", pid)
	}
	if created, err := time.Parse(time.RFC3339, k.created); err != nil || state.Changed.Before(created) {
		return 0, doubt("it is older, of %v", state.Changed)
	}
	for buf := make(Record, TypeSize+state.Bytes); ; records++ {
		r, err := f.Copy(buf, records)
		if errors.Is(err, ErrEmpty) {
			return records, f.Remove()
		} else if err != nil {
			return 0, err
		}
		if !r.Ours() || uint64(r.Type()) > k.High { // the type is the seq
			return 0, doubt("the message at place %d of it is not a record of that queue", records)
		}
	}
}
