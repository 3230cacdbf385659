package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"golang.org/x/sys/unix"
)

// A record is the text of one kernel message: a header, then a chunk of a message.
//
//	0  u16  chunkMagic
//	2  u16  which chunk, from 0
//	4  u16  of how many
//	6  u16  0
//	8  u32  bytes of this chunk
//	12 u32  CRC-32C of the type (u64), bytes 0 to 11 and the chunk
//
// All is little-endian but the type, which is the host's long.
const (
	chunkMagic  = 0xb05b
	chunkHeader = 16
	maxChunks   = 1<<16 - 1
)

// place is where a message's records are.
type place struct {
	size   uint32  // of Data
	first  uint8   // the segment, if all is one record
	spread []uint8 // the segments, by chunk, if there are more
}

func (p *place) chunks() []uint8 {
	if p.spread != nil {
		return p.spread
	}
	return []uint8{p.first}
}

// encodeChunk puts a struct msgbuf with chunk index of total into buf and returns it.
func encodeChunk(buf []byte, seq uint64, index, total int, chunk []byte) []byte {
	b := buf[:mtypeSize+chunkHeader+len(chunk)]
	binary.NativeEndian.PutUint64(b, seq)
	h := b[mtypeSize:]
	binary.LittleEndian.PutUint16(h, chunkMagic)
	binary.LittleEndian.PutUint16(h[2:], uint16(index))
	binary.LittleEndian.PutUint16(h[4:], uint16(total))
	binary.LittleEndian.PutUint16(h[6:], 0)
	binary.LittleEndian.PutUint32(h[8:], uint32(len(chunk)))
	copy(h[chunkHeader:], chunk)
	binary.LittleEndian.PutUint32(h[12:], chunkSum(b, len(chunk)))
	return b
}

func chunkSum(b []byte, chunk int) uint32 {
	sum := crc32.Update(0, castagnoli, b[:mtypeSize+12])
	return crc32.Update(sum, castagnoli, b[mtypeSize+chunkHeader:mtypeSize+chunkHeader+chunk])
}

// piece is a decoded record.
type piece struct {
	seq          uint64
	index, total int
	chunk        []byte
}

// decodeChunk returns the record at the beginning of b, which may be longer, and false
// where it's not one of ours.
func decodeChunk(b []byte) (r piece, ok bool) {
	if len(b) < mtypeSize+chunkHeader {
		return r, false
	}
	h := b[mtypeSize:]
	size := uint64(binary.LittleEndian.Uint32(h[8:]))
	if binary.LittleEndian.Uint16(h) != chunkMagic || size > uint64(len(h)-chunkHeader) {
		return r, false
	}
	r = piece{
		seq: binary.NativeEndian.Uint64(b), index: int(binary.LittleEndian.Uint16(h[2:])), total: int(binary.LittleEndian.Uint16(h[4:])),
		chunk: h[chunkHeader : chunkHeader+size],
	}
	ok = r.seq >= 1 && r.seq <= MaxSeq && r.index < r.total && chunkSum(b, len(r.chunk)) == binary.LittleEndian.Uint32(h[12:])
	return r, ok
}

// Append stores entries; see Store and SysV.
func (s *SysV) Append(entries []Entry) (int, error) {
	if s.closed {
		return 0, ErrClosed
	}
	n, err := len(entries), error(nil)
	first, high := -1, s.high // the first entry that goes to the log, and the high seq before it
	for i := range entries {
		if err = checkEntry(&entries[i], s.high); err == nil {
			if entries[i].Kind == Message {
				err = s.send(entries[i].Seq, entries[i].Data)
			} else if first < 0 {
				first, high = i, s.high
			}
		}
		if err != nil {
			n = i
			break
		}
	}
	if first >= 0 {
		s.step("messages in")
		if logErr := s.writeLog(entries[first:n], high); logErr != nil {
			undone := s.Remove(messagesOf(entries[first:n]))
			n, s.high, err = first, high, errors.Join(logErr, undone)
		}
		s.step("logged")
	}
	return n, s.settle(err)
}

func messagesOf(entries []Entry) (seqs []uint64) {
	for i := range entries {
		if entries[i].Kind == Message {
			seqs = append(seqs, entries[i].Seq)
		}
	}
	return seqs
}

// writeLog writes and takes those of entries that are no messages, all or none. The messages are in
// already; high was the highest before them, by which a State that came before its message is
// known, and passed over.
func (s *SysV) writeLog(entries []Entry, high uint64) error {
	for pass := range 2 {
		top := high
		for _, e := range entries {
			if e.Kind == Message {
				top = e.Seq
				continue
			}
			if _, ok := s.index.get(e.Seq); e.Kind == State && (!ok || e.Seq > top) {
				continue
			}
			if pass == 0 {
				s.log.add(e)
			} else {
				s.ledger.set(e)
			}
		}
		if pass == 0 {
			if err := s.log.flush(); err != nil {
				return err
			}
		}
	}
	// The entries are in; that the log could not be made shorter is no reason to say otherwise.
	_ = s.log.compact(&s.ledger)
	return nil
}

