package store

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultMaxBytes = 4 << 30
	minMaxBytes     = 8 << 20   // room for the smallest segments, spares and compaction
	maxDiskMessage  = 65 << 20  // bytes of Data: the largest body, 64 MiB, and what its caller adds
	writeChunk      = 256 << 10 // records are gathered into writes of about this size
	noLimit         = 1 << 62
)

// DiskOptions adjusts OpenDisk. Each zero field means the default its comment gives.
type DiskOptions struct {
	// MaxBytes bounds the files of the queue, in bytes, dead records and spare files
	// included; above it Append returns ErrFull. 0 means 4 GiB, less than 8 MiB means
	// 8 MiB, a negative number no limit.
	MaxBytes int64

	// SyncInterval makes Sync return from the page cache: what it promised survives
	// kill -9 at once, and loss of power after this time at most. 0 means that Sync
	// waits for the disk.
	SyncInterval time.Duration

	// Salvage opens a damaged queue too, with every record that is whole. Damage is
	// noted in the Report, and the segment files it is in are kept as *.damaged.
	Salvage bool

	minSegment, maxSegment int64     // bytes
	files                  diskFiles // nil: the host's
}

func (o *DiskOptions) withDefaults() DiskOptions {
	var d DiskOptions
	if o != nil {
		d = *o
	}
	switch {
	case d.MaxBytes == 0:
		d.MaxBytes = defaultMaxBytes
	case d.MaxBytes < 0:
		d.MaxBytes = noLimit
	}
	if d.minSegment == 0 {
		d.minSegment = minSegment
		d.MaxBytes = max(d.MaxBytes, minMaxBytes)
	}
	if d.maxSegment == 0 {
		d.maxSegment = maxSegment
	}
	// An eighth: the active segment, two spares and one being moved leave half for messages.
	for d.maxSegment > d.minSegment && d.maxSegment > d.MaxBytes/8 {
		d.maxSegment /= 2
	}
	if d.files == nil {
		d.files = hostFiles{}
	}
	return d
}

// Disk is a Store of level disk: a log in segment files, and in memory the place of
// each live entry, 24 bytes a message (36 with a State, 24 a Mark). Bodies stay on disk.
//
// Appends and removes are records at the end of the log. The oldest segment is
// dropped when nothing in it is needed, and when more than half of the log is dead its
// live records are moved to the end first, a little with every Append and Remove. Only
// the oldest is ever dropped, so a remove never outlives what it removed, nor the other
// way around.
type Disk struct {
	name    string
	dir     string // of the segments
	options DiskOptions
	files   diskFiles
	lock    *os.File
	report  Report
	closed  bool

	segments []*segment // oldest first, ids without a gap
	byID     map[uint32]*segment
	active   *segment // the last of segments
	spares   spares
	buf      []byte
	window   window // of what was read last
	total    int64  // bytes of segment files, without spares
	filled   int64  // bytes of records in the segments before the active one
	live     int64  // bytes of records that are needed
	stated   int64  // of what is reserved for States, what they take
	reach    int64  // bytes of a closed segment that live, or more
	largest  int64  // record of an entry in the log, or larger
	move     mover

	messages    index
	marks       index
	states      []stateAt
	orphans     map[uint64]stateAt // while the log is read: States whose message comes later, moved
	freeStates  []uint32
	settings    item
	bytes       int64 // of Data of live messages
	high        uint64
	highMessage uint64

	// written counts bytes of records, durable those that are on the disk. base is what
	// was written before the active segment.
	written, durable atomic.Uint64
	base             uint64
	failed           atomic.Pointer[error] // why nothing can be written any more
	noted            int64                 // a record says that all up to here is durable

	syncing sync.Mutex // held while the disk syncs, and to change active
	stop    chan struct{}
	stopped chan struct{}
}

// stateAt is where a State is.
type stateAt struct{ seg, off, size uint32 }

var _ Store = (*Disk)(nil)

