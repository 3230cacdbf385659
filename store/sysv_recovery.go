package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// finds collects the records that are in the kernel at open, in any order.
type finds struct {
	singles []find
	chains  map[uint64]*chain
	seen    map[uint64]bool   // of singles; nil: duplicates can't be
	bodies  map[uint64][]byte // nil: not wanted
}

type find struct {
	seq   uint64
	place place
}

// chain is a message of several records, as far as they were found.
type chain struct {
	have   int
	got    []bool
	size   int
	spread []uint8
	parts  [][]byte
}

// add takes r, found in segment number, and returns false if it was there already.
func (f *finds) add(r piece, number int) bool {
	if r.total == 1 {
		if f.seen != nil {
			if f.seen[r.seq] {
				return false
			}
			f.seen[r.seq] = true
		}
		f.singles = append(f.singles, find{r.seq, place{size: uint32(len(r.chunk)), first: uint8(number)}})
		if f.bodies != nil {
			f.bodies[r.seq] = clone(r.chunk)
		}
		return true
	}
	c := f.chains[r.seq]
	if c == nil {
		c = &chain{got: make([]bool, r.total), parts: make([][]byte, r.total)}
		f.chains[r.seq] = c
	}
	if r.index >= len(c.got) || c.got[r.index] {
		return false
	}
	c.got[r.index] = true
	c.have++
	c.size += len(r.chunk)
	c.spread = append(c.spread, uint8(number))
	if f.bodies != nil {
		c.parts[r.index] = clone(r.chunk)
	}
	return true
}

// recover sets the store to what is in the kernel and the files.
func (s *SysV) recover() error {
	var damaged error
	var err error
	s.log, damaged, err = openJournal(s.path(".log"), func(e Entry) {
		if e.Kind == logForget {
			s.ledger.forget(e.Seq)
		} else {
			s.ledger.set(e)
		}
	})
	if err != nil {
		return err
	}
	if damaged != nil {
		s.tell(&LostError{Why: damaged.Error(), Errno: ErrDamaged})
	}
	if err := s.recoverHost(); err != nil {
		return err
	}
	missing, err := s.recoverSegments()
	if err != nil {
		return err
	}
	found, err := s.search()
	if err != nil {
		return err
	}
	if err := s.settleFinds(found); err != nil {
		return err
	}
	if missing > 0 {
		s.tellMissing(missing)
	}
	for seq := range s.ledger.states {
		if _, ok := s.index.get(seq); !ok {
			s.ledger.dropState(seq)
		}
	}
	top, _ := s.index.last()
	s.high = max(s.keys.high, top)
	s.keys.count, s.pending = -1, nil
	return s.keys.writeHeader(s.keys.name())
}

// recoverHost begins anew, keeping settings and high seq, where the kernel queues are those of
// another boot or namespace.
func (s *SysV) recoverHost() error {
	host, err := readHostID()
	if err != nil || host == s.keys.host {
		return err
	}
	why := "the host was started again, and kernel queues do not survive that: use the disk level for what must"
	if host.boot == s.keys.host.boot {
		why = fmt.Sprintf("this process is in another IPC namespace than the one before (container, PrivateIPC=): ipc:[%d], was ipc:[%d]", host.ns, s.keys.host.ns)
	}
	live := slices.ContainsFunc(s.keys.lines, func(l segmentLine) bool { return l.state == segmentLive })
	s.ledger.forget(MaxSeq)
	for seq := range s.ledger.states {
		s.ledger.dropState(seq)
	}
	if err := s.log.rewrite(&s.ledger); err != nil {
		return err
	}
	if err := os.Remove(s.path(".rot")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fileFailure(err)
	}
	count := s.keys.count
	if err := s.keys.reset(host); err != nil {
		return err
	}
	if live && count != 0 {
		s.tell(&LostError{Messages: count, Why: why})
	}
	return nil
}

// recoverSegments finds the kernel queues that the key file records, and returns how
// many of them somebody else has removed.
func (s *SysV) recoverSegments() (missing int, err error) {
	for i, line := range s.keys.lines {
		number, next := i+1, line
		switch line.state {
		case segmentLive, segmentRemoving:
			ds, err := s.keys.stat(number)
			switch {
			case gone(err):
				if line.state == segmentLive {
					missing++
				}
				next.state = segmentFree
			case err != nil:
				return missing, fail(ErrNotAllowed, err, "queue %s: look at kernel queue %d", s.keys.name(), line.id)
			case line.state == segmentRemoving && ds.qnum == 0:
				if err := msgctl(line.id, unix.IPC_RMID, nil); err != nil && !gone(err) {
					return missing, fail(ErrNotAllowed, err, "queue %s: remove kernel queue %d", s.keys.name(), line.id)
				}
				next.state = segmentFree
			default:
				next.state = segmentLive
				s.segments[number] = &kernelQueue{number: number, id: line.id, qbytes: s.adjust(line.id, &ds), used: int(ds.cbytes)}
			}
		case segmentMaking:
			next.id, next.state = 0, segmentFree
			if err := s.keys.reclaim(line, int(s.opts.Mode&0o777)); err != nil {
				return missing, err
			}
		case segmentStrange: // create finds out whose the key is now
			next.state = segmentFree
		}
		if next != line {
			if err := s.keys.set(number, next); err != nil {
				return missing, err
			}
		}
	}
	return missing, nil
}

