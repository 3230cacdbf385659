package store

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// slot is NAME.rot, the journal of a rotation, mapped and shared, so that what is stored in it is
// in the file at once and survives kill -9. It exists during a rotation only.
//
//	0   u64  slotEmpty, slotTaking or slotHeld
//	8   u64  segment number
//	16  u64  bytes of the struct msgbuf, when held
//	64       the struct msgbuf
//
// msgrcv takes a record off the queue and then copies it to where it was told, which is
// the mapping itself. A SIGKILL is acted on when the call returns to the program, not between
// the two (the one way is a page fault in the copy; the page was written just before). So at each
// moment the record is in the queue, or in the slot, or in both:
//
//	1  state taking      in the queue; what the slot had is cleared
//	2  msgrcv            in the slot, known by its header and checksum
//	3  state held        in the slot, with its length, so known even if not ours
//	4  msgsnd            in both
//	5  state empty       in the queue
//
// Killed at 2, 3 or 4, the next open sends the slot's record again and then rotates everything,
// dropping a record that it has seen before. Killed in that, the same once more: a record is dropped only
// after another of the same seq and chunk was sent back in the same pass.
type slot struct {
	path string
	mem  []byte
}

const (
	slotEmpty  = 0
	slotTaking = 1
	slotHeld   = 2
	slotBuf    = 64
)

// openSlot maps path with room for a struct msgbuf of size, or returns nil where there is no
// file, and create is false, or an empty one.
func openSlot(path string, size int, create bool) (*slot, error) {
	flags := os.O_RDWR | unix.O_NOFOLLOW
	if create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, os.ErrNotExist) && !create {
		return nil, nil
	} else if err != nil {
		return nil, fileFailure(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fileFailure(err)
	}
	size = max(slotBuf+size, int(st.Size()))
	// Written, not only made longer: a hole on a full disk would be a SIGBUS.
	if _, err := f.WriteAt(make([]byte, size-int(st.Size())), st.Size()); err != nil {
		return nil, fileFailure(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("store: mmap %s: %w", path, err)
	}
	s := &slot{path, mem}
	if !create && atomic.LoadUint64(s.word(0)) == slotEmpty {
		return nil, s.close()
	}
	return s, nil
}

// close removes the file, unless a record is in it.
func (s *slot) close() error {
	empty := atomic.LoadUint64(s.word(0)) == slotEmpty
	err := unix.Munmap(s.mem)
	if empty {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}

func (s *slot) word(at int) *uint64 { return (*uint64)(unsafe.Pointer(&s.mem[at])) }

// begin readies the slot for a record of segment number. It writes each page, so that the
// kernel's copy meets no fault.
func (s *slot) begin(number int) {
	atomic.StoreUint64(s.word(0), slotEmpty)
	for at := slotBuf; at < len(s.mem); at += 4096 {
		atomic.StoreUint64(s.word(at), 0)
	}
	atomic.StoreUint64(s.word((len(s.mem)-8)&^7), 0)
	clear(s.mem[slotBuf : slotBuf+mtypeSize+chunkHeader])
	atomic.StoreUint64(s.word(8), uint64(number))
	atomic.StoreUint64(s.word(0), slotTaking)
}

func (s *slot) hold(size int) {
	atomic.StoreUint64(s.word(16), uint64(size))
	atomic.StoreUint64(s.word(0), slotHeld)
}

func (s *slot) done() { atomic.StoreUint64(s.word(0), slotEmpty) }

// held returns the struct msgbuf that a killed rotation left, or nil.
func (s *slot) held() []byte {
	switch atomic.LoadUint64(s.word(0)) {
	case slotHeld:
		if size := atomic.LoadUint64(s.word(16)); size >= mtypeSize && size <= uint64(len(s.mem)-slotBuf) {
			return s.mem[slotBuf : slotBuf+size]
		}
	case slotTaking:
		if r, ok := decodeChunk(s.mem[slotBuf:]); ok {
			return s.mem[slotBuf : slotBuf+mtypeSize+chunkHeader+len(r.chunk)]
		}
	}
	return nil
}

// slotSize returns the size of the largest struct msgbuf that may be in a segment.
func (s *SysV) slotSize() int {
	size := s.limits.max
	for _, g := range s.segments {
		if g != nil {
			size = max(size, g.used)
		}
	}
	return mtypeSize + size
}

// rotate moves every record of every segment once from its head to its tail and so
// sees them all. See slot for why that is safe.
func (s *SysV) rotate(slot *slot, f *finds) error {
	if msg := slot.held(); msg != nil {
		if err := s.putBack(slot, msg); err != nil {
			return err
		}
	}
	slot.done()
	s.step("resent")
	for _, g := range s.segments {
		if g == nil {
			continue
		}
		ds, err := s.keys.stat(g.number)
		if err != nil {
			return fmt.Errorf("store: queue %s: look at kernel queue %d: %w", s.keys.name(), g.id, err)
		}
		for range ds.qnum {
			more, err := s.rotateOne(slot, f, g)
			if err != nil {
				return fmt.Errorf("store: queue %s: rotate kernel queue %d: %w", s.keys.name(), g.id, err)
			}
			if !more {
				break
			}
		}
		s.refresh(g)
	}
	return nil
}

// putBack sends what a killed rotation held to its segment, or to another if that is full
// or gone: then it's there twice, or was lost with the segment.
func (s *SysV) putBack(slot *slot, msg []byte) error {
	number := int(atomic.LoadUint64(slot.word(8)))
	if number >= 1 && number <= maxSegments && s.segments[number] != nil {
		switch err := msgsnd(s.segments[number].id, msg); err {
		case unix.EAGAIN:
		case unix.EINVAL:
			return s.lowered(s.segments[number], err)
		default:
			return err
		}
	}
	for {
		g, err := s.room(len(msg) - mtypeSize)
		if err != nil {
			return err
		}
		if err := msgsnd(g.id, msg); err != unix.EAGAIN {
			return err
		}
		g.used = g.qbytes
	}
}

// rotateOne moves one record; it returns false when there is none.
func (s *SysV) rotateOne(slot *slot, f *finds, g *kernelQueue) (bool, error) {
	slot.begin(g.number)
	s.step("taking")
	n, err := msgrcv(g.id, slot.mem[slotBuf:], 0, 0)
	if err != nil {
		slot.done()
		if err == unix.ENOMSG {
			return false, nil
		}
		return false, err
	}
	s.step("received")
	slot.hold(n)
	s.step("held")
	r, ok := decodeChunk(slot.mem[slotBuf : slotBuf+n])
	if !ok {
		r = piece{}
	}
	if s.found(f, g, r) {
		err := msgsnd(g.id, slot.mem[slotBuf:slotBuf+n])
		if err == unix.EINVAL {
			err = s.lowered(g, err)
		}
		if err != nil {
			return false, err // the slot has it
		}
		s.step("sent back")
	}
	slot.done()
	s.step("rotated")
	return true, nil
}
