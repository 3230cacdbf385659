package store

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Read appends message seq's Data to dst, copying it from the kernel, or from
// memory without MSG_COPY.
func (s *SysV) Read(dst []byte, seq uint64) ([]byte, error) {
	if s.closed {
		return dst, ErrClosed
	}
	for range 2 { // a second time when others' records had moved ours
		p, ok := s.index.get(seq)
		if !ok {
			break
		}
		data, g, err := s.copyOut(dst, seq, &p)
		if err == nil {
			return data, nil
		}
		if gone(err) {
			_, err = s.heal(err)
		} else if err == unix.ENOMSG {
			err = s.audit(g)
		}
		if err != nil {
			return dst, s.settle(err)
		}
	}
	return dst, s.settle(fail(ErrNotFound, nil, "queue %s: message %d is not there", s.keys.name(), seq))
}

// copyOut appends the message at p to dst. It returns ENOMSG, and the segment, where
// a record is not where it was put.
func (s *SysV) copyOut(dst []byte, seq uint64, p *place) ([]byte, *kernelQueue, error) {
	if s.bodies != nil {
		return append(dst, s.bodies[seq]...), nil, nil
	}
	if p.spread == nil {
		g := s.segments[p.first]
		s.peekSize = int(p.size) + chunkHeader
		r, err := s.peek(g, slices.Index(g.records(), seq))
		if err != nil || r.seq != seq {
			return dst, g, orNoMsg(err)
		}
		return append(dst, r.chunk...), nil, nil
	}
	parts := make([][]byte, len(p.spread))
	numbers := slices.Clone(p.spread)
	slices.Sort(numbers)
	for _, number := range slices.Compact(numbers) {
		g := s.segments[number]
		for at, other := range g.records() {
			if other != seq {
				continue
			}
			r, err := s.peek(g, at)
			if err != nil || r.seq != seq || r.index >= len(parts) {
				return dst, g, orNoMsg(err)
			}
			parts[r.index] = slices.Clone(r.chunk)
		}
	}
	for _, part := range parts {
		dst = append(dst, part...)
	}
	return dst, nil, nil
}

func orNoMsg(err error) error {
	if err == nil {
		return unix.ENOMSG
	}
	return err
}

// peek copies the record at place at of g; it's valid until the buffer is used again.
// The record's seq is 0 where it's not one of ours.
//
// The kernel allocates as much as the caller's buffer has, and copies that in, before it
// looks for the message (prepare_copy in ipc/msg.c): with room for a megabyte each call costs 200 µs.
// So the buffer is that of the record before, or larger once E2BIG said so.
func (s *SysV) peek(g *kernelQueue, at int) (piece, error) {
	if at < 0 {
		return piece{}, unix.ENOMSG
	}
	size := max(s.peekSize, 256)
	for {
		if mtypeSize+size > len(s.buffer()) { // not ours, or kernel.msgmax was larger when it was sent
			s.buf = make([]byte, mtypeSize+size)
		}
		n, err := msgrcv(g.id, s.buf[:mtypeSize+size], int64(at), msgCopy)
		if err == unix.E2BIG {
			size *= 4
			continue
		}
		if err == unix.EINVAL {
			return piece{}, s.lowered(g, err)
		}
		if err != nil {
			return piece{}, err
		}
		s.peekSize = n - mtypeSize
		r, ok := decodeChunk(s.buf[:n])
		if !ok {
			return piece{}, nil
		}
		return r, nil
	}
}

// lowered tells a queue that is gone from one with a record above kernel.msgmax, which can be
// received but neither copied nor sent again: both are EINVAL.
func (s *SysV) lowered(g *kernelQueue, err error) error {
	if _, gone := s.keys.stat(g.number); gone != nil {
		return gone
	}
	// Not with the errno inside, which means that the queue is gone.
	return fail(ErrTooLarge, unix.EMSGSIZE, "queue %s has messages from when kernel.msgmax was larger than the %d it is now (%v): raise it again until they are consumed, sysctl -w kernel.msgmax=…",
		s.keys.name(), readLimits().max, err)
}

// audit reads all of g again, since a record was not where it should be: other programs put
// records in, or took some. It tells which of our messages are gone.
func (s *SysV) audit(g *kernelQueue) error {
	before := slices.Clone(g.records())
	g.seqs, g.head = g.seqs[:0], 0
	counts := make(map[uint64]int)
	for at := 0; ; at++ {
		r, err := s.peek(g, at)
		if err == unix.ENOMSG {
			break
		} else if gone(err) {
			g.seqs = before
			_, err = s.heal(err)
			return err
		} else if err != nil {
			g.seqs = before
			return err
		}
		g.seqs = append(g.seqs, r.seq)
		counts[r.seq]++
	}
	s.refresh(g)
	var lost []uint64
	for _, seq := range before {
		if counts[seq]--; seq != 0 && counts[seq] < 0 {
			lost = append(lost, seq)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	l := s.loseAll(lost)
	l.Why, l.Errno = "another program received them from our kernel queue (ipcs -q -p shows who was last)", unix.ENOMSG
	s.tell(l)
	return nil
}

// Each calls f for every live entry, in the order of Store.
func (s *SysV) Each(f func(Entry) error) error {
	if s.closed {
		return ErrClosed
	}
	var buf []byte
	var troubled []uint64
	err := s.ledger.each(f, func(f func(uint64, []byte) error) error {
		return s.index.each(func(seq uint64, p place) error {
			data, _, err := s.copyOut(buf[:0], seq, &p)
			if err != nil {
				troubled = append(troubled, seq)
				return nil
			}
			buf = data
			return f(seq, data)
		})
	})
	if err != nil {
		return err
	}
	for _, seq := range troubled { // Read finds out why
		if _, err := s.Read(nil, seq); err != nil {
			return err
		}
	}
	return nil
}