// reclaim removes the queue of a create that was killed between msgget and the record of its id.
// What speaks for that: the key, our uid as owner and creator, our mode (-1: any), made within a second of the
// recorded time, and nothing was ever sent to it. If it is a stranger's all the same, that one has lost
// nothing but an empty queue it just made.
func (k *keyFile) reclaim(line segmentLine, mode int) error {
	id, err := msgget(line.key, 0)
	var ds msqidDS
	if err != nil || msgctl(id, unix.IPC_STAT, &ds) != nil {
		return nil
	}
	uid := uint32(k.uid)
	if ds.perm.Uid != uid || ds.perm.Cuid != uid || mode >= 0 && int(ds.perm.Mode&0o777) != mode ||
		ds.qnum != 0 || ds.lspid != 0 || ds.stime != 0 || max(ds.ctime-int64(line.id), int64(line.id)-ds.ctime) > 1 {
		return nil
	}
	if err := msgctl(id, unix.IPC_RMID, nil); err != nil && !gone(err) {
		return fail(ErrNotAllowed, err, "queue %s: remove kernel queue %d", k.name(), id)
	}
	return nil
}

// adjust sets the mode of a kernel queue, and its size if the host's limit was raised
// since, and returns the size.
func (s *SysV) adjust(id int, ds *msqidDS) int {
	was := int(ds.qbytes)
	if mode := s.opts.Mode & 0o777; was >= s.limits.mnb && ds.perm.Mode&0o777 == mode {
		return was
	} else {
		ds.perm.Mode = ds.perm.Mode&^0o777 | mode
	}
	ds.qbytes = uint64(max(was, s.limits.mnb))
	if msgctl(id, unix.IPC_SET, ds) != nil {
		return was
	}
	return int(ds.qbytes)
}

// search reads all records: by MSG_COPY, or by rotation where that is not to be had,
// or where an earlier one was interrupted.
func (s *SysV) search() (*finds, error) {
	f := &finds{chains: make(map[uint64]*chain)}
	slot, err := openSlot(s.path(".rot"), s.slotSize(), false)
	if err != nil {
		return nil, err
	}
	noCopy := s.opts.NoCopy || copyMissing()
	if noCopy {
		f.bodies = make(map[uint64][]byte)
	}
	if noCopy && slot == nil {
		if slot, err = openSlot(s.path(".rot"), s.slotSize(), true); err != nil {
			return nil, err
		}
	}
	if slot != nil {
		f.seen = make(map[uint64]bool)
		return f, errors.Join(s.rotate(slot, f), slot.close())
	}
	for _, g := range s.segments {
		for at := 0; g != nil; at++ {
			r, err := s.peek(g, at)
			if err == unix.ENOMSG {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("store: queue %s: read kernel queue %d: %w", s.keys.name(), g.id, err)
			}
			s.found(f, g, r)
		}
	}
	return f, nil
}

// found notes the next record of g.
func (s *SysV) found(f *finds, g *kernelQueue, r piece) bool {
	if r.seq != 0 && !f.add(r, g.number) && f.seen != nil {
		return false
	}
	if r.seq == 0 {
		s.strange++
	}
	g.seqs = append(g.seqs, r.seq)
	return true
}

// copyMissing tells whether this kernel has no MSG_COPY: it says so before it looks at the id.
func copyMissing() bool {
	var b [mtypeSize + 1]byte
	_, err := msgrcv(1<<31-1, b[:], 0, msgCopy)
	return err == unix.ENOSYS
}

// settleFinds fills the index with the messages that are whole, and takes away what
// is left of the others: half written or half removed, neither of which was confirmed.
func (s *SysV) settleFinds(f *finds) error {
	if f.bodies != nil {
		s.bodies = f.bodies
	}
	broken := make(map[uint64][]uint8)
	for seq, c := range f.chains {
		if c.have < len(c.got) {
			broken[seq] = c.spread
			continue
		}
		f.singles = append(f.singles, find{seq, place{size: uint32(c.size), first: c.spread[0], spread: c.spread}})
		if s.bodies != nil {
			s.bodies[seq] = slices.Concat(c.parts...)
		}
	}
	slices.SortFunc(f.singles, func(a, b find) int { return cmp.Compare(a.seq, b.seq) })
	for _, one := range f.singles {
		if before, twice := s.index.put(one.seq, one.place); twice {
			one.place.spread = append(slices.Clone(before.chunks()), one.place.chunks()...)
			s.index.put(one.seq, one.place)
			s.bytes -= int64(before.size)
		}
		s.bytes += int64(one.place.size)
	}
	s.pickFilling()
	for seq, spread := range broken {
		if err := s.take(seq, spread); err != nil {
			return fmt.Errorf("store: queue %s: drop what is left of message %d: %w", s.keys.name(), seq, err)
		}
	}
	return s.retireAll(maxSpare)
}

// pickFilling takes the segment with the highest seq for the one being filled.
func (s *SysV) pickFilling() {
	var top uint64
	for _, g := range s.segments {
		if g == nil {
			continue
		}
		if s.filling == nil {
			s.filling = g
		}
		if n := len(g.seqs); n > 0 && g.seqs[n-1] > top {
			s.filling, top = g, g.seqs[n-1]
		}
	}
}

func (s *SysV) tellMissing(missing int) {
	lost := -1
	if s.keys.count >= 0 {
		if lost = s.keys.count - s.index.live; lost <= 0 {
			return
		}
	}
	s.tell(&LostError{Messages: lost, Errno: unix.EIDRM,
		Why: fmt.Sprintf("%d of its kernel queues were removed by somebody else (ipcrm, or logind's RemoveIPC) while the store was closed", missing)})
}
