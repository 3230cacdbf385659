package broker

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postbus/postbus/wire"
)

// handler does what one frame asks for. An error ends the connection; what is
// wrong with a request only is answered by refuseRequest.
type handler func(l *loop, p *peer, payload []byte) error

var handlers = [wire.NumTypes]handler{
	wire.TypeHello:       (*loop).hello,
	wire.TypePublish:     (*loop).publish,
	wire.TypeSubscribe:   (*loop).subscribe,
	wire.TypeUnsubscribe: (*loop).unsubscribe,
	wire.TypePing:        (*loop).ping,
	wire.TypeGoodbye:     (*loop).goodbye,
	wire.TypeCredit:      (*loop).addCredit,
	wire.TypeAwait:       (*loop).await,
	wire.TypeQueue:       (*loop).queueRequest,
	wire.TypeConsume:     (*loop).consume,
	wire.TypeSettle:      (*loop).settle,
}

// Bounds of what one frame may ask for.
const (
	maxFilters    = 64      // of a subscription
	maxAwaits     = 64      // open on a connection
	maxUserAwaits = 1024    // open on all connections of a uid
	maxName       = 64      // bytes of a client's name
	maxText       = 8 << 10 // bytes of an ERROR's text

	// subscriptionCost is about what a filter takes besides its nodes, in bytes.
	subscriptionCost = 300
)

// command handles one frame.
func (l *loop) command(p *peer, t wire.Type, payload []byte) error {
	if int(t) >= len(handlers) || handlers[t] == nil {
		return &wire.Error{Code: wire.CodeUnknownFrame, Text: fmt.Sprintf("a broker takes no %v frame", t)}
	}
	if p.open == (t == wire.TypeHello) {
		return &wire.Error{Code: wire.CodeUnknownFrame, Text: fmt.Sprintf("%v is not due: HELLO comes first, and once", t)}
	}
	return handlers[t](l, p, payload)
}

func (l *loop) hello(p *peer, payload []byte) error {
	var h wire.Hello
	if err := wire.DecodeCold(payload, &h); err != nil {
		return err
	}
	if h.Version < wire.Version {
		return &wire.Error{Code: wire.CodeVersion, Text: fmt.Sprintf(
			"the client speaks protocol version %d at most, this broker %d at least: use a newer client", h.Version, wire.Version)}
	}
	if h.MaxPacket != 0 {
		p.maxPacket = min(max(h.MaxPacket, 4096), wire.DefaultMaxPacket)
	}
	p.name = h.Client[:min(len(h.Client), maxName)]
	p.session, p.restore = string(h.Session[:min(len(h.Session), sessionSize)]), h.Restore
	p.open = true
	p.out = wire.AppendCold(p.out, wire.TypeWelcome, &wire.Welcome{
		Version: wire.Version, Features: features(h.Features), MaxPacket: p.maxPacket, MaxMessage: l.opts.MaxMessage,
		Window: l.opts.Window, Bus: l.bus, Broker: l.opts.Version,
		UID: p.cred.UID, GID: p.cred.GID, PID: p.cred.PID,
	})
	l.touch(p)
	l.returned(p)
	return nil
}

// features returns those of the client's that the broker has too.
func features(wanted []string) []string {
	if slices.Contains(wanted, wire.FeatureQueues) {
		return []string{wire.FeatureQueues}
	}
	return []string{}
}

// refuseRequest answers a request that cannot be granted.
func (l *loop) refuseRequest(p *peer, err error, body wire.ErrorBody) {
	if p.closed || p.ending {
		return
	}
	e := asError(err)
	body.Code, body.Text = e.Code, strings.ToValidUTF8(e.Text[:min(len(e.Text), maxText)], "")
	p.out = wire.AppendCold(p.out, wire.TypeError, &body)
	l.touch(p)
}

func (l *loop) subscribe(p *peer, payload []byte) error {
	var f wire.Subscribe
	if err := wire.DecodeCold(payload, &f); err != nil {
		return err
	}
	s, err := l.newSubscription(p, &f)
	if err != nil {
		l.refuseRequest(p, err, wire.ErrorBody{Sub: f.Sub})
		return nil
	}
	l.endRun()
	p.subs[s.id] = s
	l.topics.subscribe(s)
	s.recharge()
	l.stats.Subscriptions++
	p.out = wire.AppendCold(p.out, wire.TypeSubscribed, &wire.Subscribed{Sub: s.id, Seq: l.seq})
	l.touch(p)
	l.awaiting = true
	l.returned(p)
	return nil
}

