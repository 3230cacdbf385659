package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
)

// importJournal is the batch of messages that an import has on the way, in a file that
// is mapped and shared: what is stored in it is in the file at once and survives kill -9.
// An flock(2) on it keeps a second import of the same kernel queue out. All is in the
// host's order.
//
//	0     magic, written last
//	32    u64 state; 40 u64 number of the batch; 48 u64 entries; 56 u64 1: taken, 0: copied
//	64    u64 nonce of the file
//	72    u64 msqid; 80 u64 IPC namespace; 88 boot id
//	128   destination, NUL-terminated
//	4096  entries
//
// An entry is
//
//	0   u64 bytes of body; while it is being taken, those there is room for
//	8   u64 type of the copied message
//	16  u64 step; 24 u64 1 + bytes received, 0: not known; 32 u64 1: kept by the destination
//	40  SHA-256 of the copied message
//	72  struct msgbuf, into which msgrcv receives
//
// msgrcv takes a message off its queue and then writes it to where it was told, the type
// first. A SIGKILL is acted on when the call returns to the program, not between the two
// (but for a page fault; the pages are written just before). So an entry whose type was
// cleared before and is there again was received, and one where it is not was not. How
// long the message is only the call's result tells: see adopt.
type importJournal struct {
	f     *os.File
	boot  string // of the host,
	ipc   uint64 // and the IPC namespace, now
	mem   []byte
	end   int   // where the next entry begins
	at    []int // where the entries begin
	limit int   // most entries
}

// States of a journal.
const (
	journalIdle    = 0 // no batch
	journalFilling = 1 // messages are being copied or taken
	journalFilled  = 2 // the batch is complete, and not yet all kept by the destination
	journalKept    = 3 // it is; the copied ones are being received
)

// Steps of an entry in a batch of copies.
const (
	entryCopied = 0
	entryTaking = 1 // its type in msgbuf was cleared; msgrcv comes next
	entryDone   = 2 // received, or another reader was faster
)

const (
	journalMagic   = "postbus sysv import 1\n"
	journalEntries = 4096      // where they begin
	journalSize    = 256 << 10 // of a new file: a batch of usual messages
	entryHeader    = 72
)

