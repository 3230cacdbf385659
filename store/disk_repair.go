package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// finish makes the log ready to be appended to: the tail is zero again, all that is
// counted as there is durable, and a lost copy of a header is written anew.
func (l *logReader) finish() error {
	d := l.d
	for i, f := range l.flaws {
		if !f.Lost && f.from == 0 {
			if err := l.rewriteHeader(f.seg); err != nil {
				return l.flawError(err, l.flaws[i])
			}
		}
	}
	last := d.segments[len(d.segments)-1]
	if l.torn != nil {
		if err := zeroRange(last.file, last.end, l.tail); err != nil {
			return d.diskError(err, "clear the torn end of %s", last.path)
		}
	}
	// After kill -9 the page cache holds what was never synced.
	if err := last.file.Datasync(); err != nil {
		return d.diskError(err, "sync %s", last.path)
	}
	d.filled = 0
	for _, s := range d.segments[:len(d.segments)-1] {
		d.filled += s.end - segmentData
	}
	d.active = last
	d.measure()
	d.written.Store(uint64(last.end - segmentData))
	d.durable.Store(d.written.Load())
	for _, s := range d.segments {
		s.idle = 0
	}
	d.base = 0
	return nil
}

func (l *logReader) flawError(err error, f flaw) error {
	return l.d.diskError(err, "repair %s", f.Path)
}

// rewriteHeader writes both copies of the header of a segment that has one.
func (l *logReader) rewriteHeader(s *segment) error {
	for i, other := range l.d.segments {
		if other == s {
			return errors.Join(writeAll(s.file, l.heads[i].encode(), 0), s.file.Datasync())
		}
	}
	return nil
}

// salvage makes a damaged log whole: the files with damage are copied aside, and where
// it was a hole is written, so that the log reads without a gap. What was behind the
// damage stays in use: each record has a checksum of its own, no Seq is used twice, and a
// remove is for ever, so all that can be wrong is that messages come back whose remove
// is lost. The Report says that there was damage.
func (l *logReader) salvage() error {
	for _, f := range l.flaws {
		if f.Lost {
			if err := l.keep(f); err != nil {
				return l.flawError(err, f)
			}
		}
	}
	for i, s := range l.d.segments {
		if !l.known[i] {
			if err := l.rebuild(i, s); err != nil {
				return l.d.diskError(err, "repair %s", s.path)
			}
		}
	}
	for _, f := range l.flaws {
		if !f.Lost || f.from < segmentData {
			continue
		}
		if err := l.mend(f); err != nil {
			return l.flawError(err, f)
		}
	}
	return l.d.files.SyncDir(l.d.dir)
}

// keep copies the file f is in aside, once.
func (l *logReader) keep(f flaw) error {
	size, err := f.seg.file.Size()
	if err != nil || size == 0 {
		return err
	}
	w, err := os.OpenFile(f.Path+".damaged", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	_, err = io.Copy(w, io.NewSectionReader(f.seg.file, 0, size))
	return errors.Join(err, w.Sync(), w.Close())
}

// rebuild makes a segment that is missing or has no header one without records.
func (l *logReader) rebuild(i int, s *segment) error {
	d := l.d
	if _, ok := s.file.(missingFile); ok {
		f, err := d.files.Create(s.path)
		if err != nil {
			return err
		}
		s.file = f
	}
	h := segmentHeader{id: s.id, size: max(s.size, s.end, pageSize), salt: newSalt(), high: d.high, message: d.highMessage}
	if i > 0 {
		h.before = d.segments[i-1].end
	}
	d.total += h.size - s.size
	s.size, s.salt = h.size, h.salt
	l.heads[i], l.known[i] = h, true
	b := h.encode()
	if s.end > segmentData {
		b = l.appendHole(b, s, segmentData, s.end)
	}
	return errors.Join(zeroRange(s.file, 0, s.size), writeAll(s.file, b, 0), s.file.Datasync())
}

// mend writes a hole over damage between records, and zeros over a lost end.
func (l *logReader) mend(f flaw) error {
	s := f.seg
	if f.cut {
		return errors.Join(zeroRange(s.file, f.from, f.to), s.file.Datasync())
	}
	if f.from >= s.end {
		return errors.Join(zeroRange(s.file, s.end, f.to), s.file.Datasync())
	}
	to := min(f.to, s.end)
	return errors.Join(zeroRange(s.file, f.from, to), writeAll(s.file, l.appendHole(nil, s, f.from, to), f.from), s.file.Datasync())
}

// appendHole appends the head of a record that covers from up to to.
func (l *logReader) appendHole(dst []byte, s *segment, from, to int64) []byte {
	b := appendRecord(nil, s.salt, from, segmentData, recHole, 0, zeroData(to-from-recordHeader))
	return append(dst, b[:recordHeader]...)
}

func zeroData(n int64) []byte { return make([]byte, max(0, n)) }

func writeAll(f diskFile, b []byte, off int64) error {
	_, err := f.WriteAt(b, off)
	return err
}

func zeroRange(f diskFile, from, to int64) error {
	for from < to {
		n := min(zeroChunk, to-from)
		if err := writeAll(f, zeros[:n], from); err != nil {
			return err
		}
		from += n
	}
	return nil
}
