package client

import (
	"math"

	"github.com/postbus/postbus/wire"
)

// outbox holds the frames on their way to the broker, and those of publishes that
// have no verdict yet, for sending them again. Client.mu guards it.
//
//	Publish --> pending --> full --> sent --> verdict
//	               ^
//	              held   (after a reconnection)
//
// A frame is encoded once, at the end of pending. The writer takes everything there
// is, a chunk at a time; a chunk that it took is in sent and is written from there.
// What was pending while it wrote is the next chunk, and so goes out in one write.
// Control frames lie between the PUBLISH frames; they are passed over.
type outbox struct {
	pending chunk       // what is being filled
	full    fifo[chunk] // what was filled before it
	sent    fifo[chunk]
	writing bool   // the newest chunk of sent is being written
	held    []byte // PUBLISH frames that wait for the window, before all new ones
	spare   [][]byte

	window int // most bytes of PUBLISH frames on the connection without a verdict
	open   int // how many there are in pending and sent
	turns  fifo[*turn]

	// Publishes are numbered over all connections; the broker's numbers begin again
	// at each.
	accepted uint64 // the last number given out
	judged   uint64 // the last number with a verdict
	base     uint64 // what the broker's numbers are added to

	ping  bool   // the writer appends a PING to what it takes next
	pings uint64 // the token of the last one
}

// A chunk is frames that go out in one write.
type chunk struct {
	frames    []byte
	publishes int // PUBLISH frames without a verdict; they are behind done
	size      int // their size, bytes
	done      int // bytes at the beginning that are of no more use
}

// A turn is a Publish that waits for the window. They go in the order they came, or
// a large message would wait for ever while small ones slip past.
type turn struct {
	size  int
	ready chan struct{} // holds a token when it is worth trying again
	gone  bool
}

const (
	// chunkSize is how long a chunk gets, in bytes: some hundred small messages, which
	// is where longer writes gain no more, and short enough to be still in the
	// processor's cache when it is written.
	chunkSize = 64 << 10

	// maxSpare is how many chunks are kept to be filled again. The broker answers when
	// a quarter of its window is unanswered, 512 KiB by default.
	maxSpare = 16
)

// add appends a PUBLISH frame and numbers it, unless the window is full or it is not
// t's turn; nil is the turn of those who have not waited. It returns the frame's size.
func (o *outbox) add(p *wire.Publish, t *turn) (size int, ok bool) {
	start := len(o.pending.frames)
	o.pending.frames = wire.AppendPublish(o.pending.frames, p)
	size = len(o.pending.frames) - start
	if !o.first(t) || len(o.held) > 0 || !o.fits(size) {
		o.pending.frames = o.pending.frames[:start]
		return size, false
	}
	o.accepted++
	o.added(size)
	return size, true
}

// added counts a PUBLISH frame of that size at the end of pending, and begins a new
// chunk when this one is long enough. The first chunk of a client grows with what it
// holds; one that fills it will fill others.
func (o *outbox) added(size int) {
	o.open += size
	o.pending.publishes++
	o.pending.size += size
	if len(o.pending.frames) < chunkSize {
		return
	}
	o.full.push(o.pending)
	o.pending = chunk{frames: o.unused()}
	if o.pending.frames == nil {
		o.pending.frames = make([]byte, 0, chunkSize+chunkSize/8)
	}
}

// unused returns the memory of a chunk to be filled again, or nil.
func (o *outbox) unused() (frames []byte) {
	if n := len(o.spare); n > 0 {
		frames, o.spare = o.spare[n-1], o.spare[:n-1]
	}
	return frames
}

// fits reports whether the window has room. One frame above the window may go when
// it is alone.
func (o *outbox) fits(size int) bool { return o.open == 0 || o.open+size <= o.window }

func (o *outbox) first(t *turn) bool { return o.turns.len() == 0 || *o.turns.front() == t }

// wait queues for the window.
func (o *outbox) wait(size int) *turn {
	t := &turn{size: size, ready: make(chan struct{}, 1)}
	o.turns.push(t)
	return t
}

// leave ends a turn, used or not.
func (o *outbox) leave(t *turn) {
	t.gone = true
	o.wakeTurn()
}

// wakeTurn lets the first in the queue try if there is room for it.
func (o *outbox) wakeTurn() {
	for o.turns.len() > 0 && (*o.turns.front()).gone {
		o.turns.pop()
	}
	if o.turns.len() == 0 {
		return
	}
	if t := *o.turns.front(); len(o.held) == 0 && o.fits(t.size) {
		t.wake()
	}
}

// wakeTurns lets all try, for they will find that the client has ended.
func (o *outbox) wakeTurns() {
	for o.turns.len() > 0 {
		o.turns.pop().wake()
	}
}

func (t *turn) wake() {
	select {
	case t.ready <- struct{}{}:
	default:
	}
}

