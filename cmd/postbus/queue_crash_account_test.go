package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postbus/postbus/wire"
)

// account is what the clients of a queue know of its messages, over the lives of all its
// brokers.
type account struct {
	t     testing.TB
	dir   string // the bus
	queue string

	mu      sync.Mutex // guards what follows
	letters map[string]*letter
	order   []*letter // as they were made
	keys    map[string][]*letter
	life    int // of the broker: the number of this one
	hands   int

	kept, acked, again int
}

// letter is a message and what is known of it.
type letter struct {
	name   string
	size   int
	opts   wire.PublishOptions
	hand   int // who pushed it, if that is in order
	fate   letterFate
	seq    uint64 // 0: not known
	plain  int    // deliveries that were not marked
	seenIn int    // the life of the last delivery

	said, sure [wire.VerbExtend + 1]bool // by verb: it was said of it, and that is confirmed
	later      bool                      // the nack was for much later
}

type letterFate int

const (
	letterSent letterFate = iota // and nobody knows
	letterKept
	letterRefused
)

func newAccount(t testing.TB, dir, queue string) *account {
	return &account{t: t, dir: dir, queue: queue, letters: make(map[string]*letter), keys: make(map[string][]*letter)}
}

// body is what only this letter has in it.
func (l *letter) body() string {
	pattern := l.name + " "
	return pattern + strings.Repeat(pattern, l.size/len(pattern))
}

func nameOf(body []byte) string {
	name, _, _ := strings.Cut(string(body), " ")
	return name
}

// next begins the life of another broker.
func (a *account) next() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.life++
}

// write makes a new letter.
func (a *account) write(rng *rand.Rand, hand int) *letter {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := &letter{name: fmt.Sprintf("<%d.%d>", hand, len(a.order)), size: rng.IntN(400), hand: hand}
	switch rng.IntN(12) {
	case 0:
		l.size = 9000 + rng.IntN(40_000) // in chunks, at level kernel
	case 1:
		l.opts.Key = fmt.Sprint("key ", rng.IntN(4))
		a.keys[l.opts.Key] = append(a.keys[l.opts.Key], l)
	case 2:
		l.opts.Priority = rng.IntN(10)
	case 3, 4:
		l.opts.ID, l.hand = l.name, 0
	case 5:
		l.opts.DelayMS = int64(rng.IntN(20))
	}
	a.letters[l.name] = l
	a.order = append(a.order, l)
	return l
}

// open returns letters with an id whose fate is not known.
func (a *account) open() (all []*letter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.order {
		if l.opts.ID != "" && l.fate == letterSent {
			all = append(all, l)
		}
	}
	return all
}

// found checks a message that there is, delivered or peeked at.
func (a *account) found(m *wire.Message) *letter {
	l := a.letters[nameOf(m.Body)]
	switch {
	case l == nil:
		a.t.Errorf("message %d is none that was pushed: %.50q", m.Seq, m.Body)
		return &letter{}
	case string(m.Body) != l.body():
		a.t.Errorf("%s is not what was pushed: %d bytes, %.50q", l.name, len(m.Body), m.Body)
	case l.fate == letterRefused:
		a.t.Errorf("%s is there, though it was refused", l.name)
	case l.sure[wire.VerbAck]:
		a.t.Errorf("%s is there again, though its ack was confirmed", l.name)
	case l.sure[wire.VerbReject] && !a.isDead(m):
		a.t.Errorf("%s is no dead letter, though its reject was confirmed", l.name)
	case l.seq != 0 && l.seq != m.Seq:
		a.t.Errorf("%s is message %d, and message %d too", l.name, l.seq, m.Seq)
	}
	l.seq = m.Seq
	return l
}

func (a *account) isDead(m *wire.Message) bool {
	var info wire.MessageInfo
	return wire.DecodeOptions(m.Info, &info) == nil && info.State == wire.StateDead
}

// delivered takes note of a delivery.
func (a *account) delivered(m *wire.Message) (*letter, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var info wire.MessageInfo
	if err := wire.DecodeOptions(m.Info, &info); err != nil {
		return nil, err
	}
	l := a.found(m)
	if l.seenIn > 0 {
		a.again++
	}
	if !info.Redelivered {
		l.plain++
		if l.plain > 1 || l.seenIn != 0 && l.seenIn < a.life || info.Tries > 1 {
			a.t.Errorf("%s comes again and is not marked: try %d in life %d, seen in %d", l.name, info.Tries, a.life, l.seenIn)
		}
	}
	l.seenIn = a.life
	a.inTurn(l)
	return l, nil
}

// inTurn looks whether a message comes while another of its key is still before it.
func (a *account) inTurn(l *letter) {
	if l.opts.Key == "" {
		return
	}
	over := func(o *letter) bool { return o.sure[wire.VerbAck] || o.sure[wire.VerbReject] }
	a.keys[l.opts.Key] = slices.DeleteFunc(a.keys[l.opts.Key], over)
	for _, o := range a.keys[l.opts.Key] {
		if o.seq > 0 && o.seq < l.seq && !o.said[wire.VerbAck] && !o.said[wire.VerbReject] {
			a.t.Errorf("%s, message %d, comes before its turn: %s, message %d, has the same key", l.name, l.seq, o.name, o.seq)
		}
	}
}

