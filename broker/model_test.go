package broker_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// The model: what the broker makes of a frame at the moment in which it handles it,
// and what follows from that for what each client hears.

// hearing is what a client should hear, and what it has.
type hearing struct {
	subs      map[uint32]*stream // open, as the broker has it
	live      map[uint32]*stream // the same, till the client has heard of the end
	published uint64
	replies   []reply   // due, in this order
	verdicts  []verdict // due, in this order
	awaits    map[uint64]wire.Await

	in      []byte
	heard   map[uint32]*stream // open, as the client has heard
	target  uint32
	acked   uint64
	goodbye bool
	slow    bool // it had a subscription of policy disconnect
}

// reply is one that comes in the order of what was asked.
type reply struct {
	typ    wire.Type
	code   wire.Code
	sub    uint32
	token  uint64
	seq    uint64
	stream *stream
	before uint64 // publishes before it
}

type verdict struct {
	number uint64
	code   wire.Code // 0: it was taken,
	subs   uint32    // by so many
	size   int
}

// stream is a subscription and what was published to it.
type stream struct {
	wire.Subscribe
	credited bool
	granted  uint64 // bytes
	draining bool
	taken    []message
	next     int // of taken, to be heard of
	bytes    uint64
	got      uint64
	lost     uint64
}

type message struct {
	seq uint64
	pub *wire.Publish
}

// routes closes the streams that the broker has closed.
func (w *world) routes(id int, routed func(uint32) bool) {
	c := w.clients[id]
	for sub := range c.subs {
		if routed(sub) {
			continue
		}
		if !c.mute() && !c.slow {
			w.t.Errorf("subscription %d of client %d was ended, why?", sub, id)
		}
		delete(c.subs, sub)
	}
}

// alike is n publishes handled at once.
func (w *world) alike(id, n int) {
	for range n {
		w.frame(id, wire.TypePublish, nil)
	}
}

// frame is one that the broker is about to handle.
func (w *world) frame(id int, t wire.Type, _ []byte) {
	c := w.clients[id]
	if len(c.said) == 0 || c.said[0].typ != t {
		w.t.Fatalf("the broker handles %v of client %d, who has not said that", t, id)
	}
	s := c.said[0]
	c.said = c.said[1:]
	switch t {
	case wire.TypeHello:
		c.due(reply{typ: wire.TypeWelcome})
	case wire.TypePublish:
		c.publish(s)
	case wire.TypeSubscribe:
		c.opened(s.sub)
	case wire.TypeUnsubscribe:
		c.unsubscribed(s)
	case wire.TypeCredit:
		if st := c.live[s.id]; st != nil {
			st.granted += s.n
		}
	case wire.TypePing:
		c.due(reply{typ: wire.TypePong, token: s.n, before: c.published})
	case wire.TypeAwait:
		c.awaits[s.await.Token] = s.await
	case wire.TypeGoodbye:
		clear(c.subs)
	}
}

func (c *client) due(r reply) { c.replies = append(c.replies, r) }

func codeOf(err error) wire.Code {
	var e *wire.Error
	errors.As(err, &e)
	return e.Code
}

// publish routes to whom it concerns.
func (c *client) publish(s *said) {
	w := c.w
	c.published++
	v := verdict{number: c.published, size: s.size}
	topic := string(s.pub.Topic)
	if err := wire.CheckTopic(topic); err != nil {
		v.code = codeOf(err)
	} else if topic[0] == '@' {
		v.code = wire.CodeNotAllowed
	} else if len(s.pub.Body) > w.max {
		v.code = wire.CodeTooLarge
	} else {
		takers := w.takers(c, topic)
		if v.subs = uint32(len(takers)); v.subs == 0 && s.require {
			v.code = wire.CodeNoSubscriber
		} else {
			w.seq++
		}
		for _, st := range takers {
			st.taken = append(st.taken, message{w.seq, &s.pub})
		}
	}
	c.verdicts = append(c.verdicts, v)
}

// takers are the streams that a message of c, or of nobody, to topic goes to.
func (w *world) takers(from *client, topic string) (all []*stream) {
	for _, c := range w.clients {
		for _, st := range c.subs {
			if !(st.NoLocal && c == from) && slices.ContainsFunc(st.Filters, func(f string) bool { return wire.Match(f, topic) }) {
				all = append(all, st)
			}
		}
	}
	return all
}

func (c *client) opened(f wire.Subscribe) {
	r := reply{typ: wire.TypeError, sub: f.Sub}
	if _, err := wire.ParsePolicy(f.Policy); err != nil {
		r.code = codeOf(err)
	} else if c.subs[f.Sub] != nil {
		r.code = wire.CodeExists
	} else if slices.Contains(f.Filters, "a/#/b") {
		r.code = wire.CodeBadFilter
	} else {
		st := &stream{Subscribe: f, credited: f.Credit > 0, granted: f.Credit}
		c.subs[f.Sub], c.live[f.Sub] = st, st
		c.slow = c.slow || f.Policy == "disconnect"
		r = reply{typ: wire.TypeSubscribed, sub: f.Sub, seq: c.w.seq, stream: st}
	}
	c.due(r)
}

