package store

// window is bytes of a segment that were read ahead: messages that are read one after
// the other mostly lie one behind the other. What it has can be older than the file, which
// a record's checksum tells.
type window struct {
	buf  []byte
	id   uint32 // of the segment
	from int64  // where buf lies in it
	next int64  // where the last read ended
}

const (
	windowSize = 256 << 10 // bytes
	windowGap  = 64 << 10  // how far a read may lie behind the last one to be followed by more, bytes
)

// copy fills b with the bytes at off of segment id, if it has them.
func (w *window) copy(b []byte, id uint32, off int64) bool {
	at := off - w.from
	if id != w.id || at < 0 || at+int64(len(b)) > int64(len(w.buf)) {
		return false
	}
	w.next = off + int64(copy(b, w.buf[at:]))
	return true
}

// read fills b with the bytes at off of seg, and reads on if it looks as if more will be
// wanted.
func (w *window) read(b []byte, seg *segment, off int64) error {
	onward := seg.id == w.id && off >= w.next && off-w.next <= windowGap
	w.id, w.next = seg.id, off+int64(len(b))
	size := min(windowSize, seg.end-off)
	if !onward || int64(len(b)) > size/4 {
		w.buf = w.buf[:0]
		_, err := seg.file.ReadAt(b, off)
		return err
	}
	if cap(w.buf) < windowSize {
		w.buf = make([]byte, windowSize)
	}
	w.buf, w.from = w.buf[:size], off
	if _, err := seg.file.ReadAt(w.buf, off); err != nil {
		w.buf = w.buf[:0]
		return err
	}
	copy(b, w.buf)
	return nil
}
