package store

// A full disk must not keep anybody from removing what fills it. So a message, Mark or
// Settings is refused unless what is left behind it, in spares and at the end of the active
// segment, is the reserve, in bytes:
//
//   - the floor: any one segment can be moved, after which it is room again;
//   - the first State of each message, up to stateReserve bytes of Data;
//   - slack, for records until something is moved, and for records that lie less well
//     after a move.
//
// Removes, Forgets and States go down to the floor. Then the oldest segments are moved, and
// dropped, until they are above it again. That comes to an end: none of these ever adds more
// to what is live and owed than it ends, so all that was reserved once comes back.

// stateReserve is how many bytes of a State's Data have room kept with each message. A
// larger State may take half of the slack.
const stateReserve = 24

// load is what is about to be written.
type load struct {
	first, all int64 // bytes of its first record, and of all
	largest    int64 // record in it
	messages   int
	slack      int64 // what it must leave of it
}

// free is how much fits without another file, some waste at the end of files included.
func (d *Disk) free() int64 {
	return d.active.size - d.active.end + d.spares.room()
}

// floor is the room in which any segment can be moved, the active one with up to reach bytes
// that live. Each file moved to has a rest that is too small for the next record.
func (d *Disk) floor(reach, largest int64) int64 {
	reach = max(d.reach, reach)
	return reach + min(int64(len(d.spares.ready)+1)*max(d.largest, largest), reach)
}

func (d *Disk) slack() int64 { return d.options.minSegment / 4 }

// owed is what the first States of messages, and longer ones, can still take.
func (d *Disk) owed(messages int) int64 {
	return int64(d.messages.count+messages)*recordLen(stateReserve) - d.stated
}

// reserve is what must be left behind w, with which reach bytes of the active segment live.
func (d *Disk) reserve(w load, reach int64) int64 {
	// One file after the other is filled until a record does not fit: of two, more than one is.
	largest := max(d.largest, w.largest)
	waste := max(0, min(int64(len(d.segments)+1)*largest, d.live+w.all-largest))
	return d.floor(reach, w.largest) + d.owed(w.messages) + w.slack + waste
}

// settled is free once the oldest segment is dropped, if that is under way.
func (d *Disk) settled(free int64) int64 {
	oldest := d.segments[0]
	moving := oldest.live == 0 || d.move.seg == oldest
	if oldest == d.active || !moving || free < oldest.live+d.slack()+min(int64(len(d.spares.ready)+1)*d.largest, oldest.live) {
		return free
	}
	return free + oldest.size - segmentData - oldest.live
}

// leaves says whether the reserve is left behind w, and with none whether w finds a place
// at all.
func (d *Disk) leaves(w load) bool {
	left := d.active.size - d.active.end
	free, reach := d.spares.room(), d.active.live
	if left >= w.first {
		n := min(w.all, left)
		reach += n
		if len(d.segments) > 1 { // a lone segment cannot be moved into itself
			free += left - n
		}
	} else {
		i := d.spares.fitting(w.first)
		if i < 0 {
			return false
		}
		n := min(w.all, d.spares.ready[i].size-segmentData)
		free -= n
		reach = max(reach, n)
	}
	return d.settled(free) >= d.reserve(w, reach)
}

// admit makes spares until w leaves the reserve alone.
func (d *Disk) admit(w load) error {
	d.spares.poll()
	for !d.leaves(w) {
		need := int64(0)
		if d.active.size-d.active.end < w.first && d.spares.fitting(w.first) < 0 {
			need = w.first
		}
		size := d.segmentSize(need)
		err := d.makeSpare(size)
		if isFull(err) && size > d.options.minSegment {
			err = d.makeSmaller(size, need)
		}
		if isFull(err) && need > 0 {
			err = d.regroup(need, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maxSqueezes bounds the segments that one Append moves when it finds no room.
const maxSqueezes = 8

// admitFull is admit, and where there is no room it makes some of what is dead.
func (d *Disk) admitFull(w load) error {
	err := d.admit(w)
	for n := 0; isFull(err) && n < maxSqueezes; {
		oldest := d.segments[0]
		if oldest == d.active {
			return err
		}
		if oldest.live > 0 { // is it worth it, once all are moved?
			dead := d.total - d.active.size - int64(len(d.segments)-1)*segmentData - (d.live - d.active.live)
			if dead < d.total/16 || d.free()+dead < d.reserve(w, 0)+w.all {
				return err
			}
			n++
		}
		if !d.squeeze() {
			return err
		}
		err = d.admit(w)
	}
	return err
}

// useReserve makes room for records that may use the reserve: all bytes, the first of them
// at least.
func (d *Disk) useReserve(first, all int64) error {
	d.spares.poll()
	for n := len(d.segments) + 1; n > 0 && d.settled(d.free()-all) < d.floor(d.active.live, 0); n-- {
		if (d.spares.failed || d.makeSpare(d.segmentSize(0)) != nil) && !d.squeeze() {
			break
		}
	}
	for n := len(d.segments) + 1; ; n-- {
		err := d.room(first)
		if err == nil || !isFull(err) || n == 0 || !d.squeeze() {
			return err
		}
	}
}

// squeeze moves what is live in the oldest segment, if there is room, and drops it. It says
// whether that was done.
func (d *Disk) squeeze() bool {
	oldest := d.segments[0]
	if oldest == d.active || d.failed.Load() != nil || oldest.live > d.free() {
		return false
	}
	if oldest.live > 0 && d.move.seg != oldest {
		d.move = mover{seg: oldest, off: segmentData, buf: d.move.buf}
	}
	for oldest.live > 0 && d.move.off < oldest.end {
		if _, err := d.moveSome(); err != nil {
			return false
		}
	}
	d.syncing.Lock()
	err := d.datasync()
	d.syncing.Unlock()
	if err != nil || oldest.live > 0 {
		return false
	}
	_ = d.spares.take() // the name of the segment before is gone then
	if d.segments[0] == oldest && d.drop(oldest) != nil {
		return false
	}
	_ = d.spares.take()
	return true
}

// target is how much room the spares are made for ahead.
func (d *Disk) target() int64 {
	return d.reserve(load{slack: d.slack()}, d.active.live) + min(d.segmentSize(0), 2*(d.filled+d.active.end-segmentData))
}

// short says whether room is short.
func (d *Disk) short() bool {
	return d.spares.failed || d.total+d.spares.bytes() > d.options.MaxBytes/4*3
}

// measure finds anew how much lives in a closed segment, and the largest record.
func (d *Disk) measure() {
	d.reach, d.largest = 0, 0
	for _, s := range d.segments {
		if s != d.active {
			d.reach = max(d.reach, s.live)
		}
		d.largest = max(d.largest, s.largest)
	}
}