// openJournal opens and locks path, or creates it where create is set. Without create
// and without file it returns nil.
func openJournal(path string, create bool) (*importJournal, error) {
	boot, ipc, err := store.SysVHost()
	if err != nil {
		return nil, err
	}
	for {
		flags := os.O_RDWR | unix.O_NOFOLLOW
		if create {
			flags |= os.O_CREATE
		}
		f, err := os.OpenFile(path, flags, 0o600)
		if errors.Is(err, os.ErrNotExist) && !create {
			return nil, nil
		} else if err != nil {
			return nil, fmt.Errorf("the journal of this import: name a directory of your own with --state: %w", err)
		}
		j := &importJournal{f: f, boot: boot, ipc: ipc}
		again, err := j.lock(path)
		if err == nil && !again {
			err = j.load()
		}
		if err == nil && !again {
			return j, nil
		}
		if j.mem != nil { // the lock lasts as long as the mapping
			unix.Munmap(j.mem)
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// lock locks the file; again tells that it was removed in between.
func (j *importJournal) lock(path string) (again bool, err error) {
	if err := unix.Flock(int(j.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, fmt.Errorf("%s is locked: another postbus sysv import of this kernel queue runs: fuser -v %s names it: %w", path, path, err)
	}
	var mine, named unix.Stat_t
	if err := unix.Fstat(int(j.f.Fd()), &mine); err != nil {
		return false, fmt.Errorf("fstat %s: %w", path, err)
	}
	err = unix.Stat(path, &named)
	return err != nil || mine.Ino != named.Ino || mine.Dev != named.Dev, nil
}

// load maps the file and finds its entries.
func (j *importJournal) load() error {
	st, err := j.f.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, len(journalMagic))
	_, err = j.f.ReadAt(head, 0)
	if err == nil && string(head) == journalMagic && st.Size() >= journalEntries {
		if err := j.mapped(int(st.Size())); err != nil {
			return err
		}
		return j.scan()
	}
	// New, or its maker was killed right here.
	if err := j.f.Truncate(0); err != nil {
		return err
	}
	if err := j.grow(journalSize); err != nil {
		return err
	}
	j.setWord(64, rand.Uint64())
	copy(j.mem, journalMagic)
	j.end = journalEntries
	return nil
}

// grow makes the file at least size bytes long; there must be no entries.
func (j *importJournal) grow(size int) error {
	st, err := j.f.Stat()
	if err != nil {
		return err
	}
	size = (size + 4095) &^ 4095
	if more := size - int(st.Size()); more > 0 {
		// Written, not only made longer: a hole on a full disk would be a SIGBUS.
		if _, err := j.f.WriteAt(make([]byte, more), st.Size()); err != nil {
			return fmt.Errorf("make room for the messages on the way: %w", err)
		}
	}
	return j.mapped(size)
}

func (j *importJournal) mapped(size int) error {
	if j.mem != nil {
		if err := unix.Munmap(j.mem); err != nil {
			return err
		}
	}
	mem, err := unix.Mmap(int(j.f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap %s: %w", j.f.Name(), err)
	}
	j.mem = mem
	return nil
}

// scan finds the entries of a batch that an import before has left.
func (j *importJournal) scan() error {
	j.at, j.end = j.at[:0], journalEntries
	if j.state() == journalIdle {
		return nil
	}
	for range j.word(48) {
		size := uint64(1) << 62
		if j.end+entryHeader <= len(j.mem) {
			size = j.word(j.end)
		}
		if size > uint64(len(j.mem)) || j.after(int(size)) > len(j.mem) {
			return fmt.Errorf("%s is not what was written: entry %d of %d does not fit the file; move it away and see that no message is missing",
				j.f.Name(), len(j.at)+1, j.word(48))
		}
		j.at = append(j.at, j.end)
		j.end = j.after(int(size))
	}
	return nil
}

func (j *importJournal) pointer(at int) *uint64 { return (*uint64)(unsafe.Pointer(&j.mem[at])) }

// word and setWord keep their order as seen in the file, which plain reads and writes need not.
func (j *importJournal) word(at int) uint64       { return atomic.LoadUint64(j.pointer(at)) }
func (j *importJournal) setWord(at int, n uint64) { atomic.StoreUint64(j.pointer(at), n) }

func (j *importJournal) state() uint64     { return j.word(32) }
func (j *importJournal) setState(s uint64) { j.setWord(32, s) }

// taken tells that the batch is not in the kernel queue any more.
func (j *importJournal) taken() bool { return j.word(56) == 1 }

func (j *importJournal) destination() string { return cString(j.mem[128:journalEntries]) }

func cString(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}

// from tells whether the batch is of the kernel queue id as it is now.
func (j *importJournal) from(id int) bool {
	return id == int(j.word(72)) && j.ipc == j.word(80) && j.boot == cString(j.mem[88:128])
}

// begin begins a batch of messages from kernel queue id.
func (j *importJournal) begin(id int, destination string, taken bool) {
	j.setState(journalIdle)
	j.setWord(48, 0)
	j.setWord(40, j.word(40)+1)
	j.setWord(56, 0)
	if taken {
		j.setWord(56, 1)
	}
	j.setWord(72, uint64(id))
	j.setWord(80, j.ipc)
	clear(j.mem[88:journalEntries])
	copy(j.mem[88:127], j.boot)
	copy(j.mem[128:journalEntries-1], destination)
	j.at, j.end = j.at[:0], journalEntries
	j.prepareNext(0)
	j.setState(journalFilling)
}

// after returns where the entry behind the next one begins, if that has size bytes.
func (j *importJournal) after(size int) int {
	return (j.end + entryHeader + store.TypeSize + size + 7) &^ 7
}

// room returns where the next message goes, with room for a body of size bytes; nil where the
// batch is full. The first message always fits.
func (j *importJournal) room(size int) (store.Record, error) {
	if len(j.at) >= j.limit {
		return nil, nil
	}
	if j.after(size) > len(j.mem) {
		if len(j.at) > 0 {
			return nil, nil
		}
		if err := j.grow(j.after(size)); err != nil {
			return nil, err
		}
	}
	return j.next(size), nil
}

func (j *importJournal) next(size int) store.Record {
	begin := j.end + entryHeader
	return store.Record(j.mem[begin : begin+store.TypeSize+size])
}

// prepareNext clears the next entry, so that a message found in it was received into it, and
// puts a pattern where its body goes. It writes each page, so that the kernel's copy meets
// no fault.
func (j *importJournal) prepareNext(size int) {
	if j.end+entryHeader+store.TypeSize > len(j.mem) {
		return
	}
	clear(j.mem[j.end : j.end+entryHeader+store.TypeSize])
	j.setWord(j.end, uint64(size))
	j.pattern(j.next(size).Body())
}

// pattern fills b with what no message begins or ends with but by chance.
func (j *importJournal) pattern(b []byte) {
	source := rand.NewPCG(j.word(64), j.word(40))
	for len(b) >= 8 {
		binary.NativeEndian.PutUint64(b, source.Uint64())
		b = b[8:]
	}
	last := source.Uint64()
	for i := range b {
		b[i] = byte(last >> (8 * i))
	}
}

// add makes what room returned an entry, of which a message of size bytes was written.
func (j *importJournal) add(size int) {
	at := j.end
	j.setWord(at+24, uint64(size)+1)
	j.setWord(at, uint64(size))
	j.setWord(at+8, uint64(j.next(size).Type()))
	j.setWord(at+16, entryCopied)
	j.setWord(at+32, 0)
	sum := sha256.Sum256(j.next(size))
	copy(j.mem[at+40:], sum[:])
	end := j.after(size)
	j.at = append(j.at, at)
	j.end = end
	j.prepareNext(0)
	j.setWord(48, uint64(len(j.at)))
}

// adopt makes an entry of a message that a killed import received and did not live to note, and
// tells whether there was one. Its length is where the pattern begins again, which a body
// that ends like it, one in 256, makes too short.
func (j *importJournal) adopt() bool {
	if j.end+entryHeader+store.TypeSize > len(j.mem) {
		return false
	}
	size := j.word(j.end)
	if size > uint64(len(j.mem)) || j.after(int(size)) > len(j.mem) || j.next(0).Type() == 0 {
		return false
	}
	if got := j.word(j.end + 24); got > 0 && got <= size+1 {
		j.add(int(got) - 1)
		return true
	}
	n := int(size)
	body := j.next(n).Body()
	untouched := make([]byte, n)
	j.pattern(untouched)
	for n > 0 && body[n-1] == untouched[n-1] {
		n--
	}
	j.add(n)
	j.setWord(j.at[len(j.at)-1]+24, 0)
	return true
}

// guessed tells that the message was received and that its length is not known for sure.
func (e entry) guessed() bool { return e.j.word(e.at+24) == 0 }

// entry is one message of the batch.
type entry struct {
	j  *importJournal
	at int
}

func (j *importJournal) entry(i int) entry { return entry{j, j.at[i]} }
func (j *importJournal) entries() int      { return len(j.at) }

func (e entry) size() int        { return int(e.j.word(e.at)) }
func (e entry) mtype() int64     { return int64(e.j.word(e.at + 8)) }
func (e entry) step() uint64     { return e.j.word(e.at + 16) }
func (e entry) kept() bool       { return e.j.word(e.at+32) == 1 }
func (e entry) setStep(s uint64) { e.j.setWord(e.at+16, s) }
func (e entry) setKept()         { e.j.setWord(e.at+32, 1) }

// setGot notes how long the message is that was received.
func (e entry) setGot(size int) { e.j.setWord(e.at+24, uint64(size)+1) }

// buffer returns the struct msgbuf, with room for as much as the copy has.
func (e entry) buffer() store.Record {
	begin := e.at + entryHeader
	return store.Record(e.j.mem[begin : begin+store.TypeSize+e.size()])
}

// same tells whether r is the message that was copied.
func (e entry) same(r store.Record) bool {
	sum := sha256.Sum256(r)
	return bytes.Equal(sum[:], e.j.mem[e.at+40:e.at+entryHeader])
}

// beginTake makes the entry ready for the message to be received.
func (e entry) beginTake() {
	e.j.setWord(e.at+24, 0)
	clear(e.buffer()[:store.TypeSize])
	for page := (e.at + 4095) &^ 4095; page < e.at+entryHeader+store.TypeSize+e.size(); page += 4096 {
		atomic.AddUint64(e.j.pointer(page), 0) // written, so that the kernel's copy meets no fault
	}
	e.setStep(entryTaking)
}

// received returns what was received; nil if nothing was.
func (e entry) received() store.Record {
	r := e.buffer()
	if e.step() != entryTaking || r.Type() == 0 {
		return nil
	}
	if got := e.j.word(e.at + 24); got > 0 && int(got)-1 <= e.size() {
		return r[:store.TypeSize+int(got)-1]
	}
	return r
}

// id returns what the broker knows the i-th message of the batch by, the same after a crash
// and of no other message ever.
func (j *importJournal) id(i int, suffix string) string {
	return fmt.Sprintf("sysv-%016x-%d-%d%s", j.word(64), j.word(40), i, suffix)
}

// sync waits until the batch is on the disk.
func (j *importJournal) sync() error {
	if err := unix.Msync(j.mem, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync %s: %w", j.f.Name(), err)
	}
	return nil
}

// close removes the file, unless a batch is in it.
func (j *importJournal) close() error {
	var err error
	if j.state() == journalIdle {
		err = os.Remove(j.f.Name())
	}
	return errors.Join(err, unix.Munmap(j.mem), j.f.Close())
}

// journalPath returns where the journal of a kernel queue is: under its key, so that the
// same program's next queue finds it, or its id where it has none.
func journalPath(dir string, key store.Key, id int) string {
	if key != 0 {
		return filepath.Join(dir, fmt.Sprintf("import-%v.sysv", key))
	}
	return filepath.Join(dir, fmt.Sprintf("import-id-%d.sysv", id))
}
