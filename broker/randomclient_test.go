package broker_test

import (
	"encoding/binary"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// client is one of a world's: what it says, and what it should hear.
type client struct {
	w         *world
	id, fd    int
	packet    bool
	maxPacket int
	rude      bool // does not keep to its window; it has no subscriptions

	out  []parcel // to be sent
	said []*said  // not yet handled
	open int      // bytes of publishes without a verdict

	shut    bool // it sends nothing more
	leaving bool // because it said GOODBYE
	gone    bool // it closed its end
	ended   bool // the broker closed its

	hearing
}

// parcel is bytes to be sent.
type parcel struct {
	b     []byte
	alone bool // in a packet of its own
}

// said is a frame that the broker has not handled.
type said struct {
	typ     wire.Type
	sub     wire.Subscribe
	id      uint32 // of a subscription
	drain   bool
	n       uint64 // token, or bytes
	await   wire.Await
	pub     wire.Publish
	require bool
	size    int
}

// mute reports whether the client can say nothing more.
func (c *client) mute() bool { return c.shut || c.leaving || c.gone || c.ended }

// act says something.
func (c *client) act() {
	r := c.w.rnd
	if c.mute() {
		if r.IntN(10) == 0 {
			c.close()
		}
		return
	}
	for range 1 + r.IntN(4) {
		switch n := r.IntN(40); {
		case n < 6:
			c.subscribe()
		case n < 9:
			id, drain := c.anySub(), r.IntN(2) == 0
			c.say(unsubscribe(id, drain), said{typ: wire.TypeUnsubscribe, id: id, drain: drain})
		case n < 16:
			c.grant(c.anySub(), uint64(r.IntN(1<<r.IntN(20))))
		case n < 18:
			token := r.Uint64()
			c.say(ping(token), said{typ: wire.TypePing, n: token})
		case n < 20 && len(c.awaits) < 10:
			a := wire.Await{Token: r.Uint64() | 1, Topic: c.w.topic(), Subscribers: r.IntN(6)}
			c.say(wire.AppendCold(nil, wire.TypeAwait, &a), said{typ: wire.TypeAwait, await: a})
		default:
			c.burst()
		}
	}
	c.write(r.IntN(4) > 0)
	switch r.IntN(120) {
	case 0:
		c.say(wire.AppendCold(nil, wire.TypeGoodbye, &wire.Goodbye{}), said{typ: wire.TypeGoodbye})
		c.leaving = true
	case 1:
		c.shut = true
		_ = unix.Shutdown(c.fd, unix.SHUT_WR)
	case 2:
		c.close()
	}
}

// anySub is a number that is, was, or could be one of a subscription.
func (c *client) anySub() uint32 { return 1 + c.w.rnd.Uint32N(6) }

func (c *client) subscribe() {
	r, id := c.w.rnd, c.anySub()
	if c.rude || c.w.asked > 60 || len(c.said) > 0 || c.live[id] != nil && c.subs[id] == nil {
		return // the last: a drain may end at any time
	}
	c.w.asked++
	f := wire.Subscribe{Sub: id, NoLocal: r.IntN(4) == 0}
	for range 1 + r.IntN(3) {
		f.Filters = append(f.Filters, []string{"#", "+", "a/#", "+/b", c.w.topic(), c.w.topic() + "/#", c.w.topic() + "/+"}[r.IntN(7)])
	}
	f.Policy = []string{"", "drop-old", "drop-new", "latest", "disconnect", "block"}[r.IntN(6)]
	if f.Policy == "block" && !c.w.block || f.Policy == "disconnect" && r.IntN(3) > 0 {
		f.Policy = "latest"
	}
	if r.IntN(2) == 0 {
		f.Messages = 1 + r.IntN(20)
	}
	if r.IntN(3) == 0 {
		f.Bytes = 1 + r.IntN(1<<r.IntN(20))
	}
	if r.IntN(2) == 0 {
		f.Credit = uint64(1 + r.IntN(1<<r.IntN(20)))
	}
	switch r.IntN(20) {
	case 0:
		f.Filters = append(f.Filters, "a/#/b")
	case 1:
		f.Policy = "drop-all"
	}
	c.say(subscribe(f), said{typ: wire.TypeSubscribe, sub: f})
}

func (c *client) grant(id uint32, bytes uint64) {
	c.say(credit(id, bytes), said{typ: wire.TypeCredit, id: id, n: bytes})
}

// grantAll grants what is more than enough for all that can come.
func (c *client) grantAll() {
	if c.mute() {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(c.live)) {
		if s := c.live[id]; s.credited && s.granted < 1<<50 {
			c.grant(id, 1<<50)
		}
	}
}

// burst publishes some, mostly alike.
func (c *client) burst() {
	r := c.w.rnd
	n, size := 1+r.IntN(1<<r.IntN(8)), r.IntN(1<<r.IntN(12))
	if r.IntN(15) == 0 {
		n, size = 1+r.IntN(2), r.IntN(200_000)
	}
	p := wire.Publish{Topic: []byte(c.w.topic())}
	require := false
	switch r.IntN(12) {
	case 0:
		p.Topic = []byte([]string{"a//b", "a/+", "", "@own/x"}[r.IntN(4)])
	case 1:
		p.Headers = wire.AppendHeaders(nil, map[string]string{"k": c.w.topic()})
	case 2:
		require = true
		p.Topic = append(p.Topic, "/d/d"...)
		p.Options = wire.AppendOptions(nil, &wire.PublishOptions{RequireSub: true})
	case 3:
		p.Options = wire.AppendOptions(nil, &wire.PublishOptions{Redelivered: true})
	}
	for range n {
		p.Body = make([]byte, size)
		if size >= 8 {
			binary.LittleEndian.PutUint64(p.Body, r.Uint64())
		}
		f := wire.AppendPublish(nil, &p)
		if !c.rude && c.open > 0 && c.open+len(f) > c.w.window {
			return
		}
		c.open += len(f)
		c.say(f, said{typ: wire.TypePublish, pub: p, require: require, size: len(f)})
		if r.IntN(8) == 0 {
			p = wire.Publish{Topic: []byte(c.w.topic())}
			require = false
		}
	}
}

func (c *client) say(frame []byte, s said) {
	c.said = append(c.said, &s)
	for c.packet && len(frame) > wire.DefaultMaxPacket {
		c.out = append(c.out, parcel{frame[:wire.DefaultMaxPacket], true})
		if frame = frame[wire.DefaultMaxPacket:]; len(frame) <= wire.DefaultMaxPacket {
			c.out = append(c.out, parcel{frame, true})
			return
		}
	}
	c.out = append(c.out, parcel{frame, false})
}

// write sends all that was said, or a part that ends anywhere; on packets after some
// frames, or within one that takes several.
func (c *client) write(all bool) {
	r := c.w.rnd
	for len(c.out) > 0 && !c.gone && !c.ended && !c.shut && (all || r.IntN(6) > 0) {
		b, k := slices.Clone(c.out[0].b), 1
		for !c.out[0].alone && k < len(c.out) && !c.out[k].alone && len(b)+len(c.out[k].b) <= wire.DefaultMaxPacket && r.IntN(50) > 0 {
			b = append(b, c.out[k].b...)
			k++
		}
		if !c.packet && !all && r.IntN(2) == 0 {
			b = b[:1+r.IntN(len(b))]
		}
		n, err := unix.Write(c.fd, b)
		if err == unix.EAGAIN {
			if !all {
				return
			}
			before := c.w.loop.Stats()
			if c.w.check(); c.w.loop.Stats() == before {
				return
			}
			continue
		}
		if err != nil {
			c.ended = true
			return
		}
		for n > 0 {
			k := min(n, len(c.out[0].b))
			if c.out[0].b = c.out[0].b[k:]; len(c.out[0].b) == 0 {
				c.out = c.out[1:]
			}
			n -= k
		}
	}
}

func (c *client) close() {
	if !c.gone {
		c.gone = true
		unix.Close(c.fd)
	}
}
