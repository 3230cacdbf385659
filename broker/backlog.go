package broker

import (
	"encoding/binary"

	"github.com/postbus/postbus/wire"
)

// loss is messages of a subscription that were dropped at one place.
type loss struct {
	first, last uint64 // seq
	count       uint64
	reason      wire.Reason
}

func (d *loss) add(first, last, count uint64, reason wire.Reason) {
	if d.count == 0 {
		*d = loss{first, last, count, reason}
		return
	}
	d.first = min(d.first, first)
	d.last = max(d.last, last)
	d.count += count
}

// tell appends the GAP frame of d, if there is anything to tell, and clears it.
func (d *loss) tell(dst []byte, sub uint32) []byte {
	if d.count == 0 {
		return dst
	}
	dst = wire.AppendGap(dst, wire.Gap{Sub: sub, First: d.first, Last: d.last, Count: d.count, Reason: d.reason})
	*d = loss{}
	return dst
}

// backlog is what waits for one subscription: whole frames, first in first out,
// copied into chunks of its own so that what it holds is what it is charged for.
// MESSAGE frames are mostly what is in it; a GAP frame stands where messages were
// dropped inside; a frame of type hole is a message that policy latest superseded.
type backlog struct {
	sub      uint32
	spare    *spareChunks
	chunks   []chunk
	gone     uint64 // chunks taken off the front so far: a place stays valid
	messages int    // MESSAGE frames
	size     int    // bytes of all frames, holes not counted
	memory   int    // capacity of all chunks, bytes
	index    int    // about what latest takes, bytes
	holes    int    // bytes of superseded frames
	before   loss   // dropped right before the first frame
	after    loss   // dropped right behind the last
	latest   map[string]place
}

type chunk struct {
	buf      []byte
	from     int // where the first frame not yet taken begins
	messages int // MESSAGE frames not yet taken
	mixed    int // GAP frames and holes not yet taken
}

// place is where a frame of a backlog begins.
type place struct {
	chunk uint64 // counted from the first there ever was
	at    int
}

const (
	hole = 0 // in a frame's type: superseded

	smallChunk = 4 << 10
	largeChunk = 64 << 10
	wideChunk  = 256 << 10

	// sparseHoles is when superseded frames are worth being squeezed out, in bytes.
	sparseHoles = 64 << 10
)

func frameType(frame []byte) wire.Type { return wire.Type(frame[wire.HeaderSize+1]) }

func frameSize(frame []byte) int {
	return wire.HeaderSize + int(binary.LittleEndian.Uint32(frame))
}

func (q *backlog) empty() bool { return len(q.chunks) == 0 }

// quiet reports whether there is nothing to send at all.
func (q *backlog) quiet() bool {
	return len(q.chunks) == 0 && q.before.count == 0 && q.after.count == 0
}

// push appends messages MESSAGE frames.
func (q *backlog) push(frames []byte, messages int) {
	if q.after.count > 0 {
		var gap [48]byte
		q.append(q.after.tell(gap[:0], q.sub), 0)
		q.chunks[len(q.chunks)-1].mixed++
	}
	q.messages += messages
	if q.latest == nil {
		q.append(frames, messages)
		return
	}
	for len(frames) > 0 {
		n := frameSize(frames)
		q.append(frames[:n], 1)
		c := len(q.chunks) - 1
		topic := wire.FrameTopic(frames)
		q.index += indexCost + len(topic)
		q.latest[string(topic)] = place{q.gone + uint64(c), len(q.chunks[c].buf) - n}
		frames = frames[n:]
	}
}

// append copies whole frames behind the last, all into one chunk.
func (q *backlog) append(frames []byte, messages int) {
	q.size += len(frames)
	k := len(q.chunks)
	if k == 0 || cap(q.chunks[k-1].buf)-len(q.chunks[k-1].buf) < len(frames) {
		size := largeChunk
		if k == 0 && len(frames) <= smallChunk {
			size = smallChunk
		}
		buf := q.spare.get(max(size, len(frames)))
		q.chunks = append(q.chunks, chunk{buf: buf})
		q.memory += cap(buf)
		k++
	}
	c := &q.chunks[k-1]
	c.buf = append(c.buf, frames...)
	c.messages += messages
}