// take returns the next chunk for the writer, nil when there is none. wrote must
// follow when it is written.
func (o *outbox) take() []byte {
	var next chunk
	if o.full.len() > 0 {
		next = o.full.pop()
	} else {
		if o.ping {
			o.ping = false
			o.pings++
			o.pending.frames = wire.AppendPing(o.pending.frames, o.pings)
		}
		if len(o.pending.frames) == 0 {
			return nil
		}
		next, o.pending = o.pending, chunk{frames: o.unused()}
	}
	o.sent.push(next)
	o.writing = true
	return next.frames
}

// wrote says that the writer needs the chunk it took no more.
func (o *outbox) wrote() {
	o.writing = false
	o.trim()
}

// judge moves past the oldest n publishes without a verdict, and reports whether so
// many were sent.
func (o *outbox) judge(n uint64) bool {
	for o.trim(); n > 0 && o.waits(); o.trim() {
		c := o.sent.front()
		if k := uint64(c.publishes); k <= n { // all of it: no need to look into it
			n -= k
			o.judged += k
			o.open -= c.size
			c.publishes, c.size = 0, 0
			continue
		}
		for ; n > 0; n-- {
			o.judgeOne()
		}
	}
	return n == 0
}

// waits reports whether the oldest chunk has a publish that waits for its verdict; it
// has unless there is none.
func (o *outbox) waits() bool { return o.sent.len() > 0 && o.sent.front().publishes > 0 }

// judgeOne moves past the oldest publish without a verdict and returns the payload of
// its frame, valid until the next call that changes the outbox; nil if none was sent.
func (o *outbox) judgeOne() []byte {
	o.trim()
	if !o.waits() {
		return nil
	}
	for c := o.sent.front(); ; {
		payload, size, publish := splitOwn(c.frames[c.done:])
		c.done += size
		if publish {
			c.publishes--
			c.size -= size
			o.open -= size
			o.judged++
			return payload
		}
	}
}

// trim lets go of chunks in which nothing waits for a verdict, but for one that the
// writer still reads.
func (o *outbox) trim() {
	for o.sent.len() > 0 && !o.waits() && !(o.writing && o.sent.len() == 1) {
		frames := o.sent.pop().frames
		if len(o.spare) < maxSpare && cap(frames) <= 2*chunkSize {
			o.spare = append(o.spare, frames[:0])
		}
	}
}

// restart prepares for a new connection: what has no verdict is held, in order and
// marked if the old connection may have carried it, and numbered from 1 again. Control
// frames are dropped; whoever needs them sends them anew. No writer may be at work.
func (o *outbox) restart(window int) {
	var held []byte
	for o.sent.len() > 0 {
		if c := o.sent.pop(); c.publishes > 0 {
			held = appendRedelivered(held, c.frames[c.done:])
		}
	}
	for o.full.len() > 0 {
		held = appendPublishes(held, o.full.pop().frames)
	}
	held = appendPublishes(held, o.pending.frames)
	o.held = append(held, o.held...)
	o.pending = chunk{frames: o.pending.frames[:0]}
	o.window, o.open, o.base = window, 0, o.judged
}

// release moves held frames to pending as far as the window allows, and reports
// whether it did. With none left it is the turn of those who wait.
func (o *outbox) release() (moved bool) {
	for len(o.held) > 0 {
		_, size, _ := splitOwn(o.held)
		if !o.fits(size) {
			return moved
		}
		moved = true
		o.pending.frames = append(o.pending.frames, o.held[:size]...)
		o.added(size)
		o.held = o.held[size:]
	}
	o.held = nil
	o.wakeTurn()
	return moved
}

// unanswered returns how many publishes have no verdict.
func (o *outbox) unanswered() uint64 { return o.accepted - o.judged }

// splitOwn splits off the first of frames that this package encoded.
func splitOwn(buf []byte) (payload []byte, size int, publish bool) {
	payload, size, _ = wire.Split(buf, math.MaxInt)
	return payload, size, wire.Type(payload[1]) == wire.TypePublish
}

// appendPublishes appends the PUBLISH frames among frames.
func appendPublishes(dst, frames []byte) []byte {
	for len(frames) > 0 {
		_, size, publish := splitOwn(frames)
		if publish {
			dst = append(dst, frames[:size]...)
		}
		frames = frames[size:]
	}
	return dst
}

// appendRedelivered appends the PUBLISH frames among frames, marked as sent before.
func appendRedelivered(dst, frames []byte) []byte {
	for len(frames) > 0 {
		payload, size, publish := splitOwn(frames)
		frames = frames[size:]
		if !publish {
			continue
		}
		var p wire.Publish
		var options wire.PublishOptions
		// Neither can fail on what add encoded.
		_ = p.Decode(payload)
		_ = wire.DecodeOptions(p.Options, &options)
		options.Redelivered = true
		p.Options = wire.AppendOptions(nil, &options)
		dst = wire.AppendPublish(dst, &p)
	}
	return dst
}
