package store

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// kernelQueue is one segment.
type kernelQueue struct {
	number int
	id     int // msqid
	qbytes int // msg_qbytes
	used   int // bytes of records in it
	seqs   []uint64
	head   int // seqs[head:] are the records in the kernel's order; 0 is one that is not ours
}

func (g *kernelQueue) records() []uint64 { return g.seqs[g.head:] }

func (g *kernelQueue) free() int { return max(g.qbytes-g.used, 0) }

// fits tells whether the kernel takes a record of size. It bounds bytes and, by the
// same number, records (msg_qbytes, msgop(2)).
func (g *kernelQueue) fits(size int) bool {
	return g.used+size <= g.qbytes && len(g.records()) < min(g.qbytes, maxRecords)
}

// usualRecords is for how many records room is made at once: as many of some 130 bytes as 16
// KiB take.
const usualRecords = 128

func (g *kernelQueue) add(seq uint64, size int) {
	if g.seqs == nil {
		g.seqs = make([]uint64, 0, usualRecords)
	}
	g.seqs = append(g.seqs, seq)
	g.used += size
}

// drop forgets the first record of seq, of size bytes.
func (g *kernelQueue) drop(seq uint64, size int) {
	rest := g.records()
	switch i := slices.Index(rest, seq); i {
	case -1:
		return
	case 0:
		g.head++
		if g.head > 64 && g.head > len(g.seqs)/2 {
			g.seqs = slices.Delete(g.seqs, 0, g.head)
			g.head = 0
		}
	default:
		g.seqs = slices.Delete(g.seqs, g.head+i, g.head+i+1)
	}
	g.used -= size
}

