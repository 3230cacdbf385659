package store

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Sizes of segments. A store begins small, so that a thousand idle queues do not fill a
// disk, and its segments grow with what it holds.
const (
	minSegment     = 1 << 20 // bytes of the first segments
	maxSegment     = 16 << 20
	segmentsWanted = 16      // a new segment is about this part of all there are
	zeroChunk      = 1 << 20 // bytes zeroed by one write
	pageSize       = 4096
)

var zeros [zeroChunk]byte

// segment is one file of the log.
type segment struct {
	id   uint32
	file diskFile
	path string
	size int64
	salt uint64
	end  int64  // where its records end; of the last one where the next goes
	live int64  // bytes of records that are still needed
	idle uint64 // how much had been written when live became 0

	largest int64 // record of an entry in it
}

func segmentPath(dir string, id uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%08x.seg", id))
}

// spare is a file of zeros, its blocks there, that will be a segment.
type spare struct {
	file diskFile
	path string
	size int64
	err  error
}

// leftSpare is a file that was a spare.
type leftSpare struct {
	path string
	size int64
}

// spares makes files ahead, beside its caller, so that no Append waits for zeros to be
// written. One is made at a time.
type spares struct {
	files  diskFiles
	dir    string
	ready  []*spare
	coming chan *spare // nil unless one is being made
	asked  int64       // its size
	count  int         // for their names
	old    bool        // the coming one is made from a segment, whose name may still be there
	failed bool        // the last one could not be made
	left   []leftSpare // by an earlier process, one after the other to become the coming one
}

// bytes is what the spares take on the disk, the coming one included.
func (s *spares) bytes() int64 {
	n := int64(0)
	if s.coming != nil {
		n = s.asked
	}
	for _, sp := range s.ready {
		n += sp.size
	}
	for _, sp := range s.left {
		n += sp.size
	}
	return n
}

// room is how much fits into those that are ready.
func (s *spares) room() int64 {
	n := int64(0)
	for _, sp := range s.ready {
		n += sp.size - segmentData
	}
	return n
}

// fitting returns the number of the smallest that has room for a record of need bytes, or -1.
func (s *spares) fitting(need int64) int {
	best := -1
	for i, sp := range s.ready {
		if sp.size >= need+segmentData+recordHeader && (best < 0 || sp.size < s.ready[best].size) {
			best = i
		}
	}
	return best
}

// adopt makes a spare of the next file that an earlier process left.
func (s *spares) adopt() error {
	for s.coming == nil && len(s.left) > 0 {
		next := s.left[0]
		s.left = s.left[1:]
		f, err := s.files.Open(next.path)
		if err != nil {
			return err
		}
		s.start(next.size, &segment{file: f, path: next.path})
	}
	return nil
}

// start makes one. old is a file that is no longer needed and becomes it, or nil.
func (s *spares) start(size int64, old *segment) {
	s.count++
	coming, path := make(chan *spare, 1), filepath.Join(s.dir, fmt.Sprintf("spare-%x-%d", newSalt(), s.count))
	s.coming, s.asked, s.old = coming, size, old != nil
	go func() { coming <- makeSpare(s.files, s.dir, path, size, old) }()
}

// take waits for the coming spare, if there is one, and returns why it failed.
func (s *spares) take() error {
	if s.coming == nil {
		return nil
	}
	sp := <-s.coming
	s.coming, s.old, s.failed = nil, false, sp.err != nil
	if sp.err != nil {
		return sp.err
	}
	s.ready = append(s.ready, sp)
	return s.adopt()
}

// poll is take if that would not wait.
func (s *spares) poll() {
	if len(s.coming) > 0 {
		_ = s.take() // who needs one asks again, and gets the error
	}
}

// trim removes spares that have room for excess bytes at most, largest first.
func (s *spares) trim(excess int64) {
	slices.SortFunc(s.ready, func(a, b *spare) int { return cmp.Compare(b.size, a.size) })
	s.ready = slices.DeleteFunc(s.ready, func(sp *spare) bool {
		if excess -= sp.size; excess < 0 {
			excess += sp.size
			return false
		}
		sp.file.Close()
		s.files.Remove(sp.path)
		return true
	})
}

