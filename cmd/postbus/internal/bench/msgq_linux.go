package bench

import (
	"encoding/binary"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The yardstick of level kernel: msgsnd and msgrcv on message queues without keys, and
// nothing else. A queue has room for msgmnb bytes (16384 unless raised), so there are
// as many as a round needs; they are filled, and emptied, one after the other.

// mtypeSize is how many bytes a struct msgbuf has before its text (msgop(2)).
const mtypeSize = 8

// makeMsgQueues returns queues with room for that many messages of size bytes.
func makeMsgQueues(messages, size int) ([]int, error) {
	var ids []int
	for room := 0; room < messages; {
		id, _, errno := unix.Syscall(unix.SYS_MSGGET, unix.IPC_PRIVATE, unix.IPC_CREAT|0o600, 0)
		if errno != 0 {
			removeMsgQueues(ids)
			return nil, os.NewSyscallError("msgget", errno)
		}
		ids = append(ids, int(id))
		limit, err := msgQueueBytes(int(id))
		if err != nil {
			removeMsgQueues(ids)
			return nil, err
		}
		room += limit / size
	}
	return ids, nil
}

// msgQueueBytes returns how many bytes a queue has room for.
func msgQueueBytes(id int) (int, error) {
	// struct msqid64_ds of the 64-bit architectures (asm-generic/msgbuf.h).
	var ds struct {
		perm                 unix.SysvIpcPerm
		stime, rtime, ctime  int64
		cbytes, qnum, qbytes uint64
		lspid, lrpid         int32
		_                    [2]uint64
	}
	_, _, errno := unix.Syscall(unix.SYS_MSGCTL, uintptr(id), unix.IPC_STAT, uintptr(unsafe.Pointer(&ds)))
	if errno != 0 {
		return 0, os.NewSyscallError("msgctl", errno)
	}
	return int(ds.qbytes), nil
}

func removeMsgQueues(ids []int) {
	for _, id := range ids {
		_, _, _ = unix.Syscall(unix.SYS_MSGCTL, uintptr(id), unix.IPC_RMID, 0)
	}
}

// msgOutlet sends with msgsnd.
type msgOutlet struct {
	ids  []int
	at   int    // the queue that is being filled
	text []byte // struct msgbuf
}

func openMsgOutlet(j *job) (outlet, error) {
	runtime.LockOSThread()
	o := &msgOutlet{ids: j.MsgIDs, text: make([]byte, mtypeSize+j.Size)}
	binary.NativeEndian.PutUint64(o.text, 1) // an mtype must be above 0
	return o, nil
}

// many is how often the clock is looked at.
func (o *msgOutlet) many() int { return 64 }

func (o *msgOutlet) send(n int, first tag, at int64, _ float64) error {
	for k := range n {
		stampBody(o.text[mtypeSize:], first+tag(k), at)
		for tries := 0; ; {
			_, _, errno := unix.RawSyscall6(unix.SYS_MSGSND, uintptr(o.ids[o.at]), uintptr(unsafe.Pointer(&o.text[0])),
				uintptr(len(o.text)-mtypeSize), unix.IPC_NOWAIT, 0, 0)
			if errno == 0 {
				break
			}
			if errno != unix.EAGAIN || tries == len(o.ids) {
				return os.NewSyscallError("msgsnd", errno)
			}
			tries++
			o.at = (o.at + 1) % len(o.ids)
		}
	}
	return nil
}

func (o *msgOutlet) flush() error { return nil }
func (o *msgOutlet) close()       {}

// msgSource takes with msgrcv, which is its ack too.
type msgSource struct {
	consumer *consumer
	ids      []int
	at       int
	text     []byte
}

func openMsgSource(j *job, k *consumer) (source, error) {
	runtime.LockOSThread()
	return &msgSource{consumer: k, ids: j.MsgIDs, text: make([]byte, mtypeSize+j.Size)}, nil
}

func (s *msgSource) begin() error { return nil }
func (s *msgSource) end() error   { return nil }
func (s *msgSource) close()       {}

func (s *msgSource) step() error {
	n := s.consumer.claim(64)
	for range n {
		for tries := 0; ; {
			_, _, errno := unix.RawSyscall6(unix.SYS_MSGRCV, uintptr(s.ids[s.at]), uintptr(unsafe.Pointer(&s.text[0])),
				uintptr(len(s.text)-mtypeSize), 0, unix.IPC_NOWAIT, 0)
			if errno == 0 {
				break
			}
			if errno != unix.ENOMSG || tries == len(s.ids) {
				return os.NewSyscallError("msgrcv", errno)
			}
			tries++
			s.at = (s.at + 1) % len(s.ids)
		}
		t, _, err := readBody(s.text[mtypeSize:])
		if err == nil {
			err = s.consumer.account(t)
		}
		if err != nil {
			return err
		}
	}
	s.consumer.confirm(n)
	return nil
}