// send puts one message into the kernel, whole or not at all.
func (s *SysV) send(seq uint64, data []byte) error {
	if limit := s.maxMessage(); len(data) > limit {
		return fail(ErrTooLarge, unix.EMSGSIZE, "message %d has %d bytes, and %d kernel queues of %d bytes hold one of %d: use the disk level, or sysctl -w kernel.msgmnb=%d"+sizeFrom,
			seq, len(data), s.opts.MaxSegments, s.limits.mnb, limit, 4*s.limits.mnb)
	}
	if seq > s.keys.high {
		s.keys.high = min(seq+highAhead, MaxSeq)
		if err := s.keys.writeHeader(s.keys.name()); err != nil {
			s.keys.high = s.high
			return err
		}
		s.step("high")
	}
	var err error
	for range 3 { // a second time after queues were removed by others or limits lowered
		if err = s.sendChain(seq, data); err == nil {
			s.remember(seq, data)
			return nil
		}
		_ = s.take(seq, s.chain)
		if !gone(err) {
			return err
		}
		healed, failed := s.heal(err)
		if failed != nil {
			return failed
		}
		if limits := readLimits(); !healed && limits == s.limits {
			break
		} else {
			s.limits = limits
		}
	}
	return fail(ErrDamaged, err, "queue %s: msgsnd of message %d", s.keys.name(), seq)
}

// sendChain sends data's chunks and leaves in s.chain the segments of those sent.
func (s *SysV) sendChain(seq uint64, data []byte) error {
	size := s.limits.record() - chunkHeader
	total := max((len(data)+size-1)/size, 1)
	s.chain = s.chain[:0]
	for index := 0; index < total; {
		chunk := data[index*size : min((index+1)*size, len(data))]
		b := encodeChunk(s.buffer(), seq, index, total, chunk)
		g, err := s.room(len(b) - mtypeSize)
		if err != nil {
			return err
		}
		switch err := msgsnd(g.id, b); {
		case err == nil:
			g.add(seq, len(b)-mtypeSize)
			s.chain = append(s.chain, uint8(g.number))
			index++
			s.step("sent")
		case err == unix.EAGAIN:
			if s.refresh(g); g.fits(len(b) - mtypeSize) {
				g.used = g.qbytes // by number, then: others have put records into it
			}
		case err == unix.ENOMEM:
			return fail(ErrNoSpace, err, "queue %s: the kernel has no memory for message %d: free some, or raise the memory limit of the broker's cgroup", s.keys.name(), seq)
		case err == unix.EACCES:
			return fail(ErrNotAllowed, err, "queue %s: kernel queue %d may not be written to: somebody changed its mode or owner (ipcs -q -i %d)", s.keys.name(), g.id, g.id)
		default:
			return err
		}
	}
	return nil
}

// buffer returns room for the largest record.
func (s *SysV) buffer() []byte {
	if size := mtypeSize + s.limits.max; len(s.buf) < size {
		s.buf = make([]byte, size)
	}
	return s.buf
}

// remember takes message seq, whose records are in s.chain, into the index.
func (s *SysV) remember(seq uint64, data []byte) {
	p := place{size: uint32(len(data)), first: s.chain[0]}
	if len(s.chain) > 1 {
		p.spread = append([]uint8(nil), s.chain...)
	}
	s.index.put(seq, p)
	if s.bodies != nil {
		s.bodies[seq] = clone(data)
	}
	s.bytes += int64(len(data))
	s.high = max(s.high, seq)
}

// forgetMessage takes message seq out of the index and all that goes by it.
func (s *SysV) forgetMessage(seq uint64) (place, bool) {
	p, ok := s.index.remove(seq)
	if ok {
		s.bytes -= int64(p.size)
		s.ledger.dropState(seq)
		delete(s.bodies, seq)
	}
	return p, ok
}

// Remove takes the messages' records out of the kernel. A message whose queue is gone
// counts as removed.
func (s *SysV) Remove(seqs []uint64) error {
	if s.closed {
		return ErrClosed
	}
	var err error
	for _, seq := range seqs {
		p, ok := s.index.get(seq)
		if !ok {
			continue
		}
		if p.spread == nil {
			s.chain = append(s.chain[:0], p.first)
			p.spread = s.chain
		}
		err = s.take(seq, p.spread)
		if err != nil && !gone(err) {
			break // it's there still, or some of it
		}
		s.forgetMessage(seq)
		if err != nil {
			if _, err = s.heal(err); err != nil {
				break
			}
		}
	}
	return s.settle(err)
}

// take receives one record of seq from each of segments, those that it finds, and
// removes the segments that get empty. It returns the first error and goes on after it.
func (s *SysV) take(seq uint64, segments []uint8) (first error) {
	for _, number := range segments {
		g := s.segments[number]
		if g == nil {
			continue
		}
		n, err := msgrcv(g.id, s.buffer(), int64(seq), 0)
		for err == unix.E2BIG { // kernel.msgmax was raised and lowered, and it's not ours
			s.buf = make([]byte, 2*len(s.buf))
			n, err = msgrcv(g.id, s.buf, int64(seq), 0)
		}
		s.step("taken")
		if err == unix.ENOMSG { // another program was faster
			g.drop(seq, 0)
			s.refresh(g)
			err = nil
		} else if err == nil {
			g.drop(seq, n-mtypeSize)
		} else if err == unix.EACCES {
			err = fail(ErrNotAllowed, err, "queue %s: kernel queue %d may not be read: somebody changed its mode or owner (ipcs -q -i %d)", s.keys.name(), g.id, g.id)
		}
		if err == nil {
			err = s.retire(g)
		}
		if first == nil {
			first = err
		}
	}
	return first
}
