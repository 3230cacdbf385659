package broker

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// Peer is who a connection belongs to, as the kernel says (SO_PEERCRED and
// SO_PEERGROUPS, unix(7)): the effective ids when it connected. The pid is
// information only: it may be another process's by now.
type Peer struct {
	UID, GID, PID uint32
	Groups        []uint32 // supplementary

	Client        string // what the client calls itself: proves nothing
	Subscriptions int    // open now
}

// peer is one connection. Only the loop touches it.
type peer struct {
	fd      int
	cred    Peer
	account *account
	name    string // what HELLO calls it, for the log
	session string
	restore int

	packet    bool // SOCK_SEQPACKET
	maxPacket int
	events    uint32 // what epoll watches
	watched   bool   // whether epoll has it
	open      bool   // HELLO was read
	closed    bool
	leaving   bool // the client said GOODBYE
	ending    bool // GOODBYE was queued for it: it is closed at the turn's end,
	lingering bool // or, where its socket was full, when that is out
	eof       bool // its input ended
	broken    bool // its output failed: nothing more can be sent
	paused    bool // not read for now: what was read waits in in
	resuming  bool // in loop.resumed
	stalled   bool // its socket is full
	dirty     bool // in loop.dirty
	buffered  int  // bytes charged
	held      int  // of these, for in, out, verdicts and awaits

	in      []byte    // frames not complete, or not handled while paused
	inSince time.Time // when the first of them began
	joined  time.Time
	moved   time.Time // when output last got out, while stalled

	out     []byte // committed to the connection: goes before anything else
	split   int    // bytes at the start of out that end a frame spread over packets
	target  uint32 // subscription of the last TARGET
	subs    map[uint32]*subscription
	active  []*subscription // those with something to send
	awaits  int             // open
	awaited int             // bytes that they take

	yielders []yielder // publishers that yield to it

	publisher
	consuming
}

// lookUp reads from the kernel who is at the other end of fd.
func lookUp(fd int) (Peer, error) {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	return Peer{UID: c.Uid, GID: c.Gid, PID: uint32(c.Pid), Groups: peerGroups(fd)}, nil
}

// send writes as much of buf as the socket takes and returns how much that was.
// buf holds whole frames, but for split bytes at its start that end a frame whose
// beginning was sent before. A short count means that the socket is full, or that
// the peer is gone and p.broken set.
func (p *peer) send(buf []byte) int {
	if !p.packet {
		n, err := unix.Write(p.fd, buf)
		if err != nil {
			p.failed(err)
			return 0
		}
		return n
	}
	sent := 0
	for sent < len(buf) {
		n, behind := p.nextPacket(buf[sent:])
		if _, err := unix.Write(p.fd, buf[sent:sent+n]); err != nil {
			p.failed(err)
			break
		}
		sent += n
		p.split = behind
	}
	return sent
}

// nextPacket returns how many bytes of buf go into the next packet, and how many of
// the same frame are to follow it in packets of their own.
func (p *peer) nextPacket(buf []byte) (n, behind int) {
	if p.split > 0 {
		n = min(p.split, p.maxPacket)
		return n, p.split - n
	}
	if len(buf) <= p.maxPacket {
		return len(buf), 0
	}
	if n, _ = wire.CutAt(buf, p.maxPacket); n > p.maxPacket {
		return p.maxPacket, n - p.maxPacket
	}
	return n, 0
}

// failed notes why a write did not get through. ENOBUFS is the kernel short of
// memory: like a full socket, it passes.
func (p *peer) failed(err error) {
	if err != unix.EAGAIN && err != unix.ENOBUFS && err != unix.EINTR {
		p.broken = true
	}
}

// quiet reports whether nothing waits to be sent.
func (p *peer) quiet() bool {
	if len(p.out) > 0 || len(p.active) > 0 || p.pending > 0 || len(p.settlements) > 0 || p.asking > 0 {
		return false
	}
	for _, s := range p.subs {
		if !s.idle() {
			return false
		}
	}
	return true
}

// mustPause reports whether the next frame, of type t, has to wait. Publishes wait
// beyond the window while verdicts are held back, everything waits while the
// client does not read the answers it has asked for.
func (l *loop) mustPause(p *peer, t wire.Type) bool {
	if len(p.out) > maxAnswers {
		return true
	}
	if p.toil > maxToil {
		if !p.paused {
			l.tired = append(l.tired, p)
		}
		return true
	}
	if t == wire.TypeSettle && len(p.settlements) > maxSettlements || t == wire.TypeQueue && p.asking >= maxAsking {
		return true
	}
	if t != wire.TypePublish {
		return false
	}
	over := p.unacked > l.opts.Window
	return len(p.heldBy) > 0 && (over || p.patient && len(p.subs) == 0) || p.pending > 0 && over || l.settling != nil
}

const (
	// maxSettlements and maxAsking are how many settles with different fates, and how many
	// QUEUE frames, may wait for stores before more of them are left unread.
	maxSettlements = 1000
	maxAsking      = 8

	// maxAnswers is how much of its answers a client may leave unread before its
	// requests are left unread too, in bytes.
	maxAnswers = 256 << 10

	// keptInput is the capacity of p.in that an idle connection may keep, bytes.
	keptInput = 512
)

// read takes what one call gives and handles the frames in it.
func (l *loop) read(p *peer) {
	buf := l.readBuf
	kept := len(p.in)
	if kept > readSize/4 {
		l.readLarge(p)
		return
	}
	to := copy(buf, p.in)
	for {
		n, err := l.receive(p, buf[to:min(to+readSize, len(buf))])
		to += n
		// A packet that is half full or more seldom comes alone.
		if err == nil && p.packet && n >= wire.DefaultMaxPacket/2 && to < readSize {
			continue
		}
		if to > kept {
			l.handle(p, buf[:to])
		}
		if err != nil && err != unix.EAGAIN {
			l.inputEnded(p, err)
		}
		return
	}
}

