package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/postbus/postbus/client"
)

// settling is messages at hand and what standard input says of them.
type settling struct {
	*puller
	*arrivals
	held    map[uint64]*client.Delivery // printed and not settled, by number
	printed int
	lines   int // of standard input, read
}

// ask prints messages and does with each what standard input says.
func (p *puller) ask(ctx context.Context) error {
	a, err := p.open(ctx, max(p.prefetch, 1), false)
	if err != nil {
		return err
	}
	s := &settling{puller: p, arrivals: a, held: make(map[uint64]*client.Delivery)}
	return a.end(s.askAll(ctx, readLines(os.Stdin)))
}

// lines is what standard input says, read by a goroutine of its own, which stays in
// read(2) when the process ends.
type lines struct {
	next  chan string
	ended chan error // io.EOF, or why there are no more
}

func readLines(in io.Reader) *lines {
	l := &lines{make(chan string), make(chan error, 1)}
	go func() {
		for r := bufio.NewReader(in); ; {
			text, err := r.ReadString('\n')
			if text != "" {
				l.next <- text
			}
			if err != nil {
				l.ended <- err
				return
			}
		}
	}()
	return l
}

// askAll goes on until so many messages are settled as were asked for. While none is at
// hand no line is read: so they may all be there from the beginning.
func (s *settling) askAll(ctx context.Context, in *lines) error {
	over, stop := s.patience()
	defer func() { stop() }()
	for !s.enough() {
		ready, next := s.ready, in.next
		if s.count > 0 && s.printed == s.count {
			ready = nil
		}
		if len(s.held) == 0 {
			next = nil
		}
		var err error
		select {
		case came := <-ready:
			err = s.come(ctx, came)
		case text := <-next:
			err = s.obeyAll(ctx, text, in)
		case err = <-in.ended:
			if err == io.EOF {
				err = errInputEnded
			} else {
				err = fmt.Errorf("read standard input: %w", err)
			}
		case <-over:
			s.arrivals.stop(errNothingCame)
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		stop()
		over, stop = nil, func() {}
		if len(s.held) == 0 { // else it is we who are waited for
			over, stop = s.patience()
		}
	}
	return nil
}

// come prints what came.
func (s *settling) come(ctx context.Context, came arrival) error {
	var lost *client.LeasesLost
	if errors.As(came.err, &lost) {
		for _, seq := range lost.Unsettled {
			delete(s.held, seq)
		}
	}
	d, err := s.judge(ctx, came)
	if d == nil {
		return err
	}
	s.out.buf = s.append(s.out.buf, d)
	if err := s.out.flush(); err != nil {
		return &notWritten{err: err, n: len(s.held) + 1, queue: s.queue}
	}
	s.held[d.Seq] = d
	s.printed++
	if s.printed == s.count {
		s.arrivals.stop(nil)
	}
	return nil
}

// obeyAll does what a line says, and those that are there already; then it hears from
// the broker what came of it.
func (s *settling) obeyAll(ctx context.Context, text string, in *lines) error {
	for more := true; more; {
		s.obey(text)
		more = false
		if len(s.held) > 0 {
			select {
			case text = <-in.next:
				more = true
			default:
			}
		}
	}
	err := s.consumer.Flush(ctx)
	var lost *client.LeaseError
	if err == nil || !errors.As(err, &lost) {
		return endedBy(ctx, err)
	}
	for _, seq := range lost.Seqs {
		s.say("message %d: its lease had run out: it may have been delivered again", seq)
	}
	s.failed += lost.Count
	return nil
}

// obey does what a line says.
func (s *settling) obey(text string) {
	s.lines++
	o, err := parseOrder(text)
	if err == nil && o.verb != "" {
		err = s.carryOut(o)
	}
	if err != nil {
		s.failed++
		s.say("line %d: %s", s.lines, sentence(err))
	}
}

// carryOut settles a message, or extends its lease.
func (s *settling) carryOut(o order) error {
	d := s.held[o.seq]
	if d == nil {
		return fmt.Errorf("message %d is not at hand: it was not printed, is settled, or its lease is lost", o.seq)
	}
	var err error
	switch o.verb {
	case orderExtend:
		return d.Extend(o.time)
	case orderAck:
		err = d.Ack()
	case orderNack:
		err = d.Nack(o.time)
	case orderReject:
		err = d.Reject(o.reason)
	}
	delete(s.held, o.seq)
	s.seen++
	return err
}

// order is what a line of standard input says.
type order struct {
	verb   string // "" for an empty line
	seq    uint64
	time   time.Duration
	reason string
}

// The verbs of an order.
const (
	orderAck    = "ack"
	orderNack   = "nack"
	orderReject = "reject"
	orderExtend = "extend"
)

var errOrder = errors.New("use ack SEQ, nack SEQ [TIME], reject SEQ [REASON] or extend SEQ [TIME]")

// parseOrder reads a line of standard input.
func parseOrder(text string) (o order, err error) {
	text = strings.TrimSpace(text)
	verb, rest, _ := strings.Cut(text, " ")
	if verb == "" {
		return o, nil
	}
	number, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
	rest = strings.TrimSpace(rest)
	seq, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return o, fmt.Errorf("%q: %w", text, errOrder)
	}
	o = order{verb: verb, seq: seq}
	switch {
	case verb == orderReject:
		o.reason = rest
	case verb == orderAck && rest == "":
	case verb == orderNack || verb == orderExtend:
		if rest == "" {
			break
		}
		if o.time, err = time.ParseDuration(rest); err != nil || o.time < 0 {
			return o, fmt.Errorf("%q: %q is no time such as 10s or 1m30s", text, rest)
		}
	default:
		return o, fmt.Errorf("%q: %w", text, errOrder)
	}
	return o, nil
}
