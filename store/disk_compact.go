package store

const (
	moveChunk = 64 << 10 // bytes of the oldest segment read at once
	movePace  = 8        // bytes of it looked at for each byte appended, so that it keeps ahead
	moveFloor = 64 << 10 // and for each call
)

// mover is how far the records of the oldest segment were moved.
type mover struct {
	seg *segment
	off int64
	buf []byte
}

// compact moves some of the oldest segment's live records to the end of the log, if
// more than half of the log is dead, or some of it and room is short. appended is what
// the call it is a part of wrote; its work is in proportion.
func (d *Disk) compact(appended int64) {
	if d.failed.Load() != nil {
		return
	}
	d.ahead()
	oldest := d.segments[0]
	if oldest == d.active || oldest.live == 0 {
		return
	}
	short := d.short()
	if d.move.seg != oldest {
		live := d.live - d.active.live
		dead := d.filled - live
		if dead <= live+oldest.size && !(short && dead > oldest.size/8) {
			return
		}
		for d.free() < oldest.live+oldest.size/64 { // half a move only takes room
			if !short || d.makeSmaller(2*d.segmentSize(0), 0) != nil {
				return
			}
		}
		d.move = mover{seg: oldest, off: segmentData, buf: d.move.buf}
	}
	budget := movePace*appended + moveFloor
	if short {
		budget *= 2
	}
	for budget > 0 && d.move.off < oldest.end && oldest.live > 0 {
		n, err := d.moveSome()
		if err != nil {
			return // room is short: whoever needs some is told
		}
		budget -= n
	}
}

// placed is a record and where it was.
type placed struct {
	record
	off int64
}

// moveSome moves what is live in the next chunk, or so much of it as the active segment
// has room for, and returns how far that was.
func (d *Disk) moveSome() (int64, error) {
	start := d.move.off
	keep, end, err := d.scanSome()
	if err != nil || len(keep) == 0 {
		d.move.off = end
		return end - start, err
	}
	if err := d.room(keep[0].size); err != nil {
		return 0, err
	}
	left := d.active.size - d.active.end
	for _, k := range keep {
		if left -= k.size; left < 0 {
			end = k.off
			break
		}
		d.encode(k.kind, k.seq, k.data)
	}
	if _, err := d.flush(); err != nil {
		return 0, err
	}
	d.move.off = end
	return end - start, nil
}

// scanSome returns the records in the next chunk that are needed, and where it ends. What
// is damaged stays where it is: the index, Read and Check go on to tell of it, and the
// segment goes once that message is removed.
func (d *Disk) scanSome() (keep []placed, end int64, err error) {
	s, start := d.move.seg, d.move.off
	chunk, err := d.readChunk(s, start, min(moveChunk, s.end-start))
	if err != nil {
		return nil, start, err
	}
	off := start
	for len(chunk) > 0 {
		r, ok := parseRecord(chunk, s.salt, off)
		if !ok {
			size, known := recordSize(chunk)
			beyond := len(chunk) < recordHeader || known && size > int64(len(chunk))
			if beyond && off > start && off+int64(len(chunk)) < s.end {
				break // it goes on behind the chunk
			}
			r.size = min(recordAlign, int64(len(chunk)))
		} else if d.needed(r, s, off) {
			keep = append(keep, placed{r, off})
		}
		off += r.size
		chunk = chunk[r.size:]
	}
	return keep, off, nil
}

// readChunk reads n bytes of s at off, or more if the record there is longer.
func (d *Disk) readChunk(s *segment, off, n int64) ([]byte, error) {
	for {
		if int64(cap(d.move.buf)) < n {
			d.move.buf = make([]byte, n)
		}
		b := d.move.buf[:n]
		if _, err := s.file.ReadAt(b, off); err != nil {
			return nil, d.diskError(err, "read %s at %d", s.path, off)
		}
		size, ok := recordSize(b)
		if !ok || size <= n || size > s.end-off {
			return b, nil
		}
		n = size
	}
}