func (c *client) unsubscribed(s *said) {
	st := c.subs[s.id]
	if st == nil {
		c.due(reply{typ: wire.TypeError, code: wire.CodeNotFound, sub: s.id})
		return
	}
	delete(c.subs, s.id)
	if st.draining = s.drain; !st.draining {
		c.due(reply{typ: wire.TypeUnsubscribed, sub: s.id, stream: st})
	}
}

// hear reads about so many bytes and returns how many it has read.
func (c *client) hear(most int) int {
	total := 0
	for total < most && !c.gone && !c.ended {
		b := c.w.buf
		if !c.packet {
			b = b[:min(most-total, len(b))]
		}
		n, err := unix.Read(c.fd, b)
		if err == unix.EAGAIN {
			break
		}
		if n <= 0 {
			c.ended = true
			if !c.goodbye && !c.shut && !c.leaving && !c.slow {
				c.fail("the broker closed the connection: %v", err)
			}
			break
		}
		if c.packet && n > c.maxPacket {
			c.fail("a packet of %d bytes", n)
		}
		total += n
		c.in = append(c.in, b[:n]...)
		c.parse()
		c.w.check()
	}
	return total
}

func (c *client) fail(format string, args ...any) {
	c.w.t.Helper()
	c.w.t.Fatalf("client %d: %s", c.id, fmt.Sprintf(format, args...))
}

func (c *client) parse() {
	for {
		payload, size, err := wire.Split(c.in, 1<<20)
		if err == wire.ErrShort {
			return
		}
		if err != nil {
			c.fail("%v", err)
		}
		if c.goodbye {
			c.fail("got %s after GOODBYE", inShort(payload))
		}
		c.hearFrame(payload, size)
		c.in = c.in[size:]
	}
}

func (c *client) hearFrame(payload []byte, size int) {
	var err error
	switch t, _ := wire.PeekType(payload); t {
	case wire.TypeTarget:
		if c.target, err = wire.DecodeTarget(payload); c.heard[c.target] == nil {
			c.fail("TARGET %d, which is not open", c.target)
		}
	case wire.TypeMessage:
		var m wire.Message
		err = m.Decode(payload)
		c.hearMessage(&m, size)
	case wire.TypeGap:
		var g wire.Gap
		err = g.Decode(payload)
		c.hearGap(g)
	case wire.TypeAck:
		var a wire.Ack
		err = a.Decode(payload)
		c.hearVerdicts(verdict{number: a.UpTo, subs: a.Subscribers})
	case wire.TypeAwaited:
		var a wire.Awaited
		err = wire.DecodeCold(payload, &a)
		if asked, ok := c.awaits[a.Token]; !ok || a.Subscribers < asked.Subscribers {
			c.fail("%+v for %+v", a, asked)
		}
		delete(c.awaits, a.Token)
	case wire.TypeGoodbye:
		var g wire.Goodbye
		err = wire.DecodeCold(payload, &g)
		if c.goodbye = true; g.Code != wire.CodeSlow || !c.slow || g.Seq > c.w.seq {
			c.fail("%+v", g)
		}
	default:
		c.hearReply(t, payload)
	}
	if err != nil {
		c.fail("%q: %v", payload, err)
	}
}

func (c *client) hearMessage(m *wire.Message, size int) {
	st := c.heard[c.target]
	if st == nil || st.next == len(st.taken) || st.taken[st.next].seq != m.Seq {
		c.fail("message %d for subscription %d: %+v", m.Seq, c.target, st.coming())
	}
	want := st.taken[st.next].pub
	var info wire.MessageInfo
	var options wire.PublishOptions
	if wire.DecodeOptions(m.Info, &info) != nil || wire.DecodeOptions(want.Options, &options) != nil || info.Redelivered != options.Redelivered ||
		!bytes.Equal(m.Topic, want.Topic) || !bytes.Equal(m.Headers, want.Headers) || !bytes.Equal(m.Body, want.Body) {
		c.fail("message %d is not as it was published", m.Seq)
	}
	if st.credited && st.bytes >= st.granted {
		c.fail("message %d for subscription %d, whose credit of %d is used up", m.Seq, st.Sub, st.granted)
	}
	st.next++
	st.got++
	st.bytes += uint64(size)
}

// coming shows what a stream should go on with.
func (st *stream) coming() string {
	if st == nil {
		return "it is not open"
	}
	if st.next == len(st.taken) {
		return fmt.Sprintf("nothing is due, of %d", len(st.taken))
	}
	return fmt.Sprintf("message %d is due", st.taken[st.next].seq)
}

