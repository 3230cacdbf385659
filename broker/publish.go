package broker

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/postbus/postbus/wire"
)

// publisher is the part of a peer that publishes.
type publisher struct {
	published  uint64 // publishes handled: the number of the last
	told       uint64 // the last with a verdict sent
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

	pending     int  // publishes that queues have not kept yet, once for each queue
	parkedBytes int  // that wait for room in queues
	hasty       bool // the client waits for the verdict on one of those
}

// verdict is what became of the publishes after the previous verdict, up to number
// upto: each was taken as it says, or the single one refused.
type verdict struct {
	upto uint64
	taken
	bytes   int
	batch   uint64 // loop.batch, when it waits for a queue
	refused *wire.Error
	failed  []failure // single ones that a queue did not keep
}

// taken says who took a publish.
type taken struct {
	subs   uint32
	queues uint32
	level  wire.Level // the lowest of the queues'
	open   int        // answers of queues that are still to come
	parked bool       // one of them has no room yet
}

// failure is the verdict on a publish that a queue did not keep.
type failure struct {
	number uint64
	err    *wire.Error
}

// cost is about what the verdict takes while it waits, in bytes.
func (v *verdict) cost() int {
	if v.refused != nil {
		return 128 + len(v.refused.Text)
	}
	return 128
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
	if r.own && len(r.taps) == 0 || m.Headers != nil || m.Options != nil || len(m.Body) > l.opts.MaxMessage {
		var err error
		if o, err = l.checkPublish(r, &m); err != nil {
			l.refusePublish(p, size, err)
			return nil
		}
	}
	if l.run.route != r || l.run.peer != p {
		l.startRun(p, r)
	}
	t := taken{subs: l.run.subs}
	if len(r.taps) > 0 {
		if err := l.enqueue(p, r, &m, &o, &t); err != nil {
			l.refusePublish(p, size, err)
			return nil
		}
		// Each queue has a copy until it is kept: that is what the window bounds.
		more := size * (len(r.taps) - 1)
		size += more
		p.unacked += more
	}
	if t.subs == 0 && t.queues == 0 && o.RequireSub {
		l.refusePublish(p, size, &wire.Error{Code: wire.CodeNoSubscriber,
			Text: fmt.Sprintf("nobody is subscribed to topic %q", r.topic)})
		return nil
	}
	l.seq++
	l.stats.Published++
	if l.run.subs > 0 {
		l.append(p, &m, o.Redelivered)
	}
	l.accept(p, size, t)
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
		l.accept(p, n, taken{subs: r.subs})
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
	if m.Headers == nil && m.Options == nil && len(r.route.taps) == 0 {
		r.likeAt, r.like = at, at+wire.BodyOffset(l.turn[at:], m.Body)
	}
	r.messages++
	if len(l.turn) >= l.nextMark {
		l.mark()
	}
}

// checkPublish looks at what most publishes do not have.
func (l *loop) checkPublish(r *route, m *wire.Publish) (o wire.PublishOptions, err error) {
	if name, push := strings.CutPrefix(r.topic, wire.QueueTopic); push && len(r.taps) == 0 {
		q, err := l.findQueue(name)
		if err == nil {
			err = q.refusePush(l, 0, l.memory) // it could not be opened
		}
		return o, err
	} else if r.own && !push {
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
func (l *loop) accept(p *peer, size int, t taken) {
	p.pending += t.open
	if n := len(p.verdicts); n > 0 && p.verdicts[n-1].goesOn(&t, l.batch) {
		v := &p.verdicts[n-1]
		if len(p.heldBy) == 0 || v.upto > p.frozen {
			v.upto, v.bytes = p.published, v.bytes+size
			v.open += t.open
			return
		}
	}
	l.judge(p, verdict{upto: p.published, taken: t, bytes: size, batch: l.batch})
}

// goesOn reports whether a publish taken so can share the verdict. One that waits for
// a queue shares it with those of the same batch only: else it would wait for ever for
// those that come after it.
func (v *verdict) goesOn(t *taken, batch uint64) bool {
	return v.refused == nil && !t.parked && !v.parked && v.subs == t.subs && v.queues == t.queues && v.level == t.level &&
		(v.open == 0 && t.open == 0 || v.open > 0 && t.open > 0 && v.batch == batch)
}

// refusePublish notes the verdict of a publish that was not routed. The client is
// told, and its connection goes on.
func (l *loop) refusePublish(p *peer, size int, err error) {
	l.judge(p, verdict{upto: p.published, bytes: size, refused: asError(err)})
}

// asError returns err as it crosses the socket.
func asError(err error) *wire.Error {
	var e *wire.Error
	if !errors.As(err, &e) {
		e = &wire.Error{Code: wire.CodeInternal, Text: err.Error()}
	}
	return e
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
	l.listAck(p, ackDelay)
}

// listAck sees to it that p's verdicts are sent, after the delay at the latest.
func (l *loop) listAck(p *peer, delay time.Duration) {
	if !p.ackListed {
		p.ackListed = true
		p.ackDue = l.now.Add(delay)
		l.acks = append(l.acks, p)
	}
}

// answerPublish takes the answer of a queue on one of p's publishes: it keeps it, or err says
// why not.
func (l *loop) answerPublish(p *peer, number uint64, err error) {
	i := sort.Search(len(p.verdicts), func(i int) bool { return p.verdicts[i].upto >= number })
	if i == len(p.verdicts) {
		return
	}
	v := &p.verdicts[i]
	v.open--
	p.pending--
	if err != nil {
		v.failed = append(v.failed, failure{number, asError(err)})
	}
	if v.open == 0 && i == 0 {
		l.listAck(p, 0)
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
	n := 0
	for n < len(p.verdicts) && p.due(&p.verdicts[n]) {
		v := &p.verdicts[n]
		p.out = v.tell(p.out, p.told)
		p.told = v.upto
		p.unacked -= v.bytes
		p.judged -= v.cost()
		n++
	}
	if n == 0 {
		return
	}
	p.verdicts = append(p.verdicts[:0], p.verdicts[n:]...)
	p.hasty = p.hasty && p.pending > 0
	l.touch(p)
	l.resume(p)
}

// due reports whether v can be sent, if those before it are.
func (p *peer) due(v *verdict) bool {
	return v.open == 0 && (len(p.heldBy) == 0 || v.upto <= p.frozen)
}

// tell appends the frames that v is told in; told is the last number told before.
func (v *verdict) tell(dst []byte, told uint64) []byte {
	refuse := func(number uint64, e *wire.Error) {
		dst = wire.AppendCold(dst, wire.TypeError, &wire.ErrorBody{Code: e.Code, Text: e.Text, Publish: number})
	}
	if v.refused != nil {
		refuse(v.upto, v.refused)
		return dst
	}
	ack := wire.Ack{Subscribers: v.subs, Queues: v.queues, Level: v.level}
	slices.SortFunc(v.failed, func(a, b failure) int { return cmp.Compare(a.number, b.number) })
	for i, f := range v.failed {
		if i > 0 && f.number == v.failed[i-1].number {
			continue // two queues refused it
		}
		if ack.UpTo = f.number - 1; ack.UpTo > told {
			dst = wire.AppendAck(dst, ack)
		}
		refuse(f.number, f.err)
		told = f.number
	}
	if told == v.upto {
		return dst
	}
	ack.UpTo = v.upto
	return wire.AppendAck(dst, ack)
}

// released lets a publisher go on that no subscription holds back any more.
func (l *loop) released(p *peer) {
	p.patient = false
	l.sendVerdicts(p, true)
	l.resume(p)
}
