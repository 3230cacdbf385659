package store

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

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
		if host == k.host && line.state == segmentMaking {
			if err := k.reclaim(line, -1); err != nil {
				return err
			}
		}
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
