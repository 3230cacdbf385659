package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/cmd/postbus/internal/bench"
	"github.com/postbus/postbus/wire"
)

// short returns options for a run that is over at once.
func short(t *testing.T, o bench.Options) bench.Options {
	o.Runs = 1
	if o.Duration == 0 {
		o.Duration = 10 * time.Millisecond
	}
	if o.Address == "" {
		o.CPUProfile = filepath.Join(t.TempDir(), "cpu") // its broker needs no other program
	}
	return o
}

func measure(t *testing.T, o bench.Options) *bench.Report {
	t.Helper()
	r, err := bench.Measure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// eachNetwork runs test on both socket types.
func eachNetwork(t *testing.T, test func(t *testing.T, n bench.Network)) {
	for _, n := range []bench.Network{bench.Stream, bench.Packet} {
		t.Run(string(n), func(t *testing.T) { test(t, n) })
	}
}

func TestModes(t *testing.T) {
	tests := []struct {
		name    string
		options bench.Options
		figures []string
	}{
		{"throughput", bench.Options{Relay: true, Messages: 3000}, []string{"deliveries", "cpu", "rss"}},
		{"by duration", bench.Options{Relay: true}, []string{"deliveries", "cpu", "rss"}},
		{"fan-out", bench.Options{Relay: true, Publishers: 2, Subscribers: 3, Topics: 7, Messages: 500}, []string{"deliveries", "cpu", "rss"}},
		{"many connections", bench.Options{Relay: true, Subscribers: 130, Messages: 100}, []string{"deliveries", "cpu", "rss"}},
		{"large messages", bench.Options{Relay: true, Size: 200_000, Messages: 20}, []string{"deliveries", "cpu", "rss"}},
		{"round trip", bench.Options{Mode: bench.RoundTrip, Relay: true, Messages: 50}, []string{"p50", "p99", "p99.9", "cpu", "rss"}},
		{"steady", bench.Options{Relay: true, Rate: 20_000, Messages: 200}, []string{"p50", "p99", "p99.9", "cpu", "rss"}},
		{"client", bench.Options{Endpoints: "client", Publishers: 2, Subscribers: 2, Topics: 3, Messages: 300}, []string{"deliveries", "cpu", "rss"}},
		{"client round trip", bench.Options{Endpoints: "client", Mode: bench.RoundTrip, Messages: 50}, []string{"p50", "p99", "p99.9", "cpu", "rss"}},
		{"client steady", bench.Options{Endpoints: "client", Rate: 20_000, Messages: 200}, []string{"p50", "p99", "p99.9", "cpu", "rss"}},
		{"idle", bench.Options{Mode: bench.Idle, Subscribers: 5}, []string{"memory", "rss"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			eachNetwork(t, func(t *testing.T, n bench.Network) {
				test.options.Network = n
				out := measure(t, short(t, test.options)).Outcomes[0]
				for i, name := range test.figures {
					f := out.Figures[i]
					if f.Name != name {
						t.Errorf("figure %d is %s, want %s", i, f.Name, name)
					}
					if name != "memory" && f.Value.Median <= 0 {
						t.Errorf("%s is %v, want more than 0", name, f.Value.Median)
					}
					if (f.Ratio != nil) != test.options.Relay {
						t.Errorf("%s has the ratio %v, with relay %v", name, f.Ratio, test.options.Relay)
					}
				}
			})
		})
	}
}

func TestCounts(t *testing.T) {
	eachNetwork(t, func(t *testing.T, n bench.Network) {
		o := short(t, bench.Options{Network: n, Publishers: 2, Subscribers: 3, Messages: 500, Relay: true})
		out := measure(t, o).Outcomes[0]
		for _, r := range []*bench.Run{out.Runs[0], out.ReferenceRuns[0]} {
			if r.Published != 1000 || r.Deliveries != 3000 || r.Dropped != 0 {
				t.Errorf("published %d, delivered %d, dropped %d; want 1000, 3000, 0", r.Published, r.Deliveries, r.Dropped)
			}
		}
	})
}

// TestDropping checks that what a policy drops is told and adds up; Measure itself
// fails where it does not.
func TestDropping(t *testing.T) {
	for _, endpoints := range []string{"raw", "client"} {
		for _, policy := range []wire.Policy{wire.DropOld, wire.DropNew, wire.Latest} {
			t.Run(endpoints+" "+policy.String(), func(t *testing.T) {
				o := short(t, bench.Options{Policy: policy, Messages: 20_000, Endpoints: endpoints})
				if r := measure(t, o).Outcomes[0].Runs[0]; r.Deliveries+r.Dropped != 20_000 {
					t.Errorf("%d delivered and %d dropped, want 20,000 together", r.Deliveries, r.Dropped)
				}
			})
		}
	}
}

func TestProfile(t *testing.T) {
	o := short(t, bench.Options{Messages: 100})
	measure(t, o)
	if info, err := os.Stat(o.CPUProfile); err != nil || info.Size() == 0 {
		t.Errorf("the profile is missing or empty: %v", err)
	}
}

func TestExistingBroker(t *testing.T) {
	b, err := broker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := broker.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.ServeDir(dir) }()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, broker.ErrClosed) {
			t.Error(err)
		}
	})
	o := short(t, bench.Options{Network: bench.Both, Messages: 300, Address: dir.Path()})
	if r := measure(t, o); len(r.Outcomes) != 2 {
		t.Fatalf("%d outcomes, want one for each network", len(r.Outcomes))
	}
	o.Size = wire.DefaultMaxMessage + 1
	_, err = bench.Measure(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "limit of 1048576") {
		t.Errorf("a size above the broker's limit: %v", err)
	}
}

