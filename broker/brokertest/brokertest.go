// Package brokertest starts brokers for tests, on a bus directory of their own.
package brokertest

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/wire"
)

// Bus is a broker that serves a bus directory.
type Bus struct {
	*broker.Broker
	Dir    string
	served chan error
}

// Start starts a broker in a temporary directory. At the test's end it is closed,
// and the test fails if anything of it is left.
func Start(t testing.TB, opts *broker.Options) *Bus {
	t.Helper()
	return StartAt(t, filepath.Join(t.TempDir(), "bus"), opts)
}

// StartAt starts a broker that serves the bus directory dir.
func StartAt(t testing.TB, dir string, opts *broker.Options) *Bus {
	t.Helper()
	d, err := broker.OpenDir(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := broker.New(opts)
	if err != nil {
		d.Close()
		t.Fatal(err)
	}
	bus := &Bus{Broker: b, Dir: d.Path(), served: make(chan error, 1)}
	go func() { bus.served <- b.ServeDir(d) }()
	t.Cleanup(func() { bus.finish(t) })
	return bus
}

// finish closes the broker and looks whether it left its directory in order.
func (b *Bus) finish(t testing.TB) {
	b.Close()
	if err := b.Wait(); !errors.Is(err, broker.ErrClosed) && !errors.Is(err, broker.ErrIdle) {
		t.Errorf("the broker ended with: %v", err)
	}
}

// Wait waits until the broker has ended and left its directory, and returns why.
func (b *Bus) Wait() error {
	err := <-b.served
	b.served <- err
	return err
}

// Address returns the bus's socket of the network "unix" or "unixpacket", as
// client.Options takes it.
func (b *Bus) Address(network string) string {
	for _, a := range wire.DirAddresses(b.Dir) {
		if a.Network == network {
			return a.String()
		}
	}
	panic("brokertest: no network " + network)
}

// Eventually waits until the broker's counters are as ok wants them.
func (b *Bus) Eventually(t testing.TB, what string, ok func(broker.Stats) bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for s := b.Stats(); !ok(s); s = b.Stats() { // each waits for a turn of the loop
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after 20 s; the counters are %+v", what, s)
		}
	}
}

// EachTransport runs a test on both socket types.
func EachTransport(t *testing.T, test func(t *testing.T, network string)) {
	for _, network := range []string{"unixpacket", "unix"} {
		t.Run(network, func(t *testing.T) { test(t, network) })
	}
}
