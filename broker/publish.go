package broker

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/postbus/postbus/wire"
)

// publisher is the part of a peer that publishes.
type publisher struct {
	published  uint64 // publishes handled: the number of the last
	unacked    int    // bytes of publishes without a verdict
	verdicts   []verdict
	judged     int             // bytes that the verdicts take
	heldBy     []*subscription // those of policy block that hold verdicts back
	frozen     uint64          // while there are any: verdicts above this number wait
	patient    bool            // it may be left unread while there are any
	feeding    bool            // has published to a block subscription this turn
	yields     int             // peers that it yields to: not read meanwhile
	yieldTurn  uint64
	yieldUntil time.Time
	ackDue     time.Time
	ackListed  bool // in loop.acks
	route      *route
}

// verdict is what became of the publishes after the previous verdict, up to number
// upto: each was taken by subs subscriptions, or the single one refused.
type verdict struct {
	upto    uint64
	subs    uint32
	bytes   int
	refused *wire.Error
}

// cost is about what the verdict takes while it waits, in bytes.
func (v *verdict) cost() int {
	if v.refused != nil {
		return 128 + len(v.refused.Text)
	}
	return 64
}

// run is publishes in a row, of one peer to one topic, in the turn buffer. What a
// route costs is paid once for each run and not for each message.
type run struct {
	peer     *peer
	route    *route
	from     int    // where in the turn buffer
	messages int    // how many
	likeAt   int    // a frame without headers begins here,
	like     int    // and its body here: others begin alike; 0: none yet
	subs     uint32 // how many subscriptions take each
}

const (
	// ackDelay is how long a verdict may wait for more of its kind.
	ackDelay = 5 * time.Millisecond

	// manyVerdicts is how many are sent though they are not due by time.
	manyVerdicts = 256

	// turnSize is how much is routed before it is written, in bytes: small enough
	// to stay in the processor's cache between the two.
	turnSize = 256 << 10
)

// publish handles a PUBLISH frame: one seq, and a MESSAGE frame in the turn buffer
// if anybody takes it. It allocates nothing for a topic that was seen before.
func (l *loop) publish(p *peer, payload []byte) error {
	if l.draining {
		return nil // no verdict: the client sends it again to the next broker
	}
	var m wire.Publish
	if err := m.Decode(payload); err != nil {
		return err
	}
	size := wire.HeaderSize + len(payload)
	p.published++
	p.unacked += size
	r := p.route
	if r == nil || r.dead || r.version != l.topics.version || r.topic != string(m.Topic) {
		var err error
		if r, err = l.topics.find(m.Topic); err != nil {
			l.refusePublish(p, size, err)
			return nil
		}
		p.route = r
	}
	var o wire.PublishOptions
	if r.own || m.Headers != nil || m.Options != nil || len(m.Body) > l.opts.MaxMessage {
		var err error
		if o, err = l.checkPublish(r, &m); err != nil {
			l.refusePublish(p, size, err)
			return nil
		}
	}
	if l.run.route != r || l.run.peer != p {
		l.startRun(p, r)
	}
	if l.run.subs == 0 && o.RequireSub {
		l.refusePublish(p, size, &wire.Error{Code: wire.CodeNoSubscriber,
			Text: fmt.Sprintf("nobody is subscribed to topic %q", r.topic)})
		return nil
	}
	l.seq++
	l.stats.Published++
	if l.run.subs > 0 {
		l.append(p, &m, o.Redelivered)
	}
	l.accept(p, size, l.run.subs)
	if len(l.turn) >= turnSize {
		l.deliver()
	}
	return nil
}

// publishAlike handles the PUBLISH frames at the start of rest that differ from
// first, the payload just handled, in nothing but their bodies: what is the same
// for all of them is done once. It returns how many bytes it has handled.
func (l *loop) publishAlike(p *peer, first, rest []byte) int {
	r := &l.run
	if r.peer != p || r.like == 0 || len(p.heldBy) > 0 || p.closed || p.ending || l.opts.MaxMessage < math.MaxUint16 {
		return 0
	}
	head, topic, ok := wire.PublishHead(first)
	if !ok || string(topic) != r.route.topic {
		return 0
	}
	n := 0
	from := l.seq
	for len(l.turn) < turnSize {
		turn, bytes, frames := wire.Restamp(l.turn, rest[n:], head, l.turn[r.likeAt:r.like], l.seq+1, markEvery)
		if frames == 0 {
			break
		}
		l.turn = turn
		l.seq += uint64(frames)
		r.messages += frames
		l.mark()
		n += bytes
	}
	if n > 0 {
		l.stats.Published += l.seq - from
		p.published += l.seq - from
		p.unacked += n
		l.accept(p, n, r.subs)
	}
	return n
}

// append stamps a publish and puts its MESSAGE frame into the turn buffer.
func (l *loop) append(p *peer, m *wire.Publish, redelivered bool) {
	r := &l.run
	msg := wire.Message{
		Seq: l.seq, Time: l.stamp, UID: p.cred.UID, GID: p.cred.GID, PID: p.cred.PID,
		Topic: m.Topic, Headers: m.Headers, Body: m.Body,
	}
	if redelivered {
		msg.Info = l.redelivered
	}
	at := len(l.turn)
	l.turn = wire.AppendMessage(l.turn, &msg)
	if m.Headers == nil && m.Options == nil {
		r.likeAt, r.like = at, at+wire.BodyOffset(l.turn[at:], m.Body)
	}
	r.messages++
	if len(l.turn) >= l.nextMark {
		l.mark()
	}
}

