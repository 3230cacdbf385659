package client_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// extending runs a test on the fake clock, with a consumer whose leases of 30 s it
// extends, or does not.
func extending(t *testing.T, extend bool, run func(t *testing.T, d *client.Desk, s *client.Consumer, sub uint32)) {
	synctest.Test(t, func(t *testing.T) {
		d, s, sub := desk(t, &client.ConsumeOptions{Lease: 30 * time.Second, ExtendLeases: extend})
		run(t, d, s, sub)
		go func() { _ = s.Close() }() // nobody confirms
		time.Sleep(time.Minute)
		d.Take()
	})
}

// pass lets time pass, and all that is due happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func extension(sub uint32, first, last uint64) wire.Settle {
	return wire.Settle{Sub: sub, Verb: wire.VerbExtend, First: first, Last: last, Arg: 30_000}
}

// Each third of a lease what is given out and not settled is extended, and nothing else.
func TestExtendLeases(t *testing.T) {
	extending(t, true, func(t *testing.T, d *client.Desk, s *client.Consumer, sub uint32) {
		put(t, d, deliveries(sub, false, span(1, 9)...))
		got := next(t, s, 1, 2, 3, 4, 5)
		pass(9 * time.Second)
		wantSettles(t, d)
		pass(1 * time.Second)
		wantSettles(t, d, extension(sub, 1, 5))
		_ = got[2].Ack()
		wantSettles(t, d, wire.Settle{Sub: sub, Verb: wire.VerbAck, First: 3, Last: 3})
		pass(10 * time.Second)
		wantSettles(t, d, extension(sub, 1, 2), extension(sub, 4, 5))
		for _, i := range []int{0, 1, 3, 4} {
			_ = got[i].Nack(0)
		}
		d.Settles()
		pass(time.Minute)
		wantSettles(t, d)
	})
}

func TestExtendLeasesOff(t *testing.T) {
	extending(t, false, func(t *testing.T, d *client.Desk, s *client.Consumer, sub uint32) {
		put(t, d, deliveries(sub, false, 1))
		got := next(t, s, 1)
		pass(time.Minute)
		wantSettles(t, d)
		if err := got[0].Extend(90 * time.Second); err != nil {
			t.Error(err)
		}
		wantSettles(t, d, wire.Settle{Sub: sub, Verb: wire.VerbExtend, First: 1, Last: 1, Arg: 90_000})
	})
}

// What waited for long before it was given out is extended at once, for the next round
// may be too late.
func TestExtendLate(t *testing.T) {
	extending(t, true, func(t *testing.T, d *client.Desk, s *client.Consumer, sub uint32) {
		pass(9 * time.Second)
		put(t, d, deliveries(sub, false, 1, 2))
		pass(2 * time.Second)
		next(t, s, 1)
		wantSettles(t, d)
		pass(9 * time.Second)
		wantSettles(t, d, extension(sub, 1, 1))
		pass(8 * time.Second)
		next(t, s, 2)
		wantSettles(t, d, extension(sub, 2, 2))
		pass(2 * time.Second)
		wantSettles(t, d, extension(sub, 1, 2))
	})
}

// Whatever the moment at which a delivery comes and is given out, its lease is extended
// before it ends, or it is not given out.
func TestExtendInTime(t *testing.T) {
	for came := time.Duration(0); came < 11*time.Second; came += 1300 * time.Millisecond {
		for waited := time.Duration(0); waited < 45*time.Second; waited += 1700 * time.Millisecond {
			extending(t, true, func(t *testing.T, d *client.Desk, s *client.Consumer, sub uint32) {
				time.Sleep(came)
				put(t, d, deliveries(sub, false, 1))
				ends := time.Now().Add(30 * time.Second)
				time.Sleep(waited)
				synctest.Wait()
				got, err := client.TryNext(s)
				if err != nil {
					t.Fatal(err)
				}
				if got == nil {
					if time.Now().Before(ends) {
						t.Errorf("came at %v, waited %v: let go before its lease had ended", came, waited)
					}
					return
				}
				if time.Now().After(ends) {
					return // the broker will say so
				}
				for range 10 {
					for _, settle := range d.Settles() {
						if time.Now().After(ends) {
							t.Errorf("came at %v, waited %v: extended %v too late", came, waited, time.Since(ends))
						}
						ends = time.Now().Add(time.Duration(settle.Arg) * time.Millisecond)
					}
					pass(5 * time.Second)
				}
			})
		}
	}
}

// What has waited for longer than its lease is not given out, and does not pile up.
func TestStale(t *testing.T) {
	extending(t, false, func(t *testing.T, d *client.Desk, s *client.Consumer, sub uint32) {
		put(t, d, deliveries(sub, false, 1, 2))
		next(t, s, 1)
		pass(29 * time.Second)
		put(t, d, deliveries(sub, false, 3, 4))
		pass(15 * time.Second)
		if n := client.Ready(s); n != 2 {
			t.Errorf("%d wait, want 3 and 4", n)
		}
		put(t, d, deliveries(sub, true, 1, 2))
		next(t, s, 3, 4, 1, 2)
		put(t, d, deliveries(sub, false, span(5, 500)...))
		pass(50 * time.Second)
		if n := client.Ready(s); n != 0 {
			t.Errorf("%d wait, want none", n)
		}
		// Next waits, and gets what comes then.
		got := make(chan uint64)
		go func() { m, _ := s.Next(context.Background()); got <- m.Seq }()
		synctest.Wait()
		put(t, d, deliveries(sub, true, 7))
		if seq := <-got; seq != 7 {
			t.Errorf("got %d", seq)
		}
	})
}

