package bench

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// subscriber is a process's connections that receive. One is read in a blocking
// call; of several, those that epoll_wait(2) names.
type subscriber struct {
	job    *job
	conns  []*listener
	open   int          // not complete yet
	seen   atomic.Int64 // messages so far, for whoever waits for the end
	result result
}

// listener is one connection and the account of what came in on it.
type listener struct {
	*endpoint
	*tally
	lastSeq uint64
	done    bool
}

// subscribe is the role "subscriber".
func subscribe(j *job, c *control) (*result, error) {
	if j.Endpoints == clientEndpoints {
		return subscribeClients(j, c)
	}
	s := &subscriber{job: j}
	defer s.close()
	for range j.Conns {
		if err := s.connect(); err != nil {
			return nil, err
		}
	}
	if err := c.ready(); err != nil {
		return nil, err
	}
	go s.finishOn(c.finish)
	if err := s.run(); err != nil {
		return nil, err
	}
	for _, l := range s.conns {
		s.result.Received += l.received
		if j.Policy == wire.Block && l.missing > 0 {
			return nil, fmt.Errorf("%d messages are missing in between, under a policy that drops none", l.missing)
		}
	}
	return &s.result, nil
}

func (s *subscriber) connect() error {
	connect := dialBroker
	if s.job.Relay {
		connect = dialRelay
	}
	e, err := connect(s.job.Network, s.job.Path, s.job.Size)
	if err != nil {
		return err
	}
	if len(s.conns) > 0 {
		e.share(s.conns[0].buf)
	}
	s.conns = append(s.conns, &listener{endpoint: e, tally: newTally(s.job.Publishers)})
	s.open++
	if s.job.Relay {
		return nil
	}
	return e.subscribe(s.job.Filter, s.job.Policy)
}

func (s *subscriber) close() {
	for _, l := range s.conns {
		l.close()
	}
}

// finishOn waits for finish to close, which says that nothing more will be sent,
// gives what is under way the time to arrive, and then ends the reading.
func (s *subscriber) finishOn(finish <-chan struct{}) {
	<-finish
	const patience = 300 * time.Millisecond
	pause := patience
	if s.job.Policy == wire.Block {
		pause = 10 * time.Second // all of it must come, however slow the machine
	}
	for before := int64(-1); before != s.seen.Load(); {
		before = s.seen.Load()
		time.Sleep(pause)
	}
	for _, l := range s.conns {
		l.cut()
	}
}

// run reads until every connection has all it should have or has come to its end.
func (s *subscriber) run() error {
	if len(s.conns) > 1 {
		return s.runMany()
	}
	l := s.conns[0]
	for !l.done {
		if err := s.read(l); err != nil {
			return err
		}
	}
	return nil
}

// runMany is run for several connections.
func (s *subscriber) runMany() error {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	defer unix.Close(poll)
	for i, l := range s.conns {
		l.suspend()
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
		if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, l.fd, &event); err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	events := make([]unix.EpollEvent, 64)
	for s.open > 0 {
		n, err := unix.EpollWait(poll, events, -1)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("epoll_wait", err)
		}
		for _, event := range events[:max(n, 0)] {
			l := s.conns[event.Fd]
			l.resume()
			if err := s.read(l); err != nil {
				return err
			}
			l.suspend()
			if l.done {
				if err := unix.EpollCtl(poll, unix.EPOLL_CTL_DEL, l.fd, nil); err != nil {
					return os.NewSyscallError("epoll_ctl", err)
				}
			}
		}
	}
	return nil
}

// read reads once and takes every frame that came.
func (s *subscriber) read(l *listener) error {
	err := l.fill(0)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return s.ended(l)
	}
	if err != nil {
		return err
	}
	at := now()
	before := l.received
	if err := s.takeAll(l, at); err != nil {
		return err
	}
	if got := l.received - before; got > 0 {
		s.seen.Add(int64(got))
		s.result.End = at
	}
	if l.complete() && !l.done {
		l.done = true
		s.open--
	}
	return nil
}

// takeAll takes every frame that is there; they came at the time at.
func (s *subscriber) takeAll(l *listener, at int64) error {
	for {
		payload, err := l.buffered()
		if payload == nil || err != nil {
			return err
		}
		if err := s.take(l, payload, at); err != nil {
			return err
		}
	}
}

// ended handles the end of a connection: ours, or too early.
func (s *subscriber) ended(l *listener) error {
	if s.job.Policy == wire.Block {
		return fmt.Errorf("only %d messages came, under a policy that drops none", l.received)
	}
	l.done = true
	s.open--
	return nil
}

// take handles one frame that came at the time at.
func (s *subscriber) take(l *listener, payload []byte, at int64) error {
	t, err := wire.PeekType(payload)
	if err != nil {
		return err
	}
	switch t {
	case wire.TypeMessage:
	case wire.TypeTarget:
		return nil
	case wire.TypeGap:
		var gap wire.Gap
		if err := gap.Decode(payload); err != nil {
			return err
		}
		s.result.Told += gap.Count
		return nil
	default:
		return unexpected(t, payload)
	}
	var m wire.Message
	if err := m.Decode(payload); err != nil {
		return err
	}
	return s.account(l, &m, at)
}

// account checks one message.
func (s *subscriber) account(l *listener, m *wire.Message, at int64) error {
	if !s.job.Relay {
		if m.Seq <= l.lastSeq {
			return fmt.Errorf("seq %d came after seq %d", m.Seq, l.lastSeq)
		}
		l.lastSeq = m.Seq
	}
	t, sent, err := readBody(m.Body)
	if err != nil {
		return err
	}
	if s.job.Latency {
		s.result.Latency.add(at - sent)
	}
	return l.tally.take(t)
}
