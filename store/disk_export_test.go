package store

// DiskFiles and DiskFile let tests stand in for the file system.
type (
	DiskFiles = diskFiles
	DiskFile  = diskFile
)

// HostFiles is the real one.
var HostFiles DiskFiles = hostFiles{}

// WithSegments returns opts with segments of least to most bytes.
func WithSegments(opts DiskOptions, least, most int64) *DiskOptions {
	opts.minSegment, opts.maxSegment = least, most
	return &opts
}

// WithFiles returns opts with another file system.
func WithFiles(opts *DiskOptions, files DiskFiles) *DiskOptions {
	o := *opts
	o.files = files
	return &o
}

// IndexBytes is what the index takes in memory.
func (d *Disk) IndexBytes() int {
	n := 12*cap(d.states) + 4*cap(d.freeStates)
	for _, x := range []*index{&d.messages, &d.marks} {
		n += 8 * cap(x.blocks)
		for _, b := range x.blocks {
			n += 32 + 24*cap(b.items)
		}
	}
	return n
}

// Invariant compares the counters of d with what is in its index.
func (d *Disk) Invariant() string {
	live := map[uint32]int64{}
	sum := func(seg, size uint32) { live[seg] += recordLen(int(size)) }
	count := 0
	last := uint64(0)
	_ = d.messages.each(func(it *item) error {
		if it.seq <= last {
			count = -1 << 40
		}
		last = it.seq
		count++
		sum(it.seg, it.size)
		if it.state != 0 {
			st := d.states[it.state-1]
			sum(st.seg, st.size)
		}
		return nil
	})
	_ = d.marks.each(func(it *item) error { sum(it.seg, it.size); return nil })
	if d.settings.seg != 0 {
		sum(d.settings.seg, d.settings.size)
	}
	total, filled := int64(0), int64(0)
	all := int64(0)
	for i, s := range d.segments {
		if s.live != live[s.id] {
			return "a segment's live bytes are not those of the index"
		}
		if i > 0 && s.id != d.segments[i-1].id+1 {
			return "a gap between segments"
		}
		all += s.live
		total += s.size
		if s != d.active {
			filled += s.end - segmentData
		}
	}
	switch {
	case count != d.messages.count:
		return "the index is out of order or miscounted"
	case all != d.live, total != d.total, filled != d.filled:
		return "the sums over segments are wrong"
	}
	return ""
}

// Place is where the record of a message is.
func (d *Disk) Place(seq uint64) (path string, off int64) {
	it := d.messages.get(seq)
	return d.byID[it.seg].path, int64(it.off) * recordAlign
}

// Abandon lets go of the store as the end of its process does.
func (d *Disk) Abandon() {
	d.closed = true
	if d.stop != nil {
		close(d.stop)
		<-d.stopped
	}
	d.spares.left = nil
	_ = d.spares.take()
	for _, sp := range d.spares.ready {
		sp.file.Close()
	}
	for _, s := range d.segments {
		s.file.Close()
	}
	d.lock.Close()
}