// close leaves spares with room for keep bytes in their place, for a store that is opened on
// a full disk. Those that were not adopted yet stay.
func (s *spares) close(keep int64) {
	s.left = nil
	_ = s.take()
	for _, sp := range s.ready {
		sp.file.Close()
		if keep <= 0 {
			s.files.Remove(sp.path)
		}
		keep -= sp.size - segmentData
	}
	s.ready = nil
}

// makeSpare makes a durable file of zeros at path.
func makeSpare(files diskFiles, dir, path string, size int64, old *segment) *spare {
	sp := &spare{path: path, size: size}
	if old != nil {
		// The old name must be gone for good before its content is.
		sp.file = old.file
		sp.err = errors.Join(files.Rename(old.path, path), files.SyncDir(dir))
	} else {
		sp.file, sp.err = files.Create(path)
	}
	if sp.err == nil && old == nil {
		sp.err = sp.file.Allocate(size)
	}
	for off := int64(0); off < size && sp.err == nil; off += zeroChunk {
		_, sp.err = sp.file.WriteAt(zeros[:min(zeroChunk, size-off)], off)
	}
	if sp.err == nil {
		sp.err = sp.file.Datasync()
	}
	if sp.err != nil && sp.file != nil {
		sp.file.Close()
		files.Remove(path)
		if old != nil {
			files.Remove(old.path)
			files.SyncDir(dir)
		}
	}
	return sp
}

// newSalt returns a number nobody can guess.
func newSalt() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

// segmentSize is the size of the next segment, one that has room for a record of need bytes.
func (d *Disk) segmentSize(need int64) int64 {
	size := d.options.minSegment
	for size < d.options.maxSegment && size*segmentsWanted < d.total {
		size *= 2
	}
	size = min(size, d.options.maxSegment)
	need += segmentData + recordHeader
	if need > size {
		size = (need + pageSize - 1) &^ (pageSize - 1)
	}
	return size
}

// prepare starts a spare of size bytes when none is coming and the bound allows it.
func (d *Disk) prepare(size int64) error {
	if d.spares.coming != nil {
		return nil
	}
	if used := d.total + d.spares.bytes(); used+size > d.options.MaxBytes {
		d.spares.failed = true
		return fail(ErrFull, nil, "queue %s takes %d bytes on disk, and MaxBytes allows %d: ack or purge messages, or raise it",
			d.name, used, d.options.MaxBytes)
	}
	d.spares.start(size, nil)
	return nil
}

// spareFor makes sure that the first spare has room for need, and is the smallest that has.
// A small one will do when there is no room for one of the usual size.
func (d *Disk) spareFor(need int64) error {
	d.spares.poll()
	size := d.segmentSize(need)
	for {
		if i := d.spares.fitting(need); i >= 0 {
			d.spares.ready[0], d.spares.ready[i] = d.spares.ready[i], d.spares.ready[0]
			return nil
		}
		err := d.makeSpare(size)
		if isFull(err) && size > d.options.minSegment {
			err = d.makeSmaller(size, need)
		}
		if isFull(err) {
			err = d.regroup(need, err)
		}
		if err != nil {
			return err
		}
	}
}

// regroup makes one spare for a record of need bytes out of smaller ones, or returns err.
func (d *Disk) regroup(need int64, err error) error {
	size, have := (need+segmentData+recordHeader+pageSize-1)&^(pageSize-1), int64(0)
	for n, sp := range d.spares.ready {
		if have += sp.size; have < size {
			continue
		}
		for _, sp := range d.spares.ready[:n+1] {
			sp.file.Close()
			err = d.files.Remove(sp.path)
		}
		d.spares.ready = d.spares.ready[n+1:]
		if err != nil {
			return err
		}
		return d.makeSpare(size)
	}
	return err
}

