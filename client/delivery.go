package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postbus/postbus/wire"
)

// Delivery is a message of a queue, leased to the consumer whose Next gave it: nobody
// else gets it until it is settled by Ack, Nack or Reject, or the lease runs out.
//
// It belongs to the receiver, as a Message does. Its methods may be called by several
// goroutines; one of them settles it. They do not wait: what they ask for is sent as
// soon as possible, many at a time, and Consumer.Flush waits until the broker has
// confirmed it. Their errors are ErrSettled, ErrLeaseLost when the lease is known to be
// lost, and with it why if the consumer or the client has ended.
type Delivery struct {
	// Message has the push's Time and From. Its Seq is the number in this queue, and
	// Redelivered says that it may have been delivered before.
	Message

	Tries    int    // how often it was delivered, this time included; 0 for one that Peek gave and nobody had
	Key      string // as it was pushed with
	ID       string // as it was pushed with
	Priority int    // 0 to 9

	Origin string // of a dead letter that was moved: the queue it was in
	Reason string // of a dead letter: why it is one

	State string    // of a message that Peek gave: ready, delayed, leased or dead
	Due   time.Time // of a message that Peek gave: when its delay or lease ends, if it has one

	consumer *Consumer // nil for one that Peek gave
	round    uint32    // Consumer.round when it came
	holding  holding
}

// holding is whose a delivery is. Consumer.mu guards it.
//
//	waiting --> held --> settled
//	   |          |
//	   +----------+----> lost
//
// That it is held is its place in Consumer.held, from 1; the others are below.
type holding int32

const (
	waiting holding = -iota // in this process, for Next
	settled                 // the program has settled it
	lost                    // the lease ran out, or ended with the connection or the consumer
)

// fill sets what is in w, which stands for that many tries if it does not say. d must
// be zero.
func (d *Delivery) fill(in *inbox, w *wire.Message, frame, tries int) error {
	in.fill(&d.Message, w, frame)
	d.Tries = tries
	if w.Info == nil {
		return nil
	}
	info, err := in.decode(w.Info)
	if err != nil {
		return err
	}
	d.Redelivered = info.Redelivered
	d.Tries = max(info.Tries, tries)
	d.Key, d.ID, d.Priority = info.Key, info.ID, info.Priority
	d.Origin, d.Reason, d.State = info.Origin, info.Reason, info.State
	if info.DueMS != 0 {
		d.Due = time.UnixMilli(info.DueMS)
	}
	return nil
}

// Ack says that the message is done with: it is removed for good.
func (d *Delivery) Ack() error { return d.settle(note{verb: wire.VerbAck}) }

// AckWait is Ack, and waits until the queue has kept it. With the error ErrLeaseLost
// the message may be delivered again, or was already. When ctx ends first it may or may
// not have been acked; what the broker says then is told by Consumer.Flush.
func (d *Delivery) AckWait(ctx context.Context) error {
	if ctx.Err() != nil {
		return interrupted(ctx, "ack seq %d", d.Seq)
	}
	answer := newReply[struct{}]()
	if err := d.settle(note{verb: wire.VerbAck, answer: answer}); err != nil {
		return err
	}
	_, err := answer.wait(ctx, "ack seq %d of queue %q", d.Seq, d.consumer.request.Queue)
	if err != nil && ctx.Err() != nil {
		d.consumer.abandon(answer)
	}
	return err
}

// Nack says that the message is not done with: it is delivered again, to this consumer
// or another, after a delay if that is above 0; 30 days is the most.
func (d *Delivery) Nack(delay time.Duration) error {
	return d.settle(note{verb: wire.VerbNack, arg: settleArg(delay)})
}

// Reject says that the message will never do: it becomes a dead letter, with the
// reason, of which the first 256 bytes are kept.
func (d *Delivery) Reject(reason string) error {
	reason = strings.ToValidUTF8(reason, "\uFFFD")
	if n := wire.MaxReason; len(reason) > n {
		for !utf8.RuneStart(reason[n]) {
			n--
		}
		reason = reason[:n]
	}
	return d.settle(note{verb: wire.VerbReject, reason: reason})
}

// Extend has the lease end that long from now, 30 days at most, or with 0 as long from
// now as it was at first. If it is lost already, later calls say so as soon as the
// broker has.
func (d *Delivery) Extend(by time.Duration) error {
	return d.settle(note{verb: wire.VerbExtend, arg: settleArg(by)})
}

// maxSettleArg is the most that a SETTLE frame may ask for (docs/PROTOCOL.md).
const maxSettleArg = 30 * 24 * time.Hour

// settleArg is d on the wire.
func settleArg(d time.Duration) int64 { return millis(min(max(d, 0), maxSettleArg)) }

// settle notes n for this delivery's seq, and takes it from the program's hands unless
// that is to extend its lease.
func (d *Delivery) settle(n note) error {
	s := d.consumer
	if s == nil {
		return fmt.Errorf("%w: seq %d was only peeked at: consume it", ErrLeaseLost, d.Seq)
	}
	n.first, n.last = d.Seq, d.Seq
	s.mu.Lock()
	if d.holding <= waiting {
		defer s.mu.Unlock()
		return s.notHeld(d)
	}
	if n.verb != wire.VerbExtend {
		s.held.remove(d, settled)
	}
	news := s.note(n)
	s.mu.Unlock()
	if news {
		s.client.settleSoon(s)
	}
	return nil
}

// notHeld is the error for settling d; mu is held.
func (s *Consumer) notHeld(d *Delivery) error {
	switch {
	case d.holding == settled:
		return fmt.Errorf("%w: seq %d of queue %q", ErrSettled, d.Seq, s.request.Queue)
	case s.why != nil:
		return fmt.Errorf("%w: seq %d of queue %q: %w", ErrLeaseLost, d.Seq, s.request.Queue, s.why)
	}
	return fmt.Errorf("%w: seq %d of queue %q: it ran out, or the connection was lost meanwhile", ErrLeaseLost, d.Seq, s.request.Queue)
}

// deliveries are those that are held, in no order. The zero deliveries is ready.
type deliveries []*Delivery

func (l *deliveries) add(d *Delivery) {
	*l = append(*l, d)
	d.holding = holding(len(*l))
}

// remove ends that d is held; now is what it is from now on.
func (l *deliveries) remove(d *Delivery, now holding) {
	last := len(*l) - 1
	moved := (*l)[last]
	(*l)[last] = nil
	*l = (*l)[:last]
	if moved != d {
		(*l)[d.holding-1] = moved
		moved.holding = d.holding
	}
	d.holding = now
}

// lose removes all, and returns their seqs in order.
func (l *deliveries) lose() (seqs []uint64) {
	for len(*l) > 0 {
		d := (*l)[len(*l)-1]
		seqs = append(seqs, d.Seq)
		l.remove(d, lost)
	}
	slices.Sort(seqs)
	return seqs
}
