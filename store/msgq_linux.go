package store

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// What linux/msg.h has and x/sys has not. There is no MSG_NOERROR here: with it
// msgrcv cuts a message that is larger than the buffer, and the rest is gone (msgop(2)).
const (
	msgCopy = 0o40000 // MSG_COPY, since Linux 3.8, with CONFIG_CHECKPOINT_RESTORE

	mtypeSize = 8 // struct msgbuf begins with a long
)

// msqidDS is struct msqid64_ds of the 64-bit architectures (asm-generic/msgbuf.h).
type msqidDS struct {
	perm   unix.SysvIpcPerm
	stime  int64
	rtime  int64
	ctime  int64
	cbytes uint64 // bytes in the queue, without headers
	qnum   uint64 // messages in the queue
	qbytes uint64 // most of either
	lspid  int32
	lrpid  int32
	_      [2]uint64
}

// msgget returns the id of key's queue. ENOENT: none, and no IPC_CREAT. EEXIST: one,
// with IPC_CREAT|IPC_EXCL, whoever's it is. EACCES: one without the rights in flags.
// ENOSPC: the namespace has kernel.msgmni queues (32000 unless raised), of all users. ENOMEM.
// The umask does not count (msgget(2)).
func msgget(key Key, flags int) (int, error) {
	id, _, errno := unix.Syscall(unix.SYS_MSGGET, uintptr(key), uintptr(flags), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(id), nil
}

// msgsnd adds msg, a struct msgbuf: the type, above 0, in mtypeSize bytes of the host's
// order, then the text, which may be empty. It never waits, so the scheduler is not told of
// the call (RawSyscall6), which saves a tenth. EAGAIN: bytes or messages
// would pass msg_qbytes (kernel.msgmnb, 16384 unless raised). EINVAL: the text is longer than
// kernel.msgmax (8192), the type not above 0, or there is no such queue (any more). EACCES.
// ENOMEM: out of kernel memory, or of the memory cgroup's. EIDRM (msgop(2)).
func msgsnd(id int, msg []byte) error {
	for {
		_, _, errno := unix.RawSyscall6(unix.SYS_MSGSND, uintptr(id), uintptr(unsafe.Pointer(&msg[0])),
			uintptr(len(msg)-mtypeSize), unix.IPC_NOWAIT, 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR: // never restarted by the kernel (signal(7))
		default:
			return errno
		}
	}
}

// msgrcv moves the oldest message of type mtype (0: of any) into msg, a struct msgbuf,
// and returns how long it is with its type; with msgCopy in flags it copies the one at place
// mtype, from 0, and leaves it there. It never waits, see msgsnd. ENOMSG: none. E2BIG: msg is too short,
// and nothing was taken. EINVAL: no such queue (any more). ENOSYS: msgCopy is not in this
// kernel. EACCES, EIDRM. EFAULT: msg is no memory, and the message is gone (msgop(2)).
func msgrcv(id int, msg []byte, mtype int64, flags int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_MSGRCV, uintptr(id), uintptr(unsafe.Pointer(&msg[0])),
			uintptr(len(msg)-mtypeSize), uintptr(mtype), uintptr(flags|unix.IPC_NOWAIT), 0)
		switch errno {
		case 0:
			return mtypeSize + int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// msgctl does cmd. IPC_STAT fills ds and needs the right to read (EACCES). IPC_SET takes
// uid, gid, mode and qbytes from ds and IPC_RMID removes the queue with all in it: EPERM
// unless owner or creator, or for qbytes above kernel.msgmnb without CAP_SYS_RESOURCE. EINVAL,
// EIDRM: no such queue (any more) (msgctl(2)).
func msgctl(id, cmd int, ds *msqidDS) error {
	_, _, errno := unix.Syscall(unix.SYS_MSGCTL, uintptr(id), uintptr(cmd), uintptr(unsafe.Pointer(ds)))
	if errno != 0 {
		return errno
	}
	return nil
}
