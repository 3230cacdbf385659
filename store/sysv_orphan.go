package store

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Orphan is a kernel queue with a key of a queue's key file, of this user, that the key
// file does not have as its own: left by a crash, or from before a change of IPC
// namespace; or another program's whose file has an inode with the same low 16 bits.
type Orphan struct {
	Name     string // of the queue
	Segment  int
	Key      Key
	ID       int // msqid
	Messages int
	Bytes    int
}

// SysVOrphans finds orphans of the queues in dir. It changes nothing, takes no lock, and may run
// beside a broker.
func SysVOrphans(dir string) ([]Orphan, error) {
	// The kernel's list first: what is made after it is not in it.
	list, err := os.Open("/proc/sysvipc/msg")
	if err != nil {
		return nil, fileFailure(err)
	}
	defer list.Close()
	byKey := make(map[Key]Orphan)
	for lines := bufio.NewScanner(list); lines.Scan(); {
		var key Key
		var o Orphan
		var mode, lspid, lrpid, uid, gid, cuid int
		n, _ := fmt.Sscan(lines.Text(), &key, &o.ID, &mode, &o.Bytes, &o.Messages, &lspid, &lrpid, &uid, &gid, &cuid)
		if n == 10 && uid == os.Geteuid() && cuid == uid {
			o.Key = key
			byKey[key] = o
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fileFailure(err)
	}
	var all []Orphan
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".key") {
			continue
		}
		found, err := orphansOf(filepath.Join(dir, file.Name()), byKey)
		if err != nil {
			return all, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func orphansOf(path string, byKey map[Key]Orphan) (all []Orphan, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fileFailure(err)
	}
	k := &keyFile{path: path}
	name := k.name()
	if err := k.parse(string(text), name); err != nil {
		return nil, fail(ErrDamaged, err, "%s is not what was written", path)
	}
	host, err := readHostID()
	if err != nil {
		return nil, err
	}
	for number := 1; number <= maxSegments; number++ {
		key, err := Ftok(path, number)
		if err != nil {
			return all, fileFailure(err)
		}
		o, ok := byKey[key]
		line := k.line(number)
		mine := line.state == segmentMaking || (line.state == segmentLive || line.state == segmentRemoving) && line.id == o.ID
		if ok && !(mine && host == k.host) {
			o.Name, o.Segment = name, number
			all = append(all, o)
		}
	}
	return all, nil
}

// DeleteSysV removes queue name for good: its kernel queues, with all in them, then
// its files. It fails with ErrInUse while the store is open and with ErrNotFound where there is none.
func DeleteSysV(dir, name string) error {
	k, err := openKeyFile(dir, name, 0)
	if err != nil {
		return err
	}
	defer k.close()
	host, err := readHostID()
	if err != nil {
		return err
	}
	for i, line := range k.lines {
		if host != k.host || line.state != segmentLive && line.state != segmentRemoving {
			continue
		}
		if _, err := k.stat(i + 1); gone(err) {
			continue
		} else if err != nil {
			return fail(ErrNotAllowed, err, "queue %s: kernel queue %d", name, line.id)
		}
		if err := msgctl(line.id, unix.IPC_RMID, nil); err != nil && !gone(err) {
			return fail(ErrNotAllowed, err, "queue %s: remove kernel queue %d", name, line.id)
		}
	}
	base := strings.TrimSuffix(k.path, ".key")
	for _, suffix := range []string{".log", ".log.new", ".log.bad", ".rot", ".key"} {
		if err := os.Remove(base + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fileFailure(err)
		}
	}
	return nil
}