// Append stores entries in order; see Store. It writes, Sync makes durable. It returns
// ErrFull at MaxBytes, ErrNoSpace when the disk is full, ErrTooLarge, ErrBadEntry.
func (d *Disk) Append(entries []Entry) (int, error) {
	if err := d.usable(); err != nil {
		return 0, err
	}
	n, start := 0, d.written.Load()
	for n < len(entries) {
		done, err := d.appendSome(entries[n:])
		n += done
		if err != nil {
			d.compact(int64(d.written.Load() - start))
			return n, err
		}
	}
	d.compact(int64(d.written.Load() - start))
	return n, nil
}

// appendSome stores as many entries as one write takes, at least one.
func (d *Disk) appendSome(entries []Entry) (int, error) {
	w, n, err := d.gather(entries)
	if n == 0 {
		return 0, err
	}
	if err = d.roomFor(w, usesReserve(entries[0])); isFull(err) && n > 1 {
		w, n, _ = d.gather(entries[:1])
		err = d.roomFor(w, usesReserve(entries[0]))
	}
	if err != nil {
		return 0, err
	}
	for left := d.active.size - d.active.end; w.all > left; n-- {
		w.all -= recordLen(len(entries[n-1].Data))
	}
	for i, e := range entries[:n] {
		if e.Kind == State && !d.hasMessage(e.Seq, entries[:i]) {
			d.encode(recNote, 0, nil) // passed over, and still one record
			continue
		}
		d.encode(e.Kind, e.Seq, e.Data)
	}
	return d.flush()
}

// gather takes as many entries together as one write does, and says what they need.
func (d *Disk) gather(entries []Entry) (w load, n int, err error) {
	high, reserved := d.highMessage, usesReserve(entries[0])
	for _, e := range entries {
		if n > 0 && (w.all >= d.chunk() || reserved && !usesReserve(e)) {
			break
		}
		if err = d.checkEntry(e, high); err != nil {
			break
		}
		if e.Kind == Message {
			high = e.Seq
			w.messages++
		}
		size := recordLen(len(e.Data))
		w.all += size
		w.largest = max(w.largest, size)
		n++
	}
	w.first, w.slack = recordLen(len(entries[0].Data)), d.slack()
	if entries[0].Kind == State && n == 1 {
		w.slack /= 2
	}
	return w, n, err
}

// usesReserve says whether e has room kept for it.
func usesReserve(e Entry) bool { return e.Kind == State && len(e.Data) <= stateReserve }

// roomFor makes room for w at the end of the log, for the first record of it at least.
func (d *Disk) roomFor(w load, reserved bool) error {
	if reserved {
		return d.useReserve(w.first, w.all)
	}
	if err := d.admitFull(w); err != nil {
		return err
	}
	return d.room(w.first)
}

// hasMessage says whether message seq is there, or among those just encoded.
func (d *Disk) hasMessage(seq uint64, encoded []Entry) bool {
	if seq <= d.highMessage {
		return d.messages.get(seq) != nil
	}
	for i := len(encoded) - 1; i >= 0; i-- {
		if encoded[i].Kind == Message && encoded[i].Seq <= seq {
			return encoded[i].Seq == seq
		}
	}
	return false
}

// chunk is at most a quarter of a segment, so that little of one stays unused.
func (d *Disk) chunk() int64 { return min(writeChunk, d.options.minSegment/4) }

func (d *Disk) checkEntry(e Entry, high uint64) error {
	switch {
	case e.Kind < Message || e.Kind > Settings:
		return fail(ErrBadEntry, nil, "queue %s: an entry of kind %d: there are kinds %d to %d", d.name, e.Kind, Message, Settings)
	case e.Kind == Settings && e.Seq != 0:
		return fail(ErrBadEntry, nil, "queue %s: settings with seq %d: they have seq 0", d.name, e.Seq)
	case e.Kind != Settings && (e.Seq == 0 || e.Seq > MaxSeq):
		return fail(ErrBadEntry, nil, "queue %s: seq %d is not in 1 to %d", d.name, e.Seq, uint64(MaxSeq))
	case e.Kind == Message && e.Seq <= high:
		return fail(ErrBadEntry, nil, "queue %s: message %d does not come after message %d", d.name, e.Seq, high)
	case len(e.Data) > d.maxMessage():
		return fail(ErrTooLarge, nil, "queue %s: an entry of %d bytes; %d fit (a quarter of MaxBytes, at most %d)",
			d.name, len(e.Data), d.maxMessage(), maxDiskMessage)
	}
	return nil
}

