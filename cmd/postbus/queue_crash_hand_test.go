package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/postbus/postbus/wire"
)

// declare makes the queue.
func (a *account) declare(settings *wire.QueueSettings) error {
	h, err := a.join("unixpacket", nil)
	if err != nil {
		return err
	}
	defer h.conn.Close()
	_, err = h.ask(&wire.Queue{Op: wire.OpDeclare, Queue: a.queue, Settings: settings}, nil)
	return err
}

// use pushes and consumes on a connection of its own until that ends, or so many turns
// have passed. What it returns is an error of the protocol, not the connection's end.
func (a *account) use(rng *rand.Rand, turns int) error {
	h, err := a.join([]string{"unix", "unixpacket"}[rng.IntN(2)], rng)
	if err != nil {
		return nil // the broker is dead already
	}
	defer h.conn.Close()
	h.out = wire.AppendCold(h.out, wire.TypeConsume, &wire.Consume{Sub: 1, Queue: a.queue, Prefetch: 1 + rng.IntN(20)})
	if rng.IntN(2) == 0 {
		for _, l := range a.open() {
			h.push(l)
		}
	}
	for range turns {
		for range rng.IntN(4) {
			h.push(a.write(rng, h.number))
		}
		for i := len(h.held) - 1; i >= 0; i-- {
			if rng.IntN(2) == 0 {
				h.settle(h.held[i])
				h.held = append(h.held[:i], h.held[i+1:]...)
			}
		}
		if err := h.turn(); err != nil {
			var wrong *wrongFrame
			if errors.As(err, &wrong) {
				return err
			}
			return nil
		}
	}
	return nil
}

// wrongFrame is what no broker may send.
type wrongFrame struct{ text string }

func (w *wrongFrame) Error() string { return w.text }

func wrong(format string, args ...any) error { return &wrongFrame{fmt.Sprintf(format, args...)} }

// turn sends what is to be sent, and reads what there is: at least one frame, if one has
// to come.
func (h *hand) turn() error {
	for first := true; ; first = false {
		waits := len(h.pushes)+len(h.settles) > 0
		if !(first && waits) && !h.r.Buffered() && len(h.pushes)+len(h.settles) < 100 {
			return nil
		}
		payload, err := h.say()
		if err == nil {
			err = h.heard(payload)
		}
		if err != nil {
			return err
		}
	}
}

func (h *hand) push(l *letter) {
	p := wire.Publish{Topic: []byte(wire.QueueTopic + h.queue), Body: []byte(l.body())}
	if l.opts != (wire.PublishOptions{}) {
		p.Options = wire.AppendOptions(nil, &l.opts)
	}
	h.out = wire.AppendPublish(h.out, &p)
	h.pushes = append(h.pushes, l)
}

// settle says what becomes of a delivery; mostly it is acked.
func (h *hand) settle(l *letter) {
	s := spoken{letter: l, verb: wire.VerbAck}
	f := wire.Settle{Sub: 1, First: l.seq, Last: l.seq}
	switch n := h.rng.IntN(40); {
	case n < 8:
		s.verb = wire.VerbNack
	case n < 10:
		s.verb, f.Arg = wire.VerbNack, 1+h.rng.Int64N(10)
	case n < 11:
		s.verb, s.later, f.Arg = wire.VerbNack, true, time.Hour.Milliseconds()
	case n < 12:
		s.verb, f.Reason = wire.VerbReject, []byte("because")
	case n < 14:
		f.Verb, f.Arg = wire.VerbExtend, time.Minute.Milliseconds()
		h.out = wire.AppendSettle(h.out, &f)
		h.settles = append(h.settles, spoken{letter: l, verb: wire.VerbExtend})
		f.Arg = 0
	}
	f.Verb = s.verb
	h.out = wire.AppendSettle(h.out, &f)
	h.settles = append(h.settles, s)
	h.mu.Lock()
	defer h.mu.Unlock()
	l.said[s.verb] = true
	l.later = l.later || s.later
}

// heard takes a frame.
func (h *hand) heard(payload []byte) error {
	switch t, _ := wire.PeekType(payload); t {
	case wire.TypeAck:
		var a wire.Ack
		if err := a.Decode(payload); err != nil || a.Queues != 1 {
			return wrong("ACK %+v, %v", a, err)
		}
		return h.verdict(a.UpTo, letterKept)
	case wire.TypeError:
		var e wire.ErrorBody
		switch err := wire.DecodeCold(payload, &e); {
		case err != nil:
			return wrong("ERROR: %v", err)
		case e.Publish > 0 && e.Code == wire.CodeFull:
			return h.verdict(e.Publish, letterRefused)
		case e.Settle > 0 && e.Code == wire.CodeLeaseLost:
			h.lost[e.Settle] = true
			return nil
		}
		return wrong("ERROR %+v", e)
	case wire.TypeSettled:
		upto, err := wire.DecodeSettled(payload)
		if err != nil || upto-h.settled > uint64(len(h.settles)) {
			return wrong("SETTLED %d behind %d, %d are open: %v", upto, h.settled, len(h.settles), err)
		}
		h.confirm(upto)
	case wire.TypeMessage:
		var m wire.Message
		if err := m.Decode(payload); err != nil {
			return wrong("MESSAGE: %v", err)
		}
		l, err := h.delivered(&m)
		if err != nil {
			return wrong("MESSAGE: %v", err)
		}
		h.held = append(h.held, l)
	case wire.TypeTarget, wire.TypeSubscribed:
	default:
		return wrong("got %v: %.200q", t, payload)
	}
	return nil
}

// verdict takes the answer on pushes up to a number; a refusal is of the last only.
func (h *hand) verdict(upto uint64, fate letterFate) error {
	n := int(upto - h.answered)
	if n < 1 || n > len(h.pushes) || fate == letterRefused && n != 1 {
		return wrong("a verdict on push %d behind %d, %d are open", upto, h.answered, len(h.pushes))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.pushes[:n] {
		switch {
		case fate == letterKept:
			l.fate = letterKept
			h.kept++
		case l.opts.ID == "": // one with an id may have been kept when it was pushed before
			l.fate = letterRefused
		}
	}
	h.pushes, h.answered = h.pushes[n:], upto
	return nil
}

// confirm takes note of settles that were carried out, but for those that came too late.
func (h *hand) confirm(upto uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ; h.settled < upto; h.settles = h.settles[1:] {
		h.settled++
		s := h.settles[0]
		if h.lost[h.settled] {
			h.t.Errorf("%s was not leased to who had got it: %v", s.name, s.verb)
			continue
		}
		if s.verb == wire.VerbAck {
			h.acked++
		}
		if s.verb != wire.VerbNack || s.later {
			s.sure[s.verb] = true
		}
	}
}