func TestNoBroker(t *testing.T) {
	_, err := bench.Measure(t.Context(), bench.Options{Address: filepath.Join(t.TempDir(), "none")})
	if !errors.Is(err, client.ErrNoBroker) {
		t.Errorf("got %v, want client.ErrNoBroker", err)
	}
}

func TestUsage(t *testing.T) {
	for name, o := range map[string]bench.Options{
		"mode":         {Mode: "speed"},
		"network":      {Network: "tcp"},
		"size":         {Size: 15},
		"subscribers":  {Subscribers: -1},
		"endpoints":    {Endpoints: "fast"},
		"relay client": {Relay: true, Endpoints: "client"},
		"relay policy": {Relay: true, Policy: wire.DropOld},
		"relay idle":   {Relay: true, Mode: bench.Idle},
		"rate":         {Mode: bench.RoundTrip, Rate: 5},
		"address":      {Address: "tcp:1234"},
		"disconnect":   {Policy: wire.Disconnect},
		"suite":        {Suite: true, Address: "/nowhere"},
		"profile":      {Address: "/nowhere", CPUProfile: "p"},
	} {
		t.Run(name, func(t *testing.T) {
			var usage *bench.UsageError
			if _, err := bench.Measure(t.Context(), o); !errors.As(err, &usage) {
				t.Errorf("got %v, want a UsageError", err)
			}
		})
	}
}

// TestInterrupted checks that a bench that is called off ends and leaves nothing.
func TestInterrupted(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	o := short(t, bench.Options{Duration: time.Hour})
	o.Progress = writerFunc(func(b []byte) {
		if strings.Contains(string(b), "run 1") {
			cancel()
		}
	})
	if _, err := bench.Measure(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}

func TestJSON(t *testing.T) {
	var buf bytes.Buffer
	if err := measure(t, short(t, bench.Options{Relay: true, Messages: 100})).WriteJSON(&buf); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"size", "runs", "cpus", "kernel", "go"} {
		if got[key] == nil {
			t.Errorf("the report has no %q", key)
		}
	}
	out := got["outcomes"].([]any)[0].(map[string]any)
	for _, key := range []string{"name", "mode", "network", "publishers", "subscribers", "subscriber_processes", "reference", "figures", "runs", "reference_runs"} {
		if out[key] == nil {
			t.Errorf("an outcome has no %q", key)
		}
	}
	run := out["runs"].([]any)[0].(map[string]any)
	for _, key := range []string{"seconds", "published", "deliveries", "dropped", "deliveries_per_second", "cpu_seconds_per_million", "rss_bytes"} {
		if run[key] == nil {
			t.Errorf("a run has no %q", key)
		}
	}
}
