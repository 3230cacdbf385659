package client_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// brokenQueues are frames that a broker must not send, in this order and of which the
// last is wrong, to a client that has consumer 1, has sent settles 1 and 2 of messages 1
// and 3, and has asked for info with token 1 and for a peek as 2 with token 2.
func brokenQueues() map[string][][]byte {
	cold := func(t wire.Type, body any) []byte { return wire.AppendCold(nil, t, body) }
	settle := func(n uint64) []byte {
		return cold(wire.TypeError, &wire.ErrorBody{Settle: n, Code: wire.CodeLeaseLost})
	}
	return map[string][][]byte{
		"settled of nothing sent":    {wire.AppendSettled(nil, 3)},
		"settled that goes back":     {wire.AppendSettled(nil, 2), wire.AppendSettled(nil, 1)},
		"settle refused, not sent":   {settle(3)},
		"settle refused twice":       {settle(2), settle(2)},
		"settle refused, was kept":   {wire.AppendSettled(nil, 1), settle(1)},
		"refused of another settle":  {cold(wire.TypeError, &wire.ErrorBody{Settle: 1, Code: wire.CodeLeaseLost, Lost: []uint64{3}})},
		"gap for a consumer":         {wire.AppendGap(nil, wire.Gap{Sub: 1, Count: 1})},
		"opened twice":               {cold(wire.TypeSubscribed, &wire.Subscribed{Sub: 1})},
		"queued, not asked":          {cold(wire.TypeQueued, &wire.Queued{Token: 9})},
		"info map of other types":    {wire.AppendMessage(wire.AppendTarget(nil, 1), &wire.Message{Seq: 9, Topic: []byte("a"), Info: wire.AppendHeaders(nil, map[string]string{"tries": "x"})})},
		"info of two queues":         {cold(wire.TypeQueued, &wire.Queued{Token: 1, Queues: make([]wire.QueueInfo, 2)})},
		"info of no queue":           {cold(wire.TypeQueued, &wire.Queued{Token: 1})},
		"peek that goes back":        {cold(wire.TypeQueued, &wire.Queued{Token: 2, Next: 1})},
		"peek of more than asked":    {deliveries(2, false, span(1, 101)...)},
		"peek after it was answered": {cold(wire.TypeQueued, &wire.Queued{Token: 2}), wire.AppendTarget(nil, 2)},
		"message after a peek":       {deliveries(2, false, 1), cold(wire.TypeQueued, &wire.Queued{Token: 2}), wire.AppendMessage(nil, &wire.Message{Seq: 2, Topic: []byte("a")})},
	}
}

// What a broker must not say of queues.
func TestBrokenQueues(t *testing.T) {
	for name, frames := range brokenQueues() {
		t.Run(name, func(t *testing.T) {
			d, s, sub := desk(t, nil)
			put(t, d, deliveries(sub, false, 1, 3))
			for _, d := range next(t, s, 1, 3) {
				_ = d.Ack()
			}
			d.Settles()
			ctx, cancel := context.WithCancel(testContext(t))
			var asked sync.WaitGroup
			defer asked.Wait()
			defer cancel()
			ask := func(n int, call func()) {
				asked.Go(call)
				waitFor(t, "the question", func() bool { return client.Requests(d.Client) == n })
			}
			ask(1, func() { _, _ = d.Queue("jobs").Info(ctx) })
			ask(2, func() {
				for range d.Queue("jobs").Peek(ctx, &client.PeekOptions{From: 1}) {
				}
			})
			var err error
			for i, f := range frames {
				if err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				err = d.Put(f)
			}
			var fault *wire.Error
			if !errors.As(err, &fault) || fault.Code != wire.CodeMalformed {
				t.Errorf("got %v", err)
			}
		})
	}
	c, s := scripted(t, nil)
	s.send(wire.AppendSettled(nil, 1))
	var body wire.Goodbye
	s.expect(wire.TypeGoodbye, &body)
	<-c.Done()
	wantError(t, c.Err(), client.ErrProtocol)
}

func TestQueueErrorTexts(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{(&client.LeasesLost{Unsettled: []uint64{1, 2}, Unconfirmed: []uint64{3}}).Error(),
			"client: the connection was lost, and 2 deliveries that were not settled and 1 that were, but not confirmed, may come again"},
		{(&client.LeaseError{Queue: "jobs", Count: 2, Seqs: []uint64{5, 9}, First: client.ErrLeaseLost}).Error(),
			`client: 2 deliveries of queue "jobs" were settled in vain, seq [5 9]: client: lease lost`},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
}