func (d *Disk) maxMessage() int {
	return int(min(maxDiskMessage, d.options.MaxBytes/4-segmentData-2*recordHeader))
}

// encode appends a record to what flush writes.
func (d *Disk) encode(kind Kind, seq uint64, data []byte) {
	d.buf = appendRecord(d.buf, d.active.salt, d.active.end+int64(len(d.buf)), d.syncedTo(), kind, seq, data)
}

// syncedTo is up to which offset the active segment is durable.
func (d *Disk) syncedTo() int64 {
	return segmentData + max(0, int64(d.durable.Load())-int64(d.base))
}

// flush writes the records encoded and takes them as stored: each one that was written
// whole. What a short write left of another is overwritten by the next, or is a torn
// tail when the store is opened.
func (d *Disk) flush() (n int, err error) {
	seg := d.active
	wrote, err := seg.file.WriteAt(d.buf, seg.end)
	whole := wholeRecords(d.buf[:max(wrote, 0)])
	d.written.Add(uint64(len(whole)))
	for len(whole) > 0 {
		size, _ := recordSize(whole)
		data := whole[recordHeader : recordHeader+int64(binary.LittleEndian.Uint32(whole[4:]))]
		d.grown(seg, Kind(whole[20]), size)
		d.apply(record{Kind(whole[20]), binary.LittleEndian.Uint64(whole[8:]), 0, data, size}, seg, seg.end)
		seg.end += size
		whole = whole[size:]
		n++
	}
	d.buf = d.buf[:0]
	if cap(d.buf) > 4*writeChunk {
		d.buf = nil
	}
	if err != nil {
		return n, d.diskError(err, "write to %s", seg.path)
	}
	return n, nil
}

// Remove forgets messages; see Store.
func (d *Disk) Remove(seqs []uint64) error {
	if err := d.usable(); err != nil {
		return err
	}
	start := d.written.Load()
	err := d.remove(seqs)
	d.compact(int64(d.written.Load() - start))
	return err
}

