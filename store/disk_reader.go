package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// maxGap bounds the missing segments that Salvage stands in for.
const maxGap = 1000

// logReader reads the log of a store that is opened or checked, and knows what has to be
// written before anything can be appended.
type logReader struct {
	d     *Disk
	write bool // files are opened for writing
	heads []segmentHeader
	known []bool // the header of a segment could be read
	flaws []flaw
	torn  *Damage
	buf   []byte
	tail  int64 // behind the last byte of the last segment that is not zero
}

// flaw is Damage and where it is.
type flaw struct {
	Damage
	seg      *segment
	from, to int64
	cut      bool // the file ends there
}

// read takes all segments into the index.
func (l *logReader) read(paths []string) error {
	l.d.orphans = map[uint64]stateAt{}
	for _, path := range paths {
		if err := l.open(path); err != nil {
			return err
		}
	}
	d := l.d
	for i, s := range d.segments {
		last := i == len(d.segments)-1
		if l.known[i] {
			d.high, d.highMessage = max(d.high, l.heads[i].high), max(d.highMessage, l.heads[i].message)
		}
		if err := l.readSegment(i, s, last); err != nil {
			return err
		}
	}
	d.orphans = nil
	return nil
}

// open opens a segment file and reads its header.
func (l *logReader) open(path string) error {
	var id uint32
	d := l.d
	if _, err := fmt.Sscanf(filepath.Base(path), "%08x.seg", &id); err != nil || id == 0 {
		return fmt.Errorf("store: queue %s: %s is no segment of it", d.name, path)
	}
	open := d.files.OpenRead
	if l.write {
		open = d.files.Open
	}
	f, err := open(path)
	if err != nil {
		return d.diskError(err, "open %s", path)
	}
	seg := &segment{id: id, file: f, path: path}
	if err := l.gap(id); err != nil {
		f.Close()
		return err
	}
	d.segments = append(d.segments, seg)
	b := make([]byte, segmentData)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return d.diskError(err, "read %s", path)
	}
	size, err := f.Size()
	if err != nil {
		return d.diskError(err, "stat %s", path)
	}
	h, ok, whole := parseHeader(b[:n])
	ok = ok && h.id == id
	seg.size, seg.salt = max(size, segmentData), h.salt
	switch {
	case !ok:
		l.flaw(seg, 0, seg.size, true, "both copies of the header are damaged: no record of this file can be told from chance")
	case !whole:
		l.flaw(seg, 0, segmentData, false, "one copy of the header is damaged; the other is good, nothing is missing")
	}
	if ok {
		seg.size = h.size
	}
	l.heads, l.known = append(l.heads, h), append(l.known, ok)
	d.byID[id] = seg
	d.total += seg.size
	return nil
}

// gap stands in for segments whose files are not there.
func (l *logReader) gap(id uint32) error {
	d := l.d
	if len(d.segments) == 0 {
		return nil
	}
	next := d.segments[len(d.segments)-1].id + 1
	if id-next > maxGap {
		return fail(ErrDamaged, nil, "queue %s: %d segment files are missing before %s", d.name, id-next, segmentPath(d.dir, id))
	}
	for ; next < id; next++ {
		seg := &segment{id: next, path: segmentPath(d.dir, next), file: missingFile{}, size: segmentData}
		l.flaw(seg, 0, 0, true, "the file is missing")
		d.segments = append(d.segments, seg)
		d.byID[next] = seg
		l.heads, l.known = append(l.heads, segmentHeader{}), append(l.known, false)
	}
	return nil
}

func (l *logReader) flaw(seg *segment, from, to int64, lost bool, format string, args ...any) {
	l.flaws = append(l.flaws, flaw{
		Damage{Path: seg.path, Offset: from, Length: to - from, Lost: lost, What: fmt.Sprintf(format, args...)}, seg, from, to, false,
	})
}

// readSegment takes the records of segment i.
func (l *logReader) readSegment(i int, s *segment, last bool) error {
	s.end = segmentData
	end := int64(0) // where its records end, if the next header says so
	if !last && l.known[i+1] {
		end = l.heads[i+1].before
	}
	if !l.known[i] {
		s.end = max(s.end, end)
		return nil
	}
	got, err := l.fill(s)
	if err != nil {
		return err
	}
	if got < s.size && (last || got < end) {
		l.flaw(s, got, s.size, true, "the file was cut off: it has %d of its %d bytes", got, s.size)
		l.flaws[len(l.flaws)-1].cut = true
	}
	limit := s.size
	if end > 0 {
		limit = min(end, s.size)
	}
	for s.end < limit {
		r, ok := parseRecord(l.buf[s.end:limit], s.salt, s.end)
		if ok {
			l.take(r, s)
			continue
		}
		if !l.skip(s, limit, end == 0) {
			break
		}
	}
	if end > 0 {
		s.end = end
		return nil
	}
	if l.tail = s.end + lastNonzero(l.buf[s.end:]); l.tail > s.end {
		l.tornTail(s, last)
	}
	return nil
}

