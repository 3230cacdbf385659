package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Of a Foreign's calls.
var (
	ErrEmpty   = errors.New("store: no such message in the kernel queue")                     // ENOMSG
	ErrRemoved = errors.New("store: kernel queue removed")                                    // EIDRM, or EINVAL for its id
	ErrNoCopy  = errors.New("store: this kernel has no MSG_COPY (CONFIG_CHECKPOINT_RESTORE)") // ENOSYS
)

// TypeSize is how many bytes of type a Record begins with.
const TypeSize = mtypeSize

// Record is a message of a kernel queue as msgop(2) has it, struct msgbuf: TypeSize bytes
// of type in the host's order, then the body, which may be empty.
type Record []byte

// NewRecord returns a record of type mtype with a copy of body.
func NewRecord(mtype int64, body []byte) Record {
	return append(binary.NativeEndian.AppendUint64(make(Record, 0, TypeSize+len(body)), uint64(mtype)), body...)
}

// Type returns the type; the kernel has none below 1.
func (r Record) Type() int64 { return int64(binary.NativeEndian.Uint64(r)) }

// Body returns the rest, not a copy.
func (r Record) Body() []byte { return r[TypeSize:] }

// Ours tells whether it is a record of a SysV store, which no other program makes by chance.
func (r Record) Ours() bool {
	p, ok := decodeChunk(r)
	return ok && len(r.Body()) == chunkHeader+len(p.chunk)
}

// Foreign is a System V message queue of another program, found by its key or id. It
// never waits: a full or empty queue is an error. It holds nothing open. Its methods may be called
// by several goroutines.
type Foreign struct {
	key Key
	id  int
}

// OpenForeign finds the queue of key. It fails with ErrNotFound where there is none, and asks for
// no rights yet. Keys 0 and -1 are refused: they name no queue of anybody's in particular.
func OpenForeign(key Key) (*Foreign, error) {
	if err := checkForeignKey(key); err != nil {
		return nil, err
	}
	id, err := msgget(key, 0)
	if err != nil {
		return nil, foreignOpenFailure(key, err)
	}
	return &Foreign{key, id}, nil
}

// OpenForeignID finds the queue with msqid id, whatever its key; it needs the right to read it.
func OpenForeignID(id int) (*Foreign, error) {
	f := &Foreign{id: id}
	q, err := f.Stat()
	if errors.Is(err, ErrRemoved) {
		return nil, fail(ErrNotFound, err, "there is no kernel queue with id %d in this IPC namespace: ipcs -q lists those there are", id)
	} else if err != nil {
		return nil, err
	}
	f.key = q.Key
	return f, nil
}

// MakeForeign finds the queue of key, or makes one with mode's permissions, not less the
// umask; made tells which. It fails with ErrNoSpace where the host has all its queues.
func MakeForeign(key Key, mode uint32) (f *Foreign, made bool, err error) {
	if err := checkForeignKey(key); err != nil {
		return nil, false, err
	}
	for {
		id, err := msgget(key, unix.IPC_CREAT|unix.IPC_EXCL|int(mode&0o777))
		if err == nil {
			return &Foreign{key, id}, true, nil
		}
		if err != unix.EEXIST {
			return nil, false, foreignOpenFailure(key, err)
		}
		if f, err := OpenForeign(key); !errors.Is(err, ErrNotFound) {
			return f, false, err
		}
	}
}

func checkForeignKey(key Key) error {
	switch key {
	case keyPrivate:
		return fail(ErrBadName, nil, "key 0 is IPC_PRIVATE, which finds no queue: name it by its id")
	case keyFailed:
		return fail(ErrBadName, nil, "key -1 is what ftok(3) returns where it failed; no program means that one: look at the path it was given")
	}
	return nil
}

func foreignOpenFailure(key Key, err error) error {
	switch err {
	case unix.ENOENT:
		return fail(ErrNotFound, err, "there is no kernel queue with key %v in this IPC namespace: start the program that makes it, or ipcs -q to see those there are", key)
	case unix.ENOSPC:
		return fail(ErrNoSpace, err, "the host has all its %d kernel queues (kernel.msgmni): ipcs -q shows whose they are; remove some, or sysctl -w kernel.msgmni=%d",
			readLimits().mni, 2*readLimits().mni)
	case unix.ENOMEM:
		return fail(ErrNoSpace, err, "the kernel has no memory for one more queue")
	case unix.EACCES:
		return fail(ErrNotAllowed, err, "the kernel queue with key %v has no rights for this user: ipcs -q -i shows its mode and owner", key)
	}
	return fmt.Errorf("store: msgget key %v: %w", key, err)
}

// ID returns the msqid. It never names another queue before some 32,000 more were made and removed.
func (f *Foreign) ID() int { return f.id }

// Key returns the key; 0 is that of a private queue.
func (f *Foreign) Key() Key { return f.key }

// String names the queue for an error.
func (f *Foreign) String() string {
	if f.key == keyPrivate {
		return fmt.Sprintf("kernel queue %d", f.id)
	}
	return fmt.Sprintf("kernel queue %d (key %v)", f.id, f.key)
}