func (c *client) hearGap(g wire.Gap) {
	st := c.heard[g.Sub]
	if st == nil || g.Count == 0 || uint64(len(st.taken)-st.next) < g.Count {
		c.fail("gap %+v: %s", g, st.coming())
	}
	missing := st.taken[st.next : st.next+int(g.Count)]
	if missing[0].seq != g.First || missing[len(missing)-1].seq != g.Last {
		c.fail("gap %+v, for what was published as %d to %d", g, missing[0].seq, missing[len(missing)-1].seq)
	}
	reasons := map[string][]wire.Reason{
		"": {wire.ReasonDropOld}, "drop-old": {wire.ReasonDropOld}, "drop-new": {wire.ReasonDropNew},
		"latest": {wire.ReasonDropOld, wire.ReasonLatest},
	}
	if !slices.Contains(reasons[st.Policy], g.Reason) {
		c.fail("gap %+v, and the policy is %q", g, st.Policy)
	}
	if st.credited && st.bytes >= st.granted {
		c.fail("gap %+v, and the credit of %d is used up", g, st.granted)
	}
	st.next += int(g.Count)
	st.lost += g.Count
}

// hearVerdicts takes those that v is for off what is due.
func (c *client) hearVerdicts(v verdict) {
	if v.number <= c.acked || v.code != 0 && v.number != c.acked+1 {
		c.fail("verdict %+v after %d", v, c.acked)
	}
	for ; c.acked < v.number; c.acked++ {
		if len(c.verdicts) == 0 {
			c.fail("verdict %+v, and none is due", v)
		}
		if want := c.verdicts[0]; want.number != c.acked+1 || want.subs != v.subs || want.code != v.code {
			c.fail("verdict %+v, want %+v", v, want)
		}
		c.open -= c.verdicts[0].size
		c.verdicts = c.verdicts[1:]
	}
}

func (c *client) hearReply(t wire.Type, payload []byte) {
	var err error
	got := reply{typ: t}
	switch t {
	case wire.TypeError:
		var e wire.ErrorBody
		if err = wire.DecodeCold(payload, &e); e.Publish != 0 {
			c.hearVerdicts(verdict{number: e.Publish, code: e.Code})
			return
		}
		got.code, got.sub, got.token = e.Code, e.Sub, e.Token
	case wire.TypeSubscribed:
		var f wire.Subscribed
		err = wire.DecodeCold(payload, &f)
		got.sub, got.seq = f.Sub, f.Seq
	case wire.TypeUnsubscribed:
		var f wire.Unsubscribed
		err = wire.DecodeCold(payload, &f)
		if c.hearEnd(f) {
			return
		}
		got.sub = f.Sub
	case wire.TypePong:
		got.token, err = wire.DecodePing(payload)
	}
	if err != nil || len(c.replies) == 0 {
		c.fail("%s is not due, %v", inShort(payload), err)
	}
	want := c.replies[0]
	c.replies = c.replies[1:]
	if want.stream != nil && t == wire.TypeSubscribed {
		c.heard[want.sub] = want.stream
	}
	if !c.w.block && c.acked < want.before {
		c.fail("PONG before the verdicts from %d to %d", c.acked+1, want.before)
	}
	want.stream, want.before = nil, 0
	if got != want {
		c.fail("got %+v (%s), want %+v", got, inShort(payload), want)
	}
}

// hearEnd checks UNSUBSCRIBED and reports whether it ends a drain, which comes at any
// time.
func (c *client) hearEnd(f wire.Unsubscribed) bool {
	st := c.heard[f.Sub]
	if st == nil {
		c.fail("%+v: it is not open", f)
	}
	if sum := f.Delivered + f.Dropped + f.Discarded; f.Delivered != st.got || f.Dropped < st.lost || sum != uint64(len(st.taken)) ||
		st.draining && (f.Discarded != 0 || f.Dropped != st.lost) {
		c.fail("%+v: %d came, %d were told as lost, of %d", f, st.got, st.lost, len(st.taken))
	}
	delete(c.heard, f.Sub)
	if c.live[f.Sub] == st {
		delete(c.live, f.Sub)
	}
	if c.target == f.Sub {
		c.target = 0
	}
	return st.draining
}

// complete checks that nothing is due any more.
func (c *client) complete() {
	if c.mute() || c.goodbye {
		return
	}
	if len(c.in)+len(c.out)+len(c.said)+len(c.verdicts)+len(c.replies) > 0 {
		c.fail("in the end %d bytes are half heard, %d parcels are not sent, %d frames not handled, verdicts %+v and replies %+v are due",
			len(c.in), len(c.out), len(c.said), c.verdicts, c.replies)
	}
	for id, st := range c.live {
		if st.next < len(st.taken) || c.subs[id] == nil {
			c.fail("in the end subscription %d: %s, %d came and %d were told as lost, of %d", id, st.coming(), st.got, st.lost, len(st.taken))
		}
	}
	for _, a := range c.awaits {
		if n := len(c.w.takers(nil, a.Topic)); n >= a.Subscribers {
			c.fail("in the end %+v is open, with %d subscriptions", a, n)
		}
	}
}
