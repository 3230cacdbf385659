package broker

import "sort"

// mark remembers where in the turn buffer a frame ends, every so many bytes, so
// that a frame's place is found without walking over all that lie before it.
type mark struct {
	at       int // bytes
	messages int // frames before it, since the turn began
}

// markEvery is how far marks are apart, in bytes.
const markEvery = 2 << 10

// mark sets a mark at the end of the turn buffer. Runs are settled by their number
// of messages: those of the present one are not counted yet.
func (l *loop) mark() {
	l.marks = append(l.marks, mark{len(l.turn), l.routed + l.run.messages})
	l.nextMark = len(l.turn) + markEvery
}

// wholeFrames returns the bytes and number of the frames at the start of sp that
// n bytes reach into.
func (l *loop) wholeFrames(sp span, n int) (bytes, messages int) {
	// The last mark within the span that lies at n or before.
	i := sort.Search(len(l.marks), func(i int) bool { return l.marks[i].at > sp.from+n }) - 1
	if i >= 0 && l.marks[i].at > sp.from {
		bytes, messages = l.marks[i].at-sp.from, l.marks[i].messages-sp.index
	}
	for bytes < n {
		bytes += frameSize(l.turn[sp.from+bytes:])
		messages++
	}
	return bytes, messages
}

// packetCut returns where the packet that begins at from, in the turn buffer, may
// end: at a mark within limit bytes. 0 says that there is none behind from.
func (l *loop) packetCut(from, to, limit int) int {
	if to-from <= limit {
		return to
	}
	i := sort.Search(len(l.marks), func(i int) bool { return l.marks[i].at > from+limit }) - 1
	if i >= 0 && l.marks[i].at > from {
		return l.marks[i].at
	}
	return 0
}

// emptyTurn makes the turn buffer free again: all that was in it is written or
// copied.
func (l *loop) emptyTurn() {
	l.turn, l.marks = l.turn[:0], l.marks[:0]
	l.nextMark, l.routed = markEvery, 0
	if cap(l.turn) > 4*turnSize {
		l.turn = nil // after a very large message
	}
	for _, p := range l.feeders {
		p.feeding = false
	}
	l.feeders = l.feeders[:0]
}