// newSubscription checks a SUBSCRIBE and makes what it asks for.
func (l *loop) newSubscription(p *peer, f *wire.Subscribe) (*subscription, error) {
	policy, err := wire.ParsePolicy(f.Policy)
	if err != nil {
		return nil, err
	}
	switch {
	case f.Sub == 0:
		return nil, &wire.Error{Code: wire.CodeBadOption, Text: "subscription 0: numbers begin at 1"}
	case p.subs[f.Sub] != nil || p.consumers[f.Sub] != nil:
		return nil, &wire.Error{Code: wire.CodeExists, Text: fmt.Sprintf("subscription %d is open on this connection already", f.Sub)}
	case len(p.subs)+len(p.consumers) >= l.opts.MaxSubscriptions:
		return nil, &wire.Error{Code: wire.CodeLimit, Text: fmt.Sprintf(
			"the connection has %d subscriptions and consumers, its limit: close some, or give one several filters", l.opts.MaxSubscriptions)}
	case len(f.Filters) == 0 || len(f.Filters) > maxFilters:
		return nil, &wire.Error{Code: wire.CodeBadFilter, Text: fmt.Sprintf(
			"subscription %d has %d filters: 1 to %d are possible", f.Sub, len(f.Filters), maxFilters)}
	case f.Messages < 0 || f.Bytes < 0:
		return nil, &wire.Error{Code: wire.CodeBadOption, Text: fmt.Sprintf("subscription %d has a negative buffer", f.Sub)}
	}
	for _, filter := range f.Filters {
		if err := wire.CheckFilter(filter); err != nil {
			return nil, err
		}
	}
	slices.Sort(f.Filters)
	s := &subscription{
		peer: p, id: f.Sub, filters: slices.Compact(f.Filters), policy: policy,
		maxMessages: l.opts.BufferMessages, maxBytes: l.opts.BufferBytes, noLocal: f.NoLocal,
		credited: f.Credit > 0, credit: int64(min(f.Credit, 1<<62)),
		queue: backlog{sub: f.Sub, spare: &l.spare},
	}
	for _, filter := range s.filters {
		s.cost += subscriptionCost + costOf(filter)
	}
	if !l.room(p, s.cost) {
		return nil, &wire.Error{Code: wire.CodeLimit, Text: "the subscriptions of this connection, or of its user, take more than the broker keeps for one: close some, or raise its limits"}
	}
	if f.Messages > 0 {
		s.maxMessages = f.Messages
	}
	if f.Bytes > 0 {
		s.maxBytes = f.Bytes
	}
	if policy == wire.Latest {
		s.queue.latest = make(map[string]place)
	}
	if p.subs == nil {
		p.subs = make(map[uint32]*subscription, 1)
	}
	return s, nil
}

func (l *loop) unsubscribe(p *peer, payload []byte) error {
	var f wire.Unsubscribe
	if err := wire.DecodeCold(payload, &f); err != nil {
		return err
	}
	if c := p.consumers[f.Sub]; c != nil {
		l.unconsume(c, f.Drain)
		return nil
	}
	s := p.subs[f.Sub]
	if s == nil || s.draining {
		l.refuseRequest(p, &wire.Error{Code: wire.CodeNotFound,
			Text: fmt.Sprintf("subscription %d is not open on this connection", f.Sub)}, wire.ErrorBody{Sub: f.Sub})
		return nil
	}
	l.endRun()
	if f.Drain && !s.idle() {
		s.draining = true
		l.topics.unsubscribe(s)
		return nil
	}
	last := l.drained(s) // can add verdicts to p.out
	p.out = wire.AppendCold(p.out, wire.TypeUnsubscribed, last)
	l.touch(p)
	return nil
}

// drained closes s and returns what its UNSUBSCRIBED says.
func (l *loop) drained(s *subscription) *wire.Unsubscribed {
	discarded := s.queue.messages
	for _, sp := range s.spans {
		discarded += sp.messages
	}
	l.closeSub(s)
	return &wire.Unsubscribed{Sub: s.id, Delivered: s.delivered, Dropped: s.dropped, Discarded: uint64(discarded)}
}