// spareChunks keeps some large chunks that were emptied, for whoever needs one
// next.
type spareChunks struct{ large, wide [][]byte }

// maxSpare bounds what is kept of either size: 4 and 8 MiB.
const (
	maxSpareLarge = 64
	maxSpareWide  = 32
)

func (s *spareChunks) get(size int) []byte {
	switch {
	case size == largeChunk:
		return pop(&s.large, largeChunk)
	case size > largeChunk && size <= wideChunk:
		return pop(&s.wide, wideChunk)
	}
	return make([]byte, 0, size)
}

func pop(list *[][]byte, size int) []byte {
	n := len(*list)
	if n == 0 {
		return make([]byte, 0, size)
	}
	buf := (*list)[n-1]
	*list = (*list)[:n-1]
	return buf
}

func (s *spareChunks) put(buf []byte) {
	switch {
	case cap(buf) == largeChunk && len(s.large) < maxSpareLarge:
		s.large = append(s.large, buf[:0])
	case cap(buf) == wideChunk && len(s.wide) < maxSpareWide:
		s.wide = append(s.wide, buf[:0])
	}
}

// head returns the first frame, still in its chunk. The backlog is not empty.
func (q *backlog) head() []byte {
	c := &q.chunks[0]
	frame := c.buf[c.from:]
	return frame[:frameSize(frame)]
}

// advance takes n bytes of whole frames off the front of the first chunk.
func (q *backlog) advance(n int) {
	c := &q.chunks[0]
	c.from += n
	if c.from < len(c.buf) {
		return
	}
	q.memory -= cap(c.buf)
	q.spare.put(c.buf)
	if len(q.chunks) == 1 {
		q.chunks = nil
	} else {
		q.chunks[0] = chunk{}
		q.chunks = q.chunks[1:]
	}
	q.gone++
}

// dropHead drops the first frame; what it stood for is told before the next.
// It returns how many messages were dropped now: 0 or 1.
func (q *backlog) dropHead(reason wire.Reason) int {
	frame := q.head()
	dropped := 0
	switch frameType(frame) {
	case wire.TypeGap:
		var g wire.Gap
		if g.Decode(frame[wire.HeaderSize:]) == nil {
			q.before.add(g.First, g.Last, g.Count, g.Reason)
		}
		q.size -= len(frame)
		q.chunks[0].mixed--
	case hole:
		seq := wire.FrameSeq(frame)
		q.before.add(seq, seq, 1, wire.ReasonLatest)
		q.holes -= len(frame)
		q.chunks[0].mixed--
	default:
		seq := wire.FrameSeq(frame)
		q.before.add(seq, seq, 1, reason)
		q.forget(frame)
		q.size -= len(frame)
		q.messages--
		q.chunks[0].messages--
		dropped = 1
	}
	q.advance(len(frame))
	return dropped
}

// forget takes the first frame out of the index of topics.
func (q *backlog) forget(frame []byte) {
	if q.latest != nil {
		q.unindex(wire.FrameTopic(frame))
	}
}

func (q *backlog) unindex(topic []byte) {
	delete(q.latest, string(topic))
	q.index -= indexCost + len(topic)
}

// indexCost is about what an entry of latest takes beside its topic, in bytes.
const indexCost = 64

// supersede makes a hole of the message of this topic, if there is one, and
// returns how many that is.
func (q *backlog) supersede(topic []byte) int {
	at, ok := q.latest[string(topic)]
	if !ok {
		return 0
	}
	c := &q.chunks[at.chunk-q.gone]
	frame := c.buf[at.at:]
	n := frameSize(frame)
	frame[wire.HeaderSize+1] = hole
	c.mixed++
	c.messages--
	q.unindex(topic)
	q.messages--
	q.size -= n
	q.holes += n
	if q.holes > sparseHoles && q.holes > q.size {
		q.repack()
	}
	return 1
}

