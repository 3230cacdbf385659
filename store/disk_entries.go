package store

import "encoding/binary"

// apply takes the record at off of s, which was written or read there, into the index.
func (d *Disk) apply(r record, s *segment, off int64) {
	at := item{seq: r.seq, seg: s.id, off: uint32(off / recordAlign), size: uint32(len(r.data))}
	switch r.kind {
	case Message:
		d.applyMessage(at)
	case State:
		d.applyState(at)
	case Mark:
		if old := d.marks.get(r.seq); old != nil {
			d.kill(old.seg, old.size)
			*old = at
		} else {
			d.marks.put(at)
		}
		d.revive(at.seg, at.size)
		d.high = max(d.high, r.seq)
	case Settings:
		if d.settings.seg != 0 {
			d.kill(d.settings.seg, d.settings.size)
		}
		d.settings = at
		d.revive(at.seg, at.size)
	case recRemove:
		d.applyRemove(r.seq)
	case recRemoveMany:
		for b := r.data; len(b) >= 8; b = b[8:] {
			d.applyRemove(binary.LittleEndian.Uint64(b))
		}
	case recForget:
		for it := d.marks.first(); it != nil && it.seq <= r.seq; it = d.marks.first() {
			d.kill(it.seg, it.size)
			d.marks.drop(it.seq)
		}
	}
}

// applyMessage takes a message in, or one that is there already at its new place.
func (d *Disk) applyMessage(at item) {
	if it := d.messages.get(at.seq); it != nil {
		d.kill(it.seg, it.size)
		d.bytes -= int64(it.size)
		at.state = it.state
		*it = at
	} else {
		d.messages.put(at)
	}
	d.revive(at.seg, at.size)
	d.bytes += int64(at.size)
	d.high = max(d.high, at.seq)
	d.highMessage = max(d.highMessage, at.seq)
	if state, ok := d.orphans[at.seq]; ok {
		delete(d.orphans, at.seq)
		d.applyState(item{seq: at.seq, seg: state.seg, off: state.off, size: state.size})
	}
}

func (d *Disk) applyState(at item) {
	place := stateAt{at.seg, at.off, at.size}
	it := d.messages.get(at.seq)
	if it == nil {
		if d.orphans != nil {
			d.orphans[at.seq] = place
		}
		return
	}
	if it.state != 0 {
		old := &d.states[it.state-1]
		d.kill(old.seg, old.size)
		d.stated -= stateTakes(old.size)
		*old = place
	} else if n := len(d.freeStates); n > 0 {
		it.state = d.freeStates[n-1]
		d.freeStates = d.freeStates[:n-1]
		d.states[it.state-1] = place
	} else {
		d.states = append(d.states, place)
		it.state = uint32(len(d.states))
	}
	d.revive(at.seg, at.size)
	d.stated += stateTakes(at.size)
}

// stateTakes is what a State with size bytes of Data takes of what is reserved for it.
func stateTakes(size uint32) int64 { return min(recordLen(int(size)), recordLen(stateReserve)) }

func (d *Disk) applyRemove(seq uint64) {
	delete(d.orphans, seq)
	it := d.messages.get(seq)
	if it == nil {
		return
	}
	d.kill(it.seg, it.size)
	d.bytes -= int64(it.size)
	if it.state != 0 {
		state := d.states[it.state-1]
		d.kill(state.seg, state.size)
		d.stated -= stateTakes(state.size)
		d.freeStates = append(d.freeStates, it.state)
	}
	d.messages.drop(seq)
	if d.messages.count == 0 { // give back what a backlog took
		d.states, d.freeStates = nil, nil
	}
}

// revive counts a record with size bytes of data as needed.
func (d *Disk) revive(seg, size uint32) {
	d.byID[seg].live += recordLen(int(size))
	d.live += recordLen(int(size))
}

// kill counts it as no longer needed.
func (d *Disk) kill(seg, size uint32) {
	s := d.byID[seg]
	s.live -= recordLen(int(size))
	d.live -= recordLen(int(size))
	if s.live == 0 {
		s.idle = d.written.Load()
	}
}

// needed says whether the record at off of s is the one the index points to.
func (d *Disk) needed(r record, s *segment, off int64) bool {
	at := uint32(off / recordAlign)
	switch r.kind {
	case Message:
		it := d.messages.get(r.seq)
		return it != nil && it.seg == s.id && it.off == at
	case State:
		it := d.messages.get(r.seq)
		if it == nil || it.state == 0 {
			return false
		}
		state := d.states[it.state-1]
		return state.seg == s.id && state.off == at
	case Mark:
		it := d.marks.get(r.seq)
		return it != nil && it.seg == s.id && it.off == at
	case Settings:
		return d.settings.seg == s.id && d.settings.off == at
	}
	return false
}
