package broker

import "github.com/postbus/postbus/wire"

// gatherSize is how much is put together for one write where the bytes do not lie
// in a row already, in bytes.
const gatherSize = 128 << 10

// straightSize is the backlog for which a write of its own is worth its system
// call, in bytes.
const straightSize = 16 << 10

// touch sees to it that p is written to at the end of the turn.
func (l *loop) touch(p *peer) {
	if !p.dirty && !p.closed {
		p.dirty = true
		l.dirty = append(l.dirty, p)
	}
}

// deliver writes out what the turn has routed: one write for each peer, straight
// from the turn buffer where it can be. Then the buffer is free again.
func (l *loop) deliver() {
	l.endRun()
	for len(l.dirty) > 0 { // flushing one can release publishers, which touches them
		l.flushing, l.dirty = l.dirty, l.flushing[:0]
		for _, p := range l.flushing {
			p.dirty = false
			if !p.closed {
				l.flush(p)
			}
		}
	}
	l.emptyTurn()
}

// flush writes to one peer.
func (l *loop) flush(p *peer) {
	switch {
	case p.broken:
		l.mute(p)
	case p.stalled:
		l.spill(p)
	case l.writeStraight(p):
	default:
		l.writeGathered(p)
	}
	if !p.stalled {
		l.goOn(p)
		l.quench(p)
	}
	p.recharge()
	if len(p.out) > maxAnswers && !l.room(p, 0) {
		// The rest of a frame: no GOODBYE can be put behind it.
		l.stats.Ended++
		l.log.Warn("connection ended", "uid", p.cred.UID, "pid", p.cred.PID, "client", p.name, "reason", wire.CodeLimit,
			"detail", "what is committed to it and not read is more than is kept for one connection or one user")
		l.close(p, "limit")
		return
	}
	if p.finished() {
		l.close(p, "left")
	} else if len(p.out) == 0 {
		l.resume(p)
	}
}

// writeStraight is the common case: one subscription, and messages in a row. It
// writes from where they lie and reports whether it did.
func (l *loop) writeStraight(p *peer) bool {
	if len(p.active) != 1 {
		return false
	}
	s := p.active[0]
	if s.id != p.target || s.draining {
		return false
	}
	if len(p.out) > 0 {
		// Mostly the rest of a frame: a write of its own costs less than to gather
		// much behind it.
		if s.queue.size < straightSize {
			return false
		}
		if n := p.send(p.out); n < len(p.out) {
			p.out = p.out[n:]
			l.stall(p)
			return true
		}
		p.out = p.out[:0]
	}
	for !s.queue.quiet() {
		frames := s.queue.straight()
		if frames == nil || s.allowance() < int64(len(frames)) {
			return false
		}
		if !l.writeBacklog(p, s, frames) {
			l.stall(p)
			return true
		}
	}
	if len(s.spans) > 1 || len(s.spans) == 1 && s.allowance() < int64(s.spans[0].to-s.spans[0].from) {
		return false
	}
	if len(s.spans) == 1 && !l.writeSpan(p, s) {
		l.stall(p)
		return true
	}
	l.unlist(p)
	return true
}

// writeBacklog writes frames, which lie at the front of s's backlog, and reports
// whether all of them are out. Of a write that stops within a frame the rest of
// that frame is committed; what is behind stays the policy's.
func (l *loop) writeBacklog(p *peer, s *subscription, frames []byte) bool {
	n, total := p.send(frames), len(frames)
	whole, messages := total, s.queue.chunks[0].messages
	if n < total {
		for whole, messages = 0, 0; whole < n; messages++ {
			whole += frameSize(frames[whole:])
		}
		p.keepOut(frames[n:whole])
	}
	s.queue.took(whole, messages)
	s.sent(l, messages, whole)
	s.recharge()
	s.release(l)
	return n == total
}

// writeSpan writes s's only span, as writeBacklog does.
func (l *loop) writeSpan(p *peer, s *subscription) bool {
	sp := s.spans[0]
	frames := l.turn[sp.from:sp.to]
	n := l.sendSpan(p, sp)
	whole, messages := len(frames), sp.messages
	if n < len(frames) {
		whole, messages = l.wholeFrames(sp, n)
		p.keepOut(frames[n:whole])
	}
	s.sent(l, messages, whole)
	if messages == sp.messages {
		s.spans = s.spans[:0]
	} else {
		s.spans[0] = span{sp.from + whole, sp.to, sp.index + messages, sp.messages - messages}
	}
	return n == len(frames)
}

// sendSpan sends sp as p.send does. Packets end at marks where they can, so that
// the frames need not be walked over for every subscriber.
func (l *loop) sendSpan(p *peer, sp span) int {
	at := sp.from
	for p.packet && p.split == 0 && !p.broken {
		end := l.packetCut(at, sp.to, p.maxPacket)
		if end == 0 {
			break // a frame above the packet size
		}
		if p.send(l.turn[at:end]) < end-at {
			return at - sp.from
		}
		if at = end; at == sp.to {
			return at - sp.from
		}
	}
	return at - sp.from + p.send(l.turn[at:sp.to])
}