// checkPublish looks at what most publishes do not have.
func (l *loop) checkPublish(r *route, m *wire.Publish) (o wire.PublishOptions, err error) {
	if r.own {
		return o, &wire.Error{Code: wire.CodeNotAllowed, Text: fmt.Sprintf(
			"topic %q is the broker's own: publish to one that does not begin with @", r.topic)}
	}
	if len(m.Body) > l.opts.MaxMessage {
		return o, &wire.Error{Code: wire.CodeTooLarge, Text: fmt.Sprintf(
			"a body of %d bytes is above the broker's message limit of %d: send less, or raise it with serve --max-message", len(m.Body), l.opts.MaxMessage)}
	}
	if err := wire.CheckHeaders(m.Headers); err != nil {
		return o, err
	}
	if m.Options != nil {
		var given wire.PublishOptions // apart: it goes to the heap
		err = wire.DecodeOptions(m.Options, &given)
		o = given
	}
	return o, err
}

// startRun ends the run before and begins one of p's publishes to r.
func (l *loop) startRun(p *peer, r *route) {
	l.endRun()
	l.run = run{peer: p, route: r, from: len(l.turn), subs: uint32(len(r.subs))}
	for _, s := range r.subs {
		if s.noLocal && s.peer == p {
			l.run.subs--
		} else if s.policy == wire.Block {
			l.feed(p)
			if s.full(l) {
				s.hold(l, p)
			}
		}
	}
}

// endRun gives the run's messages to its subscriptions. It comes before anything
// that changes routes, and before the turn buffer is written out.
func (l *loop) endRun() {
	r := &l.run
	if r.messages > 0 {
		add := span{from: r.from, to: len(l.turn), index: l.routed, messages: r.messages}
		l.routed += r.messages
		for _, s := range r.route.subs {
			if !s.left && !(s.noLocal && s.peer == r.peer) {
				s.take(l, add)
			}
		}
	}
	*r = run{}
}

// accept notes the verdict of a publish that was routed.
func (l *loop) accept(p *peer, size int, subs uint32) {
	if n := len(p.verdicts); n > 0 && p.verdicts[n-1].subs == subs && p.verdicts[n-1].refused == nil {
		v := &p.verdicts[n-1]
		if len(p.heldBy) == 0 || v.upto > p.frozen {
			v.upto, v.bytes = p.published, v.bytes+size
			return
		}
	}
	l.judge(p, verdict{upto: p.published, subs: subs, bytes: size})
}

// refusePublish notes the verdict of a publish that was not routed. The client is
// told, and its connection goes on.
func (l *loop) refusePublish(p *peer, size int, err error) {
	var e *wire.Error
	if !errors.As(err, &e) {
		e = &wire.Error{Code: wire.CodeInternal, Text: err.Error()}
	}
	l.judge(p, verdict{upto: p.published, bytes: size, refused: e})
}

func (l *loop) judge(p *peer, v verdict) {
	p.verdicts = append(p.verdicts, v)
	p.judged += v.cost()
	if len(p.verdicts)%256 == 0 {
		p.recharge()
		if !l.room(p, 0) {
			l.end(p, wire.CodeLimit, "the verdicts that wait for you take more than the broker keeps for one connection or one user")
			return
		}
	}
	if !p.ackListed {
		p.ackListed = true
		p.ackDue = l.now.Add(ackDelay)
		l.acks = append(l.acks, p)
	}
}

// sendVerdicts sends what verdicts are due: all that are not held back, if there
// is enough to be worth a frame or now is set.
func (l *loop) sendVerdicts(p *peer, now bool) {
	if p.ending {
		return // nothing comes behind GOODBYE
	}
	if len(p.verdicts) == 0 || !now && p.unacked < l.opts.Window/4 && len(p.verdicts) < manyVerdicts {
		return
	}
	limit := p.published
	if len(p.heldBy) > 0 {
		limit = p.frozen
	}
	n := 0
	for n < len(p.verdicts) && p.verdicts[n].upto <= limit {
		v := &p.verdicts[n]
		if v.refused != nil {
			p.out = wire.AppendCold(p.out, wire.TypeError, &wire.ErrorBody{
				Code: v.refused.Code, Text: v.refused.Text, Publish: v.upto})
		} else {
			p.out = wire.AppendAck(p.out, wire.Ack{UpTo: v.upto, Subscribers: v.subs})
		}
		p.unacked -= v.bytes
		p.judged -= v.cost()
		n++
	}
	if n == 0 {
		return
	}
	p.verdicts = append(p.verdicts[:0], p.verdicts[n:]...)
	l.touch(p)
}

// released lets a publisher go on that no subscription holds back any more.
func (l *loop) released(p *peer) {
	p.patient = false
	l.sendVerdicts(p, true)
	l.resume(p)
}
