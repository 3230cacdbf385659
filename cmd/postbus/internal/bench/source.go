package bench

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// stepTime is how long a source waits for messages at most before it looks whether the
// others have taken the last one.
const stepTime = 20 * time.Millisecond

// delivered is a message that a source has and has not acknowledged.
type delivered struct {
	seq uint64
	tag tag
}

// rawSource is a consumer of bare frames.
type rawSource struct {
	*endpoint
	consumer *consumer
	waiting  []delivered // in the order they came
	settles  []int       // messages in each SETTLE that is not confirmed yet
	settled  uint64      // SETTLE frames confirmed
	open     bool        // CONSUME was sent
	closed   bool        // UNSUBSCRIBED came
	out      []byte
}

func openRawSource(j *job, k *consumer) (source, error) {
	e, err := dialBroker(j.Network, j.Path, j.Size)
	if err != nil {
		return nil, err
	}
	if err := e.waitAtMost(stepTime); err != nil {
		e.close()
		return nil, err
	}
	return &rawSource{endpoint: e, consumer: k}, nil
}

// waitAtMost bounds the reads from now on: after d they return EAGAIN.
func (e *endpoint) waitAtMost(d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
}

func (s *rawSource) begin() error {
	if s.open {
		return nil
	}
	s.open = true
	j := s.consumer.job
	return s.write(wire.AppendCold(nil, wire.TypeConsume, &wire.Consume{Sub: 1, Queue: j.Queue, Prefetch: j.Prefetch}))
}

// end gives back what was delivered and not taken; where that would be as much as is in
// flight, in each round anew, it stays until the next round instead.
func (s *rawSource) end() error {
	if s.consumer.job.Keep {
		for len(s.waiting) < s.consumer.job.Prefetch {
			if err := s.read(); err != nil {
				return err
			}
		}
		return nil
	}
	s.open, s.closed = false, false
	if err := s.write(wire.AppendCold(nil, wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 1})); err != nil {
		return err
	}
	for !s.closed {
		if err := s.read(); err != nil {
			return err
		}
	}
	s.waiting = s.waiting[:0]
	return nil
}

func (s *rawSource) step() error {
	if err := s.ack(); err != nil { // what is here from the round before
		return err
	}
	if err := s.read(); err != nil {
		return err
	}
	return s.ack()
}

// read reads once and takes every frame that came.
func (s *rawSource) read() error {
	err := s.fill(0)
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	if err != nil {
		return err
	}
	for {
		payload, err := s.buffered()
		if payload == nil || err != nil {
			return err
		}
		if err := s.take(payload); err != nil {
			return err
		}
	}
}

func (s *rawSource) take(payload []byte) error {
	t, err := wire.PeekType(payload)
	if err != nil {
		return err
	}
	switch t {
	case wire.TypeMessage:
		var m wire.Message
		if err := m.Decode(payload); err != nil {
			return err
		}
		tag, _, err := readBody(m.Body)
		s.waiting = append(s.waiting, delivered{m.Seq, tag})
		return err
	case wire.TypeSettled:
		upTo, err := wire.DecodeSettled(payload)
		if err != nil {
			return err
		}
		s.confirm(int(upTo - s.settled))
		s.settled = upTo
	case wire.TypeTarget, wire.TypeSubscribed, wire.TypePong:
	case wire.TypeUnsubscribed:
		s.closed = true
	default:
		return unexpected(t, payload)
	}
	return nil
}

// confirm counts the messages of the oldest n SETTLE frames.
func (s *rawSource) confirm(n int) {
	messages := 0
	for _, m := range s.settles[:n] {
		messages += m
	}
	s.settles = s.settles[:copy(s.settles, s.settles[n:])]
	s.consumer.confirm(messages)
}

// ack settles what may be taken of what came. A SETTLE has as many messages as the job
// says, if their numbers follow one another.
func (s *rawSource) ack() error {
	n := s.consumer.claim(len(s.waiting))
	if n == 0 {
		return nil
	}
	s.out = s.out[:0]
	for i := 0; i < n; {
		k := i
		for ; k < n && k < i+s.consumer.job.AckBatch && s.waiting[k].seq == s.waiting[i].seq+uint64(k-i); k++ {
			if err := s.consumer.account(s.waiting[k].tag); err != nil {
				return err
			}
		}
		s.out = wire.AppendSettle(s.out, &wire.Settle{Sub: 1, Verb: wire.VerbAck, First: s.waiting[i].seq, Last: s.waiting[k-1].seq})
		s.settles = append(s.settles, k-i)
		i = k
	}
	s.waiting = s.waiting[:copy(s.waiting, s.waiting[n:])]
	if s.consumer.counters.claimedAll() {
		s.out = wire.AppendPing(s.out, 0) // have the last SETTLED at once
	}
	return s.write(s.out)
}
