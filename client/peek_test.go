package client_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// page answers a peek with messages of those numbers.
func (s *script) page(q wire.Queue, next uint64, seqs ...uint64) {
	if len(seqs) > 0 {
		s.send(deliveries(q.Sub, false, seqs...))
	}
	s.answer(q, wire.Queued{Count: int64(len(seqs)), Next: next})
}

func TestPeek(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		var got []uint64
		err := called(func() {
			first := s.request(wire.OpPeek)
			if first.State != "dead" || first.From != 5 || first.Limit != 100 || first.Sub == 0 || first.Queue != "jobs" {
				t.Errorf("got %+v", first)
			}
			s.page(first, 105, span(5, 104)...)
			second := s.request(wire.OpPeek)
			if second.From != 105 || second.Limit != 100 || second.State != "dead" {
				t.Errorf("got %+v", second)
			}
			s.page(second, 200) // nothing there, but further on
			third := s.request(wire.OpPeek)
			if third.From != 200 {
				t.Errorf("got %+v", third)
			}
			s.page(third, 0, 210, 220)
		}, func() error {
			for d, err := range c.Queue("jobs").Peek(testContext(t), &client.PeekOptions{State: "dead", From: 5}) {
				if err != nil {
					return err
				}
				if string(d.Body) != fmt.Sprint("job ", d.Seq) || d.Tries != 0 {
					t.Errorf("got %+v", d)
				}
				got = append(got, d.Seq)
			}
			return nil
		})
		if err != nil || !slices.Equal(got, append(span(5, 104), 210, 220)) {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

// What there is to know of a message, and that it cannot be settled.
func TestPeekInfo(t *testing.T) {
	c, s := scripted(t, nil)
	due := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	info := wire.MessageInfo{
		Redelivered: true, Tries: 3, Key: "k", ID: "i", Priority: 9, Origin: "other", Reason: "rejected: bad",
		State: "dead", DueMS: due.UnixMilli(),
	}
	err := called(func() {
		q := s.request(wire.OpPeek)
		m := wire.Message{
			Seq: 4, Time: 5, UID: 6, GID: 7, PID: 8, Topic: []byte("a/b"), Body: []byte("body"),
			Headers: wire.AppendHeaders(nil, map[string]string{"h": "v"}), Info: wire.AppendOptions(nil, &info),
		}
		s.send(wire.AppendMessage(wire.AppendTarget(nil, q.Sub), &m))
		s.answer(q, wire.Queued{Count: 1})
	}, func() error {
		for d, err := range c.Queue("jobs").Peek(testContext(t), nil) {
			if err != nil {
				return err
			}
			want := client.Delivery{
				Message: client.Message{Seq: 4, Time: time.Unix(0, 5), From: client.Peer{UID: 6, GID: 7, PID: 8}, Redelivered: true, Topic: "a/b", Body: []byte("body")},
				Tries:   3, Key: "k", ID: "i", Priority: 9, Origin: "other", Reason: "rejected: bad", State: "dead", Due: due,
			}
			if d.Headers()["h"] != "v" {
				t.Errorf("got headers %v", d.Headers())
			}
			if got := client.Plain(d); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			wantError(t, d.Ack(), client.ErrLeaseLost)
			wantError(t, d.AckWait(testContext(t)), client.ErrLeaseLost)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A limit is kept over pages, and leaving early asks no more.
func TestPeekLimit(t *testing.T) {
	c, s := scripted(t, nil)
	n := 0
	err := called(func() {
		q := s.request(wire.OpPeek)
		s.page(q, 101, span(1, 100)...)
		q = s.request(wire.OpPeek)
		if q.Limit != 20 {
			t.Errorf("got %+v", q)
		}
		s.page(q, 121, span(101, 120)...)
	}, func() error {
		for _, err := range c.Queue("jobs").Peek(testContext(t), &client.PeekOptions{Limit: 120}) {
			if err != nil {
				return err
			}
			n++
		}
		return nil
	})
	if err != nil || n != 120 {
		t.Errorf("got %d, %v", n, err)
	}
	err = called(func() { s.page(s.request(wire.OpPeek), 9, 1, 2, 3) }, func() error {
		for d, err := range c.Queue("jobs").Peek(testContext(t), nil) {
			if d.Seq == 2 {
				return err
			}
		}
		return errors.New("not left")
	})
	if err != nil {
		t.Error(err)
	}
	go s.pong()
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// A page that a lost connection has cut begins anew; what was given before stays given.
func TestPeekReconnect(t *testing.T) {
	eachSocket(t, func(t *testing.T, l *listener, c *client.Client, s *script) {
		var got []uint64
		err := called(func() {
			s.page(s.request(wire.OpPeek), 101, 1, 2)
			q := s.request(wire.OpPeek)
			s.send(deliveries(q.Sub, false, 101, 102))
			_ = s.conn.Close()
			s = l.accept()
			s.greet(nil)
			s.page(s.request(wire.OpPeek), 0, 102, 103)
		}, func() error {
			for d, err := range c.Queue("jobs").Peek(testContext(t), nil) {
				if err != nil {
					return err
				}
				got = append(got, d.Seq)
			}
			return nil
		})
		if err != nil || !slices.Equal(got, []uint64{1, 2, 102, 103}) {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

// A peek that is given up does not disturb what follows on the connection.
func TestPeekContext(t *testing.T) {
	c, s := scripted(t, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error)
	go func() {
		for _, err := range c.Queue("jobs").Peek(ctx, nil) {
			done <- err
		}
	}()
	q := s.request(wire.OpPeek)
	cancel()
	wantError(t, <-done, context.Canceled)
	go s.open(0)
	sub := subscribe(t, c, "a", nil)
	s.page(q, 0, 1, 2)
	s.message(2, 1, "a", "one")
	want(t, sub, "one")
}