// writeGathered writes what is committed and then what the subscriptions have,
// put together in a buffer of the loop's.
func (l *loop) writeGathered(p *peer) {
	if len(p.active) == 0 {
		l.writeOut(p)
		return
	}
	if len(p.out) >= gatherSize { // the rest of a large message: it is not moved about
		n := p.send(p.out)
		if p.out = p.out[n:]; len(p.out) > 0 {
			l.stall(p)
			return
		}
		p.out = nil
	}
	for {
		buf := append(l.scratch[:0], p.out...)
		p.out = p.out[:0]
		buf = l.gather(p, buf) // can add to p.out: that comes after buf
		l.scratch = buf[:0]
		if len(buf) == 0 {
			p.keepOut(nil)
			break
		}
		n := p.send(buf)
		p.keepOut(buf[n:])
		if n < len(buf) {
			l.stall(p)
			break
		}
	}
	if cap(l.scratch) > 4*gatherSize {
		l.scratch = nil // after a very large message
	}
}

// writeOut writes what is committed, where nothing else is to be sent.
func (l *loop) writeOut(p *peer) {
	if len(p.out) > 0 {
		n := p.send(p.out)
		if n < len(p.out) {
			p.out = p.out[n:]
			l.stall(p)
			return
		}
	}
	if cap(p.out) > keptOutput {
		l.outputs.put(p.out)
		p.out = nil
		return
	}
	p.out = p.out[:0]
}

// outputs keeps some buffers for what is committed to connections.
type outputs struct{ spare [][]byte }

const (
	outputSize = thirstAt + thirstAt/4 // bytes: what a consumer gets at a time, and one message more
	maxOutputs = 16
)

func (o *outputs) get() []byte { return pop(&o.spare, outputSize) }

func (o *outputs) put(buf []byte) {
	if cap(buf) >= outputSize && cap(buf) <= 4*outputSize && len(o.spare) < maxOutputs {
		o.spare = append(o.spare, buf[:0])
	}
}

// keptOutput is the capacity of p.out that an idle connection may keep, bytes.
const keptOutput = 512

// keepOut puts rest, which is committed and not out, before what is in p.out.
func (p *peer) keepOut(rest []byte) {
	switch {
	case len(p.out) > 0:
		p.out = append(append(make([]byte, 0, len(rest)+len(p.out)), rest...), p.out...)
	case len(rest) > 0:
		p.out = append(p.out, rest...)
	case cap(p.out) > keptOutput:
		p.out = nil
	}
}

// gather appends what p's subscriptions have to send, one after the other, as far
// as their credit goes and until there is enough for a write.
func (l *loop) gather(p *peer, buf []byte) []byte {
	for len(p.active) > 0 && len(buf) < gatherSize {
		s := p.active[0]
		buf = l.gatherOne(p, s, buf)
		if !s.idle() && s.mayWrite() {
			// The buffer is full; the others come first next time.
			p.active = append(append(p.active[:0], p.active[1:]...), s)
			continue
		}
		s.spill(l)
		if p.ending || p.closed {
			return buf
		}
		l.unlist(p)
		if s.draining && s.idle() {
			buf = wire.AppendCold(buf, wire.TypeUnsubscribed, l.drained(s))
		}
	}
	return buf
}

// gatherOne appends from one subscription: its backlog, then this turn's spans.
func (l *loop) gatherOne(p *peer, s *subscription, buf []byte) []byte {
	if !s.mayWrite() {
		return buf
	}
	if p.target != s.id {
		buf = wire.AppendTarget(buf, s.id)
		p.target = s.id
	}
	if !s.queue.quiet() {
		var messages, bytes int
		buf, messages, bytes = s.queue.take(buf, gatherSize, s.allowance())
		s.sent(l, messages, bytes)
		s.recharge()
		s.release(l)
	}
	if !s.queue.quiet() {
		return buf
	}
	done := 0
	for i := range s.spans {
		if len(buf) >= gatherSize || !s.mayWrite() {
			break
		}
		sp := &s.spans[i]
		frames := l.turn[sp.from:sp.to]
		n, messages := len(frames), sp.messages
		if most := int(min(int64(gatherSize), s.allowance())); n > most {
			n, messages = wire.CutAt(frames, most)
		}
		buf = append(buf, frames[:n]...)
		s.sent(l, messages, n)
		sp.from += n
		sp.index += messages
		sp.messages -= messages
		if sp.messages > 0 {
			break
		}
		done++
	}
	s.spans = append(s.spans[:0], s.spans[done:]...)
	return buf
}

// unlist takes the first of p's active subscriptions off the list.
func (l *loop) unlist(p *peer) {
	p.active[0].listed = false
	p.active = append(p.active[:0], p.active[1:]...)
}

// stall makes p wait until its socket has room and puts what is left of this turn
// into the backlogs.
func (l *loop) stall(p *peer) {
	if p.broken {
		l.mute(p)
		return
	}
	if !p.stalled {
		p.stalled = true
		l.watchTime(l.opts.StallTimeout)
	}
	p.moved = l.now
	l.spill(p)
	l.watch(p)
}

// spill puts p's share of this turn into the backlogs.
func (l *loop) spill(p *peer) {
	if p.blocks() {
		l.yieldTo(p)
	}
	for _, s := range p.active {
		s.spill(l)
		if p.closed || p.ending {
			return
		}
	}
}

// blocks reports whether a subscription of policy block has something to send.
func (p *peer) blocks() bool {
	for _, s := range p.active {
		if s.policy == wire.Block && !s.idle() {
			return true
		}
	}
	return false
}

// writable goes on after a stall.
func (l *loop) writable(p *peer) {
	p.stalled = false
	l.touch(p)
	l.watch(p)
}

// mute forgets what was to be sent to a peer that is gone. What it sent before it
// went is still read.
func (l *loop) mute(p *peer) {
	for _, s := range p.subs {
		l.closeSub(s)
	}
	l.closeConsumers(p)
	p.out, p.active, p.stalled = nil, nil, false
	l.watch(p)
}