// closeSub takes a subscription out of everything.
func (l *loop) closeSub(s *subscription) {
	if s.closed {
		return
	}
	l.endRun()
	s.closed = true
	p := s.peer
	delete(p.subs, s.id)
	l.topics.unsubscribe(s)
	if i := slices.Index(p.active, s); i >= 0 {
		p.active = slices.Delete(p.active, i, i+1)
	}
	if p.target == s.id {
		p.target = 0 // the number may be used again
	}
	s.spans = nil
	s.queue, s.cost = backlog{}, 0
	s.recharge()
	s.release(l)
	l.stats.Subscriptions--
}

func (l *loop) ping(p *peer, payload []byte) error {
	token, err := wire.DecodePing(payload)
	if err != nil {
		return err
	}
	p.hasty = p.pending > 0
	l.sendVerdicts(p, true)
	p.out = wire.AppendPong(p.out, token)
	l.touch(p)
	return nil
}

func (l *loop) goodbye(p *peer, payload []byte) error {
	var g wire.Goodbye
	if err := wire.DecodeCold(payload, &g); err != nil {
		return err
	}
	p.leaving = true
	for _, s := range p.subs {
		l.closeSub(s)
	}
	l.closeConsumers(p)
	p.hasty = p.pending > 0
	l.sendVerdicts(p, true)
	l.touch(p)
	return nil
}

func (l *loop) addCredit(p *peer, payload []byte) error {
	var c wire.Credit
	if err := c.Decode(payload); err != nil {
		return err
	}
	if s := p.subs[c.Sub]; s != nil && s.credited {
		s.credit = min(s.credit+int64(min(c.Bytes, 1<<61)), 1<<62)
		if !s.queue.quiet() {
			s.list(l)
		}
	}
	return nil
}

// await is an AWAIT not answered yet.
type await struct {
	peer        *peer
	token       uint64
	topic       []byte
	subscribers int
}

func (l *loop) await(p *peer, payload []byte) error {
	var f wire.Await
	if err := wire.DecodeCold(payload, &f); err != nil {
		return err
	}
	if p.awaits >= maxAwaits || p.account.awaits >= maxUserAwaits {
		l.refuseRequest(p, &wire.Error{Code: wire.CodeLimit, Text: fmt.Sprintf(
			"%d AWAITs are open on this connection and %d of this user, the limits are %d and %d",
			p.awaits, p.account.awaits, maxAwaits, maxUserAwaits)}, wire.ErrorBody{Token: f.Token})
		return nil
	}
	if err := wire.CheckTopic(f.Topic); err != nil {
		l.refuseRequest(p, err, wire.ErrorBody{Token: f.Token})
		return nil
	}
	a := await{p, f.Token, []byte(f.Topic), f.Subscribers}
	p.awaits++
	p.account.awaits++
	p.awaited += a.cost()
	p.recharge()
	if !l.answered(a) {
		l.awaits = append(l.awaits, a)
	}
	return nil
}

// cost is about what an AWAIT takes, in bytes.
func (a *await) cost() int { return 64 + len(a.topic) }

// answerAwaits answers those AWAITs whose topic now has the subscribers. It is done
// once a turn: many may be open, and many subscriptions come at once.
func (l *loop) answerAwaits() {
	if l.awaiting {
		l.awaiting = false
		l.awaits = slices.DeleteFunc(l.awaits, l.answered)
	}
}

// answered answers an AWAIT if its topic has the subscribers.
func (l *loop) answered(a await) bool {
	r, err := l.topics.find(a.topic) // checked when it was asked for
	if err != nil || len(r.subs) < a.subscribers {
		return false
	}
	a.peer.forget(&a)
	a.peer.out = wire.AppendCold(a.peer.out, wire.TypeAwaited, &wire.Awaited{Token: a.token, Subscribers: len(r.subs)})
	l.touch(a.peer)
	return true
}

// forget takes an AWAIT off what p has open.
func (p *peer) forget(a *await) {
	p.awaits--
	p.account.awaits--
	p.awaited -= a.cost()
}

func (l *loop) forgetAwaits(p *peer) {
	if p.awaits > 0 {
		l.awaits = slices.DeleteFunc(l.awaits, func(a await) bool {
			if a.peer == p {
				p.forget(&a)
			}
			return a.peer == p
		})
	}
}
