package broker

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerGroups returns the supplementary groups of the process at the other end, or
// nil where the kernel does not tell. x/sys has no wrapper for SO_PEERGROUPS
// (unix(7)): it fills an array of gid_t and answers ERANGE with the length needed.
func peerGroups(fd int) []uint32 {
	groups := make([]uint32, 32)
	for range 2 {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0 && size == 0:
			return nil
		case errno == 0:
			return append([]uint32(nil), groups[:size/4]...)
		case errno != unix.ERANGE:
			return nil
		}
		groups = make([]uint32, size/4)
	}
	return nil
}