// Stat returns the queue's numbers, all of one moment; it needs the right to read.
func (f *Foreign) Stat() (HostQueue, error) {
	var ds msqidDS
	if err := msgctl(f.id, unix.IPC_STAT, &ds); err != nil {
		return HostQueue{}, f.failure("look at", err)
	}
	return HostQueue{
		Key: Key(ds.perm.Key), ID: f.id, Mode: ds.perm.Mode & 0o777,
		UID: int(ds.perm.Uid), GID: int(ds.perm.Gid), CUID: int(ds.perm.Cuid), CGID: int(ds.perm.Cgid),
		Messages: int(ds.qnum), Bytes: int(ds.cbytes), Limit: int(ds.qbytes),
		LastSender: int(ds.lspid), LastReceiver: int(ds.lrpid),
		Sent: unixTime(ds.stime), Received: unixTime(ds.rtime), Changed: unixTime(ds.ctime),
	}, nil
}

// unixTime returns the zero time for 0: never.
func unixTime(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0)
}

// Copy copies the message at place index, 0 being the oldest, into buf, of TypeSize bytes at
// least, and returns the part used; the message stays. It fails with ErrEmpty past the last one,
// with ErrTooLarge where buf is too short, with ErrNoCopy, ErrNotAllowed and ErrRemoved. The kernel walks
// the queue to the place, and first allocates a message of buf's length.
func (f *Foreign) Copy(buf Record, index int) (Record, error) {
	return f.receive(buf, int64(index), msgCopy)
}

// Receive takes the oldest message of type mtype, or of any for 0, into buf and returns the
// part used. It fails as Copy does; then no message was taken. A message taken is nowhere but in buf,
// and the kernel has written its type there before its body.
func (f *Foreign) Receive(buf Record, mtype int64) (Record, error) {
	if mtype < 0 { // the kernel would take the lowest type
		return nil, fail(ErrBadEntry, nil, "a message of type %d: types are above 0", mtype)
	}
	return f.receive(buf, mtype, 0)
}

func (f *Foreign) receive(buf Record, mtype int64, flags int) (Record, error) {
	n, err := msgrcv(f.id, buf, mtype, flags)
	switch err {
	case nil:
		return buf[:n], nil
	case unix.ENOMSG:
		return nil, ErrEmpty
	case unix.ENOSYS:
		return nil, ErrNoCopy
	case unix.E2BIG:
		return nil, fail(ErrTooLarge, err, "a message of %v is longer than the %d bytes there are for it, and stays", f, len(buf)-TypeSize)
	}
	return nil, f.failure("receive from", err)
}

// Send adds r, whose type must be above 0. It fails with ErrFull where the queue has no room
// now, with ErrTooLarge where it never will, with ErrNoSpace, ErrNotAllowed and ErrRemoved.
func (f *Foreign) Send(r Record) error {
	if r.Type() <= 0 {
		return fail(ErrBadEntry, unix.EINVAL, "a message of type %d: types are from 1 to %d", r.Type(), int64(math.MaxInt64))
	}
	err := msgsnd(f.id, r)
	if err == nil {
		return nil
	}
	size := len(r.Body())
	q, statErr := f.Stat()
	switch {
	case err == unix.EINVAL && size > readLimits().max:
		return fail(ErrTooLarge, err, "a body of %d bytes is above kernel.msgmax, %d bytes: sysctl -w kernel.msgmax=%d", size, readLimits().max, size)
	case err == unix.EAGAIN && statErr == nil && size > q.Limit:
		return fail(ErrTooLarge, err, "a body of %d bytes is above the %d bytes that %v takes in all: raise its msg_qbytes, and kernel.msgmnb for new ones: sysctl -w kernel.msgmnb=%d",
			size, q.Limit, f, 2*size)
	case err == unix.EAGAIN && statErr == nil:
		return fail(ErrFull, err, "%v is full: %d messages of %d bytes, of at most %d of either (msg_qbytes); its reader has to take some", f, q.Messages, q.Bytes, q.Limit)
	case err == unix.EAGAIN:
		return fail(ErrFull, err, "%v is full; its reader has to take some messages", f)
	}
	return f.failure("send to", err)
}

// Remove removes the queue with all that is in it; its owner, its creator and root may.
func (f *Foreign) Remove() error {
	if err := msgctl(f.id, unix.IPC_RMID, nil); err != nil {
		return f.failure("remove", err)
	}
	return nil
}

// failure puts an errno of a call on the queue in words.
func (f *Foreign) failure(verb string, err error) error {
	switch err {
	case unix.EINVAL, unix.EIDRM:
		return fail(ErrRemoved, err, "%s %v: there is none of that id (any more): somebody removed it (ipcrm, or the program that made it)", verb, f)
	case unix.EACCES, unix.EPERM:
		return fail(ErrNotAllowed, err, "%s %v: its mode does not let this user: ipcs -q -i %d shows mode and owner", verb, f, f.id)
	case unix.ENOMEM:
		return fail(ErrNoSpace, err, "%s %v: the kernel has no memory for it, or the memory cgroup of this process has none", verb, f)
	}
	return fmt.Errorf("store: %s %v: %w", verb, f, err)
}
