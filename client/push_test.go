package client_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// queueAck acknowledges pushes up to a number.
func (s *script) queueAck(upTo uint64, queues uint32, level client.Level) {
	s.send(wire.AppendAck(nil, wire.Ack{UpTo: upTo, Queues: queues, Level: level}))
}

func TestPush(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *listener, c *client.Client, s *script) {
		jobs := c.Queue("jobs")
		var receipt client.Receipt
		at := time.UnixMilli(1_900_000_000_123)
		err := called(func() {
			p, options, _ := s.publish()
			want := wire.PublishOptions{ID: "id", Key: "key", Priority: 9, AtMS: at.UnixMilli(), TTLMS: 60_000}
			headers, _ := wire.DecodeHeaders(p.Headers)
			if string(p.Topic) != "@queue/jobs" || string(p.Body) != "body" || options != want || headers["h"] != "v" {
				t.Errorf("got %+v with %+v", p, options)
			}
			s.pong()
			s.queueAck(1, 2, client.LevelKernel)
		}, func() (err error) {
			receipt, err = jobs.Push(testContext(t), []byte("body"), &client.PushOptions{
				Headers: map[string]string{"h": "v"}, ID: "id", Key: "key", Priority: 9, At: at, TTL: time.Minute,
			})
			return err
		})
		if err != nil || receipt != (client.Receipt{Queues: 2, Level: client.LevelKernel}) {
			t.Errorf("got %+v, %v", receipt, err)
		}
		// Without options there is no map, and what is nearly 0 is not 0.
		if err := jobs.PushAsync(testContext(t), nil, nil); err != nil {
			t.Error(err)
		}
		if p, _, _ := s.publish(); p.Options != nil || p.Headers != nil {
			t.Errorf("got %+v", p)
		}
		if err := jobs.PushAsync(testContext(t), nil, &client.PushOptions{Delay: 1, TTL: 1}); err != nil {
			t.Error(err)
		}
		if _, options, _ := s.publish(); options != (wire.PublishOptions{DelayMS: 1, TTLMS: 1}) {
			t.Errorf("got %+v", options)
		}
		if err := jobs.PushAsync(testContext(t), nil, &client.PushOptions{At: time.Unix(-5, 0)}); err != nil {
			t.Error(err)
		}
		if _, options, _ := s.publish(); options != (wire.PublishOptions{AtMS: 1}) {
			t.Errorf("got %+v", options)
		}
		s.queueAck(4, 1, client.LevelDisk)
		flush(t, c)
	})
}

// Why a queue does not take a message, and that Flush tells it of one nobody waited for.
func TestPushRefused(t *testing.T) {
	for code, want := range map[wire.Code]error{
		wire.CodeNotFound: client.ErrNotFound,
		wire.CodeFull:     client.ErrQueueFull,
		wire.CodeDraining: client.ErrDraining,
		wire.CodeStore:    client.ErrStore,
	} {
		t.Run(code.String(), func(t *testing.T) {
			c, s := scripted(t, nil)
			err := called(func() {
				s.publish()
				s.pong()
				s.cold(wire.TypeError, &wire.ErrorBody{Publish: 1, Code: code, Text: "because"})
			}, func() error { _, err := c.Queue("jobs").Push(testContext(t), nil, nil); return err })
			wantError(t, err, want)
			if coded, ok := errors.AsType[*wire.Error](err); !ok || coded.Code != code || !strings.Contains(err.Error(), "because") {
				t.Errorf("got %v", err)
			}
			flush(t, c)
			if err := c.Queue("jobs").PushAsync(testContext(t), nil, nil); err != nil {
				t.Fatal(err)
			}
			s.publish()
			s.cold(wire.TypeError, &wire.ErrorBody{Publish: 2, Code: code, Text: "because"})
			err = c.Flush(testContext(t))
			wantError(t, err, want)
			if refused, ok := errors.AsType[*client.RefusedError](err); !ok || refused.Topic != "@queue/jobs" {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A push without an answer is sent again, as it was: by its id the broker knows it.
func TestPushReconnect(t *testing.T) {
	eachSocket(t, func(t *testing.T, l *listener, c *client.Client, s *script) {
		options := &client.PushOptions{ID: "once", Key: "k", Priority: 3, Delay: time.Second, Headers: map[string]string{"h": "v"}}
		var receipt client.Receipt
		err := called(func() {
			first, _, _ := s.publish()
			topic, headers := string(first.Topic), string(first.Headers)
			_ = s.conn.Close()
			s = l.accept()
			s.greet(nil)
			p, got, _ := s.publish()
			want := wire.PublishOptions{Redelivered: true, ID: "once", Key: "k", Priority: 3, DelayMS: 1000}
			if string(p.Topic) != topic || string(p.Headers) != headers || got != want {
				t.Errorf("got %+v with %+v", p, got)
			}
			s.pong()
			s.queueAck(1, 1, client.LevelMemory)
		}, func() (err error) {
			receipt, err = c.Queue("jobs").Push(testContext(t), nil, options)
			return err
		})
		if err != nil || receipt.Level != client.LevelMemory {
			t.Errorf("got %+v, %v", receipt, err)
		}
	})
}
