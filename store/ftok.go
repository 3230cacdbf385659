package store

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Key names a System V object, as ftok(3) makes it. It is signed, so that a
// segment from 128 up gives a negative number; ipcs(1) prints it as String does.
type Key int32

// The keys that msgget(2) must never be called with. 0 is IPC_PRIVATE: each call
// would make one more queue that nobody finds again. -1 is what an unchecked ftok
// returns on error, hence one common queue of all programs that did not look.
const (
	keyPrivate Key = 0
	keyFailed  Key = -1
)

// String returns the key as ipcs(1) prints it, such as 0x0113a4f2.
func (k Key) String() string { return fmt.Sprintf("0x%08x", uint32(k)) }

// Ftok returns the key of the file at path, following symbolic links, for project
// id proj, of which the low 8 bits count. It equals ftok(3) of glibc and musl, Perl's
// IPC::SysV::ftok and Python's sysv_ipc.ftok. A key has 16 useful bits on one
// file system: it proves nothing about whose queue it names.
func Ftok(path string, proj int) (Key, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return keyFailed, &os.PathError{Op: "ftok", Path: path, Err: err}
	}
	return ftok(st.Dev, st.Ino, proj), nil
}

func ftok(dev, ino uint64, proj int) Key {
	return Key(uint32(ino&0xffff) | uint32(dev&0xff)<<16 | uint32(proj&0xff)<<24)
}