// readLarge goes on with a frame that is too long for the shared buffer. Its own
// buffer doubles with what has arrived: an announced length takes no memory.
func (l *loop) readLarge(p *peer) {
	need, slack := frameSize(p.in), 1
	if p.packet {
		slack = wire.DefaultMaxPacket + 1 // what a read must have room for
	}
	if cap(p.in)-len(p.in) < slack {
		grown := make([]byte, len(p.in), min(need, 2*len(p.in))+slack)
		copy(grown, p.in)
		p.in = grown
		p.recharge()
		if !l.room(p, 0) {
			l.end(p, wire.CodeLimit, fmt.Sprintf("this frame of %d bytes, with what else is kept for the connection (%d) and its user (%d), is above a limit of the broker: %d or %d",
				need, p.buffered, p.account.buffered, l.opts.MaxConnectionBytes, l.opts.MaxUserBytes))
			return
		}
	}
	// Up to the frame's end, so that its buffer holds nothing else; a packet that
	// goes on with a frame ends with it or before.
	end := cap(p.in)
	if !p.packet {
		end = min(end, need)
	}
	n, err := l.receive(p, p.in[len(p.in):end])
	if in := p.in[:len(p.in)+n]; len(in) < need {
		p.in = in
	} else {
		p.in = nil
		l.handle(p, in)
	}
	if err != nil && err != unix.EAGAIN {
		l.inputEnded(p, err)
	}
}

// receive reads once into buf. At the end of the input it returns io.EOF.
func (l *loop) receive(p *peer, buf []byte) (int, error) {
	for resets := 0; ; resets++ {
		n, err := unix.Read(p.fd, buf)
		switch {
		case n > 0 && p.packet && n > wire.DefaultMaxPacket:
			// read(2) drops what does not fit; buf is longer than any packet allowed.
			return 0, &wire.Error{Code: wire.CodeTooLarge, Text: fmt.Sprintf(
				"a packet of more than %d bytes, the most that may be sent", wire.DefaultMaxPacket)}
		case n > 0:
			return n, nil
		case err == unix.EINTR:
			continue
		case err == unix.ECONNRESET && p.packet && resets == 0:
			// The reset of a client that left answers unread comes before the
			// packets that it had sent.
			continue
		case err == nil: // the end, or an empty packet, which this protocol does not have
			return 0, io.EOF
		}
		return 0, err
	}
}

// inputEnded handles the end of what a client sends, once the frames before it are
// handled. What is due to the client is still sent: verdicts, and messages as long
// as it has subscriptions.
func (l *loop) inputEnded(p *peer, err error) {
	if p.closed || p.ending {
		return
	}
	var refused *wire.Error
	if errors.As(err, &refused) {
		l.refuse(p, err)
		return
	}
	p.eof = true
	l.closeConsumers(p)                  // it can settle nothing any more
	p.broken = p.broken || err != io.EOF // the connection is gone, not just its input
	l.sendVerdicts(p, true)
	l.touch(p)
	l.watch(p)
}

// handle works off the frames in buf, which is the loop's or p's own, and keeps
// what is not complete or has to wait.
func (l *loop) handle(p *peer, buf []byte) {
	rest := buf
	for len(rest) > 0 && !p.ending && !p.closed && !p.leaving {
		payload, size, err := wire.Split(rest, l.frameLimit)
		if err == wire.ErrShort {
			break
		}
		if err != nil {
			l.refuse(p, err)
			return
		}
		t, err := wire.PeekType(payload)
		if err != nil {
			l.refuse(p, err)
			return
		}
		if l.mustPause(p, t) {
			p.paused = true
			break
		}
		if err := l.command(p, t, payload); err != nil {
			l.refuse(p, err)
			return
		}
		rest = rest[size:]
		if t == wire.TypePublish {
			rest = rest[l.publishAlike(p, payload, rest):]
		}
	}
	l.keepInput(p, rest, len(rest) < len(buf))
}

// keepInput stores what is left of the input until more comes.
func (l *loop) keepInput(p *peer, rest []byte, progress bool) {
	if p.closed {
		return
	}
	switch {
	case len(rest) > 0 && !p.leaving:
		if progress || len(p.in) == 0 {
			p.inSince = l.now
			l.watchTime(l.opts.FrameTimeout)
		}
		p.in = append(p.in[:0], rest...)
	case cap(p.in) > keptInput:
		p.in = nil
	default:
		p.in = p.in[:0]
	}
	p.recharge()
	l.watch(p)
}

// refuse ends a connection whose client broke the protocol.
func (l *loop) refuse(p *peer, err error) {
	var e *wire.Error
	if !errors.As(err, &e) {
		e = &wire.Error{Code: wire.CodeInternal, Text: err.Error()}
	}
	l.end(p, e.Code, e.Text)
}

// finished reports whether a connection has nothing more to do.
func (p *peer) finished() bool {
	switch {
	case p.ending:
		return p.lingering && (len(p.out) == 0 || p.broken)
	case p.broken:
		return p.eof
	case p.leaving:
		return len(p.out) == 0 && p.pending == 0 && len(p.settlements) == 0 && p.asking == 0
	}
	return p.eof && !p.paused && len(p.out) == 0 && len(p.verdicts) == 0 && len(p.subs) == 0 && len(p.settlements) == 0 && p.asking == 0
}