// gone tells whether err means that a kernel queue is not there any more.
func gone(err error) bool {
	return errors.Is(err, unix.EIDRM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
}

// stat returns segment number's kernel queue and EIDRM where the recorded id is now
// another's: an id may be given out again after some 32,000 others, and a key proves nothing.
func (k *keyFile) stat(number int) (ds msqidDS, err error) {
	line := k.line(number)
	if err := msgctl(line.id, unix.IPC_STAT, &ds); err != nil {
		if err == unix.EACCES { // not even the owner's: an id given out again
			return ds, unix.EIDRM
		}
		return ds, err
	}
	if Key(ds.perm.Key) != line.key || int(ds.perm.Uid) != k.uid || int(ds.perm.Cuid) != k.uid {
		return ds, unix.EIDRM
	}
	return ds, nil
}

// room returns a segment that takes a record of size: the one being filled, else an
// empty one, else a new one, else an older one where something was removed; that is filled from now on.
func (s *SysV) room(size int) (*kernelQueue, error) {
	if s.filling != nil && s.filling.fits(size) {
		return s.filling, nil
	}
	for _, g := range s.segments {
		if g != nil && len(g.records()) == 0 && g.fits(size) {
			s.filling = g
			return g, nil
		}
	}
	grown, err := s.grow()
	if grown && err == nil {
		return s.filling, nil
	}
	if err != nil && !errors.Is(err, ErrNoSpace) {
		return nil, err
	}
	for _, g := range s.segments {
		if g != nil && g.fits(size) {
			s.filling = g
			return g, nil
		}
	}
	if err == nil {
		err = fail(ErrFull, unix.EAGAIN, "queue %s is full: %d messages of %d bytes in %d kernel queues of %d bytes; consume some, or allow larger kernel queues: sysctl -w kernel.msgmnb=%d"+sizeFrom,
			s.keys.name(), s.index.live, s.bytes, s.queues(), s.limits.mnb, 4*s.limits.mnb)
	}
	return nil, err
}

// queues returns how many kernel queues there are.
func (s *SysV) queues() (n int) {
	for _, g := range s.segments {
		if g != nil {
			n++
		}
	}
	return n
}

// grow makes a new segment, to be filled from now on. It returns false where there is
// no number left for one.
func (s *SysV) grow() (bool, error) {
	if s.queues() >= s.opts.MaxSegments {
		return false, nil
	}
	for number := 1; number <= maxSegments; number++ {
		if s.segments[number] != nil || s.keys.line(number).state == segmentStrange {
			continue
		}
		g, err := s.create(number)
		if err != nil {
			return false, err
		}
		if g != nil {
			s.segments[number], s.filling = g, g
			return true, nil
		}
	}
	return false, nil
}

// sizeFrom says when a raised kernel.msgmnb counts.
const sizeFrom = " (kernel queues that exist keep their size; new ones take it once the broker is started again)"

// create makes the kernel queue of segment number, or returns nil where its key is
// not to be had.
func (s *SysV) create(number int) (*kernelQueue, error) {
	line := segmentLine{key: s.keys.key(number), id: int(time.Now().Unix()), state: segmentMaking}
	if line.key == keyPrivate || line.key == keyFailed {
		line.id, line.state = 0, segmentStrange
		return nil, s.keys.set(number, line)
	}
	if err := s.keys.set(number, line); err != nil {
		return nil, err
	}
	s.step("making")
	id, err := msgget(line.key, unix.IPC_CREAT|unix.IPC_EXCL|int(s.opts.Mode&0o777))
	s.step("made")
	if err != nil {
		line.id, line.state = 0, segmentFree
		if err == unix.EEXIST {
			line.state = segmentStrange
			return nil, s.keys.set(number, line)
		}
		return nil, errors.Join(s.createFailure(number, err), s.keys.set(number, line))
	}
	line.id, line.state = id, segmentLive
	g := &kernelQueue{number: number, id: id, qbytes: s.limits.mnb}
	if err := s.keys.set(number, line); err != nil {
		return nil, errors.Join(err, msgctl(id, unix.IPC_RMID, nil))
	}
	s.step("live")
	var ds msqidDS
	if msgctl(id, unix.IPC_STAT, &ds) == nil {
		g.qbytes = int(ds.qbytes)
	}
	return g, nil
}

func (s *SysV) createFailure(number int, err error) error {
	switch err {
	case unix.ENOSPC:
		return fail(ErrNoSpace, err, "queue %s needs one more kernel queue and the host has all its %d (kernel.msgmni): ipcs -q shows whose they are; remove some, or sysctl -w kernel.msgmni=%d",
			s.keys.name(), s.limits.mni, 2*s.limits.mni)
	case unix.ENOMEM:
		return fail(ErrNoSpace, err, "queue %s needs one more kernel queue and the kernel has no memory for it: free some, or raise the memory limit of the broker's cgroup", s.keys.name())
	}
	return fail(ErrNotAllowed, err, "queue %s: msgget key %v (segment %d)", s.keys.name(), s.keys.key(number), number)
}

// retire removes g's kernel queue if it's empty and not the one being filled, and there
// are spare ones without it.
func (s *SysV) retire(g *kernelQueue) error {
	if g == nil || g == s.filling || len(g.records()) > 0 {
		return nil
	}
	return s.retireAll(maxSpare)
}

// retireAll removes the empty kernel queues but for the one being filled and spare others.
func (s *SysV) retireAll(spare int) error {
	for _, g := range s.segments {
		if g == nil || g == s.filling || len(g.records()) > 0 {
			continue
		}
		if spare--; spare >= 0 {
			continue
		}
		if err := s.discard(g); err != nil {
			return err
		}
	}
	return nil
}

// discard removes g's kernel queue, which is empty; what is not ours keeps it.
func (s *SysV) discard(g *kernelQueue) error {
	line := s.keys.line(g.number)
	line.state = segmentRemoving
	if err := s.keys.set(g.number, line); err != nil {
		return err
	}
	s.step("removing")
	ds, err := s.keys.stat(g.number)
	if err == nil && ds.qnum > 0 {
		line.state = segmentLive
		g.used = int(ds.cbytes)
		return s.keys.set(g.number, line)
	}
	if err == nil {
		err = msgctl(g.id, unix.IPC_RMID, nil)
	}
	s.step("removed")
	if err != nil && !gone(err) {
		return fail(ErrNotAllowed, err, "queue %s: remove kernel queue %d", s.keys.name(), g.id)
	}
	s.segments[g.number] = nil
	line.state = segmentFree
	return s.keys.set(g.number, line)
}

// refresh asks the kernel how full g is, after others used it.
func (s *SysV) refresh(g *kernelQueue) {
	ds, err := s.keys.stat(g.number)
	if err != nil {
		return // the next call on it finds out
	}
	g.used, g.qbytes = int(ds.cbytes), int(ds.qbytes)
}

// heal looks after all segments once a call on one of them failed with cause, forgets
// those that are gone and tells what was in them. It returns false if all are there.
func (s *SysV) heal(cause error) (bool, error) {
	var missing []*kernelQueue
	for _, g := range s.segments {
		if g == nil {
			continue
		}
		if _, err := s.keys.stat(g.number); gone(err) {
			missing = append(missing, g)
			s.segments[g.number] = nil
			if s.filling == g {
				s.filling = nil
			}
		}
	}
	if len(missing) == 0 {
		return false, nil
	}
	var seqs []uint64
	for _, g := range missing {
		seqs = append(seqs, g.records()...)
	}
	lost := s.loseAll(seqs)
	lost.Why, lost.Errno = "its kernel queues were removed by somebody else (ipcrm, or logind's RemoveIPC); new ones are made", cause
	s.tell(lost)
	// Only now, so that a crash in between is told by the next open.
	for _, g := range missing {
		if err := s.keys.set(g.number, segmentLine{key: s.keys.line(g.number).key, state: segmentFree}); err != nil {
			return true, err
		}
	}
	return true, nil
}

// loseAll drops the messages among seqs with all that is left of them.
func (s *SysV) loseAll(seqs []uint64) *LostError {
	slices.Sort(seqs)
	lost := new(LostError)
	for _, seq := range slices.Compact(seqs) {
		if p, ok := s.forgetMessage(seq); ok {
			lost.Seqs = append(lost.Seqs, seq)
			_ = s.take(seq, p.chunks()) // what is gone is gone
		}
	}
	lost.Messages = len(lost.Seqs)
	return lost
}