func (d *Disk) remove(seqs []uint64) error {
	var data []byte
	for len(seqs) > 0 {
		data = data[:0]
		var one uint64
		for len(seqs) > 0 && len(data) < 8*removeManyMax && int64(len(data)) < d.options.minSegment/16 {
			if d.messages.get(seqs[0]) != nil {
				one, data = seqs[0], binary.LittleEndian.AppendUint64(data, seqs[0])
			}
			seqs = seqs[1:]
		}
		var err error
		switch len(data) {
		case 0:
		case 8: // takes no more room than the message did
			err = d.note(recRemove, one, nil)
		default:
			err = d.note(recRemoveMany, 0, data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// note writes one record that needs no room of the messages.
func (d *Disk) note(kind Kind, seq uint64, data []byte) error {
	size := recordLen(len(data))
	if err := d.useReserve(size, size); err != nil {
		return err
	}
	d.encode(kind, seq, data)
	_, err := d.flush()
	return err
}

// Forget forgets Marks; see Store.
func (d *Disk) Forget(upTo uint64) error {
	if err := d.usable(); err != nil {
		return err
	}
	if it := d.marks.first(); it == nil || it.seq > upTo {
		return nil
	}
	start := d.written.Load()
	err := d.note(recForget, upTo, nil)
	d.compact(int64(d.written.Load() - start))
	return err
}

// Read appends a message's Data to dst by one pread(2) and checks it; see Store.
func (d *Disk) Read(dst []byte, seq uint64) ([]byte, error) {
	if d.closed {
		return dst, d.closedError()
	}
	it := d.messages.get(seq)
	if it == nil {
		return dst, fail(ErrNotFound, nil, "queue %s has no message %d", d.name, seq)
	}
	return d.readAt(dst, Message, seq, it.seg, it.off, it.size)
}

// readAt appends the data of the record at a place to dst.
func (d *Disk) readAt(dst []byte, kind Kind, seq uint64, id, off, size uint32) ([]byte, error) {
	seg, at, start := d.byID[id], int64(off)*recordAlign, len(dst)
	want := recordHeader + int(size)
	dst = slices.Grow(dst, want)[:start+want]
	b := dst[start:]
	data := b[recordHeader:]
	if d.window.copy(b, id, at) && binary.LittleEndian.Uint32(b) == recordSum(seg.salt, at, kind, b, data) && Kind(b[20]) == kind && binary.LittleEndian.Uint64(b[8:]) == seq {
		copy(b, data)
		return dst[:start+len(data)], nil
	}
	if err := d.window.read(b, seg, at); err != nil {
		return dst[:start], d.diskError(err, "read %s at %d", seg.path, at)
	}
	if binary.LittleEndian.Uint32(b) != recordSum(seg.salt, at, kind, b, data) || Kind(b[20]) != kind || binary.LittleEndian.Uint64(b[8:]) != seq {
		return dst[:start], d.damaged(Damage{Path: seg.path, Offset: at, Length: recordLen(int(size)), What: "a record changed since it was written"})
	}
	copy(b, data)
	return dst[:start+len(data)], nil
}

// Each calls f for every live entry; see Store. It reads them one by one.
func (d *Disk) Each(f func(Entry) error) error {
	if d.closed {
		return d.closedError()
	}
	var buf []byte
	call := func(kind Kind, seq uint64, id, off, size uint32) error {
		data, err := d.readAt(buf[:0], kind, seq, id, off, size)
		if err != nil {
			return err
		}
		buf = data
		return f(Entry{kind, seq, data})
	}
	if it := d.settings; it.seg != 0 {
		if err := call(Settings, 0, it.seg, it.off, it.size); err != nil {
			return err
		}
	}
	err := d.messages.each(func(it *item) error {
		if err := call(Message, it.seq, it.seg, it.off, it.size); err != nil || it.state == 0 {
			return err
		}
		at := d.states[it.state-1]
		return call(State, it.seq, at.seg, at.off, at.size)
	})
	if err != nil {
		return err
	}
	return d.marks.each(func(it *item) error { return call(Mark, it.seq, it.seg, it.off, it.size) })
}

// Stats are the store's numbers; see Store.
func (d *Disk) Stats() Stats {
	s := Stats{
		Level: LevelDisk, Messages: d.messages.count, Marks: d.marks.count, Bytes: d.bytes, High: d.high,
		MaxMessage: d.maxMessage(), Free: -1, Used: d.total + d.spares.bytes(),
	}
	if d.options.MaxBytes < noLimit {
		// What is dead becomes free by compaction, which needs a few segments itself.
		s.Free = max(0, d.options.MaxBytes-d.live-d.owed(0)-5*d.segmentSize(0))
	}
	return s
}

// Report is what opening the store found.
func (d *Disk) Report() Report { return d.report }

// Interval is how long what Sync promised may need to reach the disk; 0 if it waits.
func (d *Disk) Interval() time.Duration { return d.options.SyncInterval }

// Close syncs and keeps what is stored; see Store.
func (d *Disk) Close() error {
	if d.closed {
		return nil
	}
	d.closed = true
	if d.stop != nil {
		close(d.stop)
		<-d.stopped
	}
	err := d.finish()
	d.spares.close(d.reserve(load{slack: d.slack()}, d.active.live))
	for _, s := range d.segments {
		err = errors.Join(err, s.file.Close())
	}
	return errors.Join(err, d.lock.Close())
}

// finish makes all durable, and says so in the log: then a flaw in any record is
// damage for sure when the store is opened again.
func (d *Disk) finish() error {
	if p := d.failed.Load(); p != nil {
		return *p
	}
	if err := d.datasync(); err != nil {
		return err
	}
	if d.active.end == d.noted || d.active.end+recordHeader > d.active.size {
		return nil
	}
	d.encode(recNote, 0, nil)
	if _, err := d.flush(); err != nil {
		return err
	}
	return d.datasync()
}

func (d *Disk) usable() error {
	if d.closed {
		return d.closedError()
	}
	if p := d.failed.Load(); p != nil {
		return *p
	}
	return nil
}

func (d *Disk) closedError() error { return fail(ErrClosed, nil, "queue %s is closed", d.name) }