// When the broker says that a lease could not be extended, it is known to be lost.
func TestExtendRefused(t *testing.T) {
	extending(t, true, func(t *testing.T, d *client.Desk, s *client.Consumer, sub uint32) {
		put(t, d, deliveries(sub, false, 1, 3, 4))
		got := next(t, s, 1, 3, 4)
		pass(10 * time.Second)
		wantSettles(t, d, extension(sub, 1, 1), extension(sub, 3, 4))
		d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 1, Sub: sub, Code: wire.CodeLeaseLost})
		wantError(t, got[0].Ack(), client.ErrLeaseLost)
		d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 2, Sub: sub, Code: wire.CodeLeaseLost, Lost: []uint64{4}})
		wantError(t, got[2].Ack(), client.ErrLeaseLost)
		if held := client.Held(s); !slices.Equal(held, []uint64{3}) {
			t.Errorf("held are %v", held)
		}
		if err := s.Flush(testContext(t)); err != nil {
			t.Errorf("nothing was settled in vain: %v", err)
		}
		// The same for one that the program extends.
		_ = got[1].Extend(time.Minute)
		d.Settles()
		d.Cold(wire.TypeError, &wire.ErrorBody{Settle: 3, Sub: sub, Code: wire.CodeLeaseLost})
		wantError(t, got[1].Nack(0), client.ErrLeaseLost)
	})
}

// Extensions do not pile up while nothing is written.
func TestExtendStuck(t *testing.T) {
	extending(t, true, func(t *testing.T, d *client.Desk, s *client.Consumer, sub uint32) {
		put(t, d, deliveries(sub, false, 1, 3))
		next(t, s, 1, 3)
		pass(time.Hour)
		wantSettles(t, d, extension(sub, 1, 1), extension(sub, 3, 3))
		pass(10 * time.Second)
		wantSettles(t, d, extension(sub, 1, 1), extension(sub, 3, 3))
	})
}

// The leases of a new connection are extended too, those of the old one are not.
func TestExtendAfterReconnect(t *testing.T) {
	extending(t, true, func(t *testing.T, d *client.Desk, s *client.Consumer, sub uint32) {
		put(t, d, deliveries(sub, false, 1, 2))
		next(t, s, 1, 2)
		d.Lose()
		pass(25 * time.Second)
		d.Connect()
		d.Open(s)
		wantLost(t, s, []uint64{1, 2}, nil)
		put(t, d, deliveries(sub, true, 2))
		next(t, s, 2)
		pass(10 * time.Second)
		wantSettles(t, d, extension(sub, 2, 2))
	})
}

// Close does not wait for ever for a broker that says nothing.
func TestCloseConsumerUnconfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s, sub := desk(t, nil)
		put(t, d, deliveries(sub, false, 1))
		_ = next(t, s, 1)[0].Ack()
		began := time.Now()
		err := s.Close()
		if err == nil || !strings.Contains(err.Error(), "not confirmed") || time.Since(began) != 500*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		d.Take()
	})
}

// Draining goes on extending, and ends with its leases.
func TestExtendWhileDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s, sub := desk(t, &client.ConsumeOptions{Lease: 30 * time.Second, ExtendLeases: true})
		put(t, d, deliveries(sub, false, 1, 2))
		got := next(t, s, 1, 2)
		var drained sync.WaitGroup
		drained.Go(func() {
			if err := s.Drain(t.Context()); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		d.Take()
		pass(10 * time.Second)
		wantSettles(t, d, extension(sub, 1, 2))
		_ = got[0].Ack()
		d.Settles()
		put(t, d, wire.AppendSettled(nil, 2))
		d.Cold(wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: sub})
		drained.Wait()
		wantError(t, got[1].Ack(), client.ErrLeaseLost)
		pass(time.Minute)
		wantSettles(t, d)
		if _, err := s.Next(t.Context()); !errors.Is(err, client.ErrDrained) {
			t.Errorf("got %v", err)
		}
	})
}

// Deliveries cost no allocation each.
func TestConsumeAllocates(t *testing.T) {
	if raceEnabled {
		return // it allocates itself
	}
	const batch = 1000
	d, s, sub := desk(t, nil)
	frames := deliveries(sub, false, span(1, batch)...)
	settled := uint64(0)
	allocs := testing.AllocsPerRun(20, func() {
		put(t, d, frames)
		for range batch {
			m, err := s.Next(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			_ = m.Ack()
		}
		settled += uint64(len(d.Settles()))
		put(t, d, wire.AppendSettled(nil, settled))
	})
	if allocs > batch/20 {
		t.Errorf("%d deliveries allocate %v times", batch, allocs)
	}
}
