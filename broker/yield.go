package broker

import (
	"slices"
	"time"
)

// A publisher that is ahead of a subscription with policy block would fill its
// buffer up to the bound, and every message would be copied in between. So as soon
// as the subscriber's socket is full, those that feed it are not read for a moment:
// until the socket has room again, or yieldTime is over. That is short enough not
// to be noticed by a client that does something else on the same connection; a
// subscriber that stays slow is then a matter of buffer and window.

// yieldTime is how long a publisher is left unread for a full subscriber.
const yieldTime = 5 * time.Millisecond

// yielder is a publisher that yields to a peer, if its turn to yield is still the
// one that it was.
type yielder struct {
	peer *peer
	turn uint64
}

// feed notes that p has published to a subscription with policy block.
func (l *loop) feed(p *peer) {
	if !p.feeding {
		p.feeding = true
		l.feeders = append(l.feeders, p)
	}
}

// yieldTo makes those that have fed block subscriptions this turn yield to q,
// whose socket is full.
func (l *loop) yieldTo(q *peer) {
	for _, f := range l.feeders {
		if f == q || f.closed {
			continue
		}
		if f.yields == 0 {
			f.yieldUntil = l.now.Add(yieldTime)
			l.yielding = append(l.yielding, f)
		}
		f.yields++
		q.yielders = slices.DeleteFunc(q.yielders, func(y yielder) bool { return y.turn != y.peer.yieldTurn })
		q.yielders = append(q.yielders, yielder{f, f.yieldTurn})
		l.watch(f)
	}
}

// goOn lets those go on that yielded to q only.
func (l *loop) goOn(q *peer) {
	for _, y := range q.yielders {
		if y.turn != y.peer.yieldTurn {
			continue
		}
		y.peer.yields--
		if y.peer.yields == 0 {
			l.watch(y.peer)
		}
	}
	q.yielders = q.yielders[:0]
}

// yieldsOver lets those go on whose time is over.
func (l *loop) yieldsOver() {
	n := 0
	for ; n < len(l.yielding); n++ {
		f := l.yielding[n]
		if f.yields > 0 && !f.closed && l.now.Before(f.yieldUntil) {
			break
		}
		if f.yields > 0 {
			f.yields = 0
			f.yieldTurn++
			l.watch(f)
		}
	}
	l.yielding = append(l.yielding[:0], l.yielding[n:]...)
}