// lastNonzero is how long b is without the zeros at its end.
func lastNonzero(b []byte) int64 {
	for len(b) >= pageSize && bytes.Equal(b[len(b)-pageSize:], zeros[:pageSize]) {
		b = b[:len(b)-pageSize]
	}
	return int64(len(bytes.TrimRight(b, "\x00")))
}

func (l *logReader) take(r record, s *segment) {
	if r.kind != recHole {
		l.d.grown(s, r.kind, r.size)
		l.d.apply(r, s, s.end)
	}
	known := r.kind == recNote && r.synced == s.end
	s.end += r.size
	if known {
		l.d.noted = s.end
	}
}

// skip goes on behind a bad record, if what is there shows that it is damage: that the
// segment does not end here, or a record behind that knew the place to be durable.
func (l *logReader) skip(s *segment, limit int64, open bool) bool {
	from := s.end
	next, proven := l.resync(s, from, limit)
	switch {
	case open && !proven:
		return false
	case next == 0:
		next = limit
	}
	l.flaw(s, from, next, true, "no record, and one was there: %d bytes are lost", next-from)
	s.end = next
	return true
}

// resync returns where the next good record is, 0 if there is none, and whether one
// behind from was written when from was durable.
func (l *logReader) resync(s *segment, from, limit int64) (next int64, proven bool) {
	for off := from + recordAlign; off+recordHeader <= limit; {
		if skip := zeroPrefix(l.buf[off:limit]); skip > 0 {
			// A header begins with a CRC that may be 0, 8 zeros are a length of 0 too.
			off += max(recordAlign, skip&^(recordAlign-1)-recordAlign)
			if off+recordHeader > limit {
				break
			}
		}
		r, ok := parseRecord(l.buf[off:limit], s.salt, off)
		if !ok {
			off += recordAlign
			continue
		}
		if next == 0 {
			next = off
		}
		if r.synced > from {
			return next, true
		}
		off += r.size
	}
	return next, false
}

// zeroPrefix is how many bytes at the start of b are zero, if those are many.
func zeroPrefix(b []byte) int64 {
	n := int64(0)
	for int64(len(b))-n >= pageSize && bytes.Equal(b[n:n+pageSize], zeros[:pageSize]) {
		n += pageSize
	}
	return n
}

// fill reads all of s into the buffer, zeros behind its end.
func (l *logReader) fill(s *segment) (int64, error) {
	if int64(cap(l.buf)) < s.size {
		l.buf = make([]byte, s.size)
	}
	l.buf = l.buf[:s.size]
	n, err := s.file.ReadAt(l.buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, l.d.diskError(err, "read %s", s.path)
	}
	clear(l.buf[n:])
	return int64(n), nil
}

// tornTail notes what is behind the last record. In the last segment that is a write
// that was cut off. A segment before was durable to its end, which only the next header
// knew; what is not a record there was one.
func (l *logReader) tornTail(s *segment, last bool) {
	if !last {
		l.flaw(s, s.end, l.tail, true, "no record, and one was there: %d bytes are lost", l.tail-s.end)
		return
	}
	l.torn = &Damage{Path: s.path, Offset: s.end, Length: l.tail - s.end,
		What: "the last write was cut off; no Sync after it returned, unless the disk damaged just this"}
}

func (l *logReader) lost() bool {
	for _, f := range l.flaws {
		if f.Lost {
			return true
		}
	}
	return false
}

func (l *logReader) report() Report {
	d := l.d
	r := Report{Name: d.name, Segments: len(d.segments), Bytes: d.total, Messages: d.messages.count, Marks: d.marks.count, High: d.high, Torn: l.torn}
	for _, f := range l.flaws {
		r.Damage = append(r.Damage, f.Damage)
	}
	return r
}

func (l *logReader) free() { l.buf = nil }

// missingFile stands for a segment that is not there.
type missingFile struct{}

var errMissing = errors.New("the file is missing")

func (missingFile) ReadAt([]byte, int64) (int, error)  { return 0, io.EOF }
func (missingFile) WriteAt([]byte, int64) (int, error) { return 0, errMissing }
func (missingFile) Allocate(int64) error               { return errMissing }
func (missingFile) Datasync() error                    { return errMissing }
func (missingFile) Size() (int64, error)               { return 0, nil }
func (missingFile) Close() error                       { return nil }