// makeSmaller makes the largest spare there is room for, of less than size bytes, with room
// for a record of need.
func (d *Disk) makeSmaller(size, need int64) error {
	least := max((need+segmentData+recordHeader+pageSize-1)&^(pageSize-1), d.options.minSegment)
	for {
		size = size / 2 &^ (pageSize - 1)
		err := d.makeSpare(max(size, least))
		if err == nil || size <= least || !isFull(err) {
			return err
		}
	}
}

// makeSpare waits for the spare that is coming, or for one of size bytes.
func (d *Disk) makeSpare(size int64) error {
	err := d.prepare(size)
	if err != nil {
		return err
	}
	if err = d.spares.take(); err != nil {
		return d.diskError(err, "make a segment file of %d bytes", size)
	}
	return nil
}

// isFull says whether err goes away when there is more room.
func isFull(err error) bool { return errors.Is(err, ErrFull) || errors.Is(err, ErrNoSpace) }

// room makes room for a record of need bytes at the end of the log.
func (d *Disk) room(need int64) error {
	if d.active.size-d.active.end >= need {
		return nil
	}
	if err := d.spareFor(need); err != nil {
		return err
	}
	return d.roll()
}

// grown notes that a record was added to s.
func (d *Disk) grown(s *segment, kind Kind, size int64) {
	if kind <= Settings {
		s.largest = max(s.largest, size)
		d.largest = max(d.largest, size)
	}
}

// roll goes on in the first spare. The segment before is durable first: then a bad
// record in it is never a write that was cut off.
func (d *Disk) roll() error {
	d.syncing.Lock()
	defer d.syncing.Unlock()
	if err := d.datasync(); err != nil {
		return err
	}
	sp := d.spares.ready[0]
	seg := &segment{id: d.active.id + 1, file: sp.file, size: sp.size, salt: newSalt(), end: segmentData}
	if err := d.install(seg, sp.path, d.active.end); err != nil {
		return err
	}
	d.spares.ready = d.spares.ready[1:]
	d.filled += d.active.end - segmentData
	d.activate(seg)
	d.measure()
	d.ahead()
	return nil
}

// ahead starts a spare before one is needed. It does not insist: after a failure who
// needs one asks, and gets the error.
func (d *Disk) ahead() {
	d.spares.poll()
	if d.spares.coming == nil && !d.spares.failed && d.messages.count+d.marks.count > 0 && d.free() < d.target() {
		_ = d.prepare(d.segmentSize(0))
	}
}

// install makes the file at path the segment seg.
func (d *Disk) install(seg *segment, path string, before int64) error {
	h := segmentHeader{id: seg.id, size: seg.size, salt: seg.salt, before: before, high: d.high, message: d.highMessage}
	if _, err := seg.file.WriteAt(h.encode(), 0); err != nil {
		return d.diskError(err, "write the header of %s", path)
	}
	if err := seg.file.Datasync(); err != nil {
		return d.poison(d.diskError(err, "sync %s", path))
	}
	seg.path = segmentPath(d.dir, seg.id)
	if err := d.files.Rename(path, seg.path); err != nil {
		return d.diskError(err, "rename %s to %s", path, seg.path)
	}
	if err := d.files.SyncDir(d.dir); err != nil {
		return d.poison(d.diskError(err, "sync directory %s", d.dir))
	}
	return nil
}

// activate makes seg the one that is written to.
func (d *Disk) activate(seg *segment) {
	d.segments = append(d.segments, seg)
	d.byID[seg.id] = seg
	d.total += seg.size
	d.active = seg
	d.base = d.written.Load()
}

// diskError is err in words: what was tried, and what helps.
func (d *Disk) diskError(err error, format string, args ...any) error {
	what := fmt.Sprintf("queue %s: cannot ", d.name) + fmt.Sprintf(format, args...)
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG):
		return fail(ErrNoSpace, err, "%s: the disk of %s is full (or a quota is); free space there, nothing stored is lost", what, d.dir)
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS):
		return fail(ErrNotAllowed, err, "%s", what)
	}
	return fmt.Errorf("store: %s: %w", what, err)
}