// check compares what the queue has with what it has to have, while nobody uses it. Some
// of it may be purged then, so that it never becomes full of what nobody takes.
func (a *account) check(purge ...string) {
	a.t.Helper()
	h, err := a.join("unix", rand.New(rand.NewPCG(0, 0)))
	if err != nil {
		a.t.Fatal(err)
	}
	defer h.conn.Close()
	there := make(map[*letter]bool)
	purged := make(map[string][]*letter)
	for _, state := range []string{"", wire.StateDead} {
		if err := h.peek(state, func(m *wire.Message, info *wire.MessageInfo) {
			l := a.found(m)
			if there[l] {
				a.t.Errorf("%s is there twice", l.name)
			}
			there[l] = true
			purged[state] = append(purged[state], l)
			if info.State == wire.StateDead && !l.said[wire.VerbReject] {
				a.t.Errorf("%s is dead: %s", l.name, info.Reason)
			}
			if l.later && l.sure[wire.VerbNack] && info.State != wire.StateDelayed {
				a.t.Errorf("%s was to wait an hour, and is %s", l.name, info.State)
			}
		}); err != nil {
			a.t.Fatal(err)
		}
	}
	last := make(map[int]*letter)
	for _, l := range a.order {
		if l.fate == letterKept && !l.said[wire.VerbAck] && !there[l] {
			a.t.Errorf("%s is lost: seq %d, seen in life %d", l.name, l.seq, l.seenIn)
		}
		if l.hand == 0 || l.seq == 0 {
			continue
		}
		if before := last[l.hand]; before != nil && before.seq > l.seq {
			a.t.Errorf("%s is message %d, and %s, pushed before it, %d", l.name, l.seq, before.name, before.seq)
		}
		last[l.hand] = l
	}
	for _, state := range purge {
		q, err := h.ask(&wire.Queue{Op: wire.OpPurge, Queue: a.queue, State: state}, nil)
		if err != nil || q.Count != int64(len(purged[state])) {
			a.t.Errorf("purge of %d that are %q: %+v, %v", len(purged[state]), state, q, err)
		}
		for _, l := range purged[state] {
			l.said[wire.VerbAck], l.sure[wire.VerbAck] = true, true // it must not come back either
		}
	}
}

// hand is a connection that pushes and consumes.
type hand struct {
	*account
	number int
	conn   *net.UnixConn
	r      *wire.Reader
	rng    *rand.Rand
	out    []byte

	pushes   []*letter // without an answer
	answered uint64
	settles  []spoken // without an answer
	settled  uint64
	lost     map[uint64]bool // settles that came too late
	held     []*letter       // deliveries that are not settled
}

// spoken is a SETTLE that was sent.
type spoken struct {
	*letter
	verb  wire.Verb
	later bool
}

var errHandWaits = errors.New("nothing came for a minute")

// join connects.
func (a *account) join(network string, rng *rand.Rand) (*hand, error) {
	for _, address := range wire.DirAddresses(a.dir) {
		if address.Network != network {
			continue
		}
		conn, err := net.DialUnix(network, nil, &net.UnixAddr{Net: network, Name: address.Path})
		if err != nil {
			return nil, err
		}
		a.mu.Lock()
		a.hands++
		h := &hand{account: a, number: a.hands, conn: conn, r: wire.NewReader(conn, true), rng: rng, lost: make(map[uint64]bool)}
		a.mu.Unlock()
		h.out = wire.AppendCold(nil, wire.TypeHello, &wire.Hello{Version: wire.Version, Features: []string{wire.FeatureQueues}})
		var w wire.Welcome
		payload, err := h.say()
		if err == nil {
			err = wire.DecodeCold(payload, &w)
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
		h.r.SetLimits(wire.FrameLimit(w.MaxMessage), w.MaxPacket)
		return h, nil
	}
	panic("no network " + network)
}

// say sends what is in out and returns the next frame.
func (h *hand) say() ([]byte, error) {
	if err := h.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if err := wire.WriteFrames(h.conn, h.out, wire.DefaultMaxPacket); err != nil {
		return nil, err
	}
	h.out = h.out[:0]
	payload, err := h.r.Next()
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		h.t.Error(errHandWaits)
	}
	return payload, err
}

// ask sends a QUEUE frame and returns the answer.
func (h *hand) ask(f *wire.Queue, message func(m *wire.Message, info *wire.MessageInfo)) (q wire.Queued, err error) {
	f.Token = 7
	h.out = wire.AppendCold(h.out, wire.TypeQueue, f)
	for {
		payload, err := h.say()
		if err != nil {
			return q, err
		}
		switch t, _ := wire.PeekType(payload); t {
		case wire.TypeQueued:
			return q, wire.DecodeCold(payload, &q)
		case wire.TypeTarget:
		case wire.TypeMessage:
			var m wire.Message
			var info wire.MessageInfo
			if err := errors.Join(m.Decode(payload), wire.DecodeOptions(m.Info, &info)); err != nil {
				return q, err
			}
			message(&m, &info)
		default:
			return q, fmt.Errorf("%s is answered by %v: %.300q", f.Op, t, payload)
		}
	}
}

// peek looks at all messages in a state.
func (h *hand) peek(state string, message func(m *wire.Message, info *wire.MessageInfo)) error {
	for from := uint64(0); ; {
		q, err := h.ask(&wire.Queue{Op: wire.OpPeek, Queue: h.queue, Sub: 9, State: state, From: from, Limit: wire.MaxPeek}, message)
		if from = q.Next; err != nil || from == 0 {
			return err
		}
	}
}