// take appends frames from the front to dst: as many whole ones as fit room
// bytes, at least one, and while credit lasts; a GAP costs no credit. It returns
// the messages taken and their bytes.
func (q *backlog) take(dst []byte, room int, credit int64) (_ []byte, messages, bytes int) {
	dst = q.before.tell(dst, q.sub)
	for room > 0 && credit > 0 && !q.empty() {
		c := &q.chunks[0]
		if c.mixed > 0 || q.latest != nil {
			n := len(dst)
			var m, b int
			if dst, m, b = q.takeOne(dst); m > 0 {
				messages, bytes, credit = messages+m, bytes+b, credit-int64(b)
			}
			room -= len(dst) - n
			continue
		}
		dst = q.before.tell(dst, q.sub)
		n, frames := len(c.buf)-c.from, c.messages
		if n > room || int64(n) > credit {
			n, frames = wire.CutAt(c.buf[c.from:], int(min(int64(room), credit)))
		}
		dst = append(dst, c.buf[c.from:c.from+n]...)
		q.took(n, frames)
		messages, bytes, credit, room = messages+frames, bytes+n, credit-int64(n), room-n
	}
	if q.empty() && credit > 0 {
		dst = q.before.tell(dst, q.sub)
		dst = q.after.tell(dst, q.sub)
	}
	return dst, messages, bytes
}

// takeOne takes one frame of a chunk that does not hold messages only. Holes in
// a row come out as one gap, in their place.
func (q *backlog) takeOne(dst []byte) (_ []byte, messages, bytes int) {
	frame := q.head()
	if t := frameType(frame); t == hole || t == wire.TypeGap {
		q.dropHead(wire.ReasonLatest) // adds to before
		return dst, 0, 0
	}
	dst = q.before.tell(dst, q.sub)
	dst = append(dst, frame...)
	n := len(frame)
	q.forget(frame)
	q.took(n, 1)
	return dst, 1, n
}

// straight returns the messages at the front that can be written as they lie, or
// nil when there are none or something is to be told before them.
func (q *backlog) straight() []byte {
	if q.empty() || q.before.count > 0 || q.latest != nil || q.chunks[0].mixed > 0 {
		return nil
	}
	return q.chunks[0].buf[q.chunks[0].from:]
}

// took takes messages at the front of n bytes off.
func (q *backlog) took(n, messages int) {
	q.messages -= messages
	q.chunks[0].messages -= messages
	q.size -= n
	q.advance(n)
}

// repack copies what is live into new chunks, with one GAP frame in the place of
// each row of holes.
func (q *backlog) repack() {
	old := *q
	*q = backlog{sub: q.sub, spare: q.spare, gone: old.gone + uint64(len(old.chunks)), latest: old.latest, before: old.before, after: old.after}
	clear(q.latest)
	after := q.after
	q.after = loss{}
	for i := range old.chunks {
		c := &old.chunks[i]
		for frames := c.buf[c.from:]; len(frames) > 0; {
			n := frameSize(frames)
			q.carryOver(frames[:n])
			frames = frames[n:]
		}
	}
	// Holes at the very end were collected in q.after; what was dropped behind
	// them joins.
	if after.count > 0 {
		q.after.add(after.first, after.last, after.count, after.reason)
	}
}

// carryOver puts one frame of the old chunks behind the new ones.
func (q *backlog) carryOver(frame []byte) {
	switch frameType(frame) {
	case wire.TypeGap:
		var g wire.Gap
		if g.Decode(frame[wire.HeaderSize:]) == nil {
			q.after.add(g.First, g.Last, g.Count, g.Reason)
		}
	case hole:
		seq := wire.FrameSeq(frame)
		q.after.add(seq, seq, 1, wire.ReasonLatest)
	default:
		q.push(frame, 1)
	}
}

// lost drops everything and returns what that was, gaps not yet told included,
// and how many messages it counted that were not dropped before.
func (q *backlog) lost(reason wire.Reason) (loss, int) {
	dropped := 0
	for !q.empty() {
		dropped += q.dropHead(reason)
	}
	all := q.before
	if q.after.count > 0 {
		all.add(q.after.first, q.after.last, q.after.count, q.after.reason)
	}
	q.before, q.after = loss{}, loss{}
	return all, dropped
}
