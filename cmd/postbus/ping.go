package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/client"
)

// pinging is one run of `postbus ping`.
type pinging struct {
	count   int
	timeout time.Duration
	json    bool
}

func newPing(to *target) *cobra.Command {
	p := pinging{}
	cmd := &cobra.Command{
		Use:   "ping",
		Short: "Ask whether a broker answers, and who I am to it",
		Long: `Ping speaks to the broker and tells how long an answer takes, which broker it is
and whom it takes you for. It never starts one: when none answers it ends with 69.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.run(cmd.Context(), to)
		},
	}
	flags := cmd.Flags()
	flags.IntVarP(&p.count, "count", "c", 1, "make `N` round trips, one after the other")
	flags.DurationVar(&p.timeout, "timeout", 5*time.Second, "give up (exit 124) after `TIME` in all; 0: never")
	flags.BoolVar(&p.json, "json", false, "print a JSON object")
	return cmd
}

func (p *pinging) run(ctx context.Context, to *target) error {
	if p.count < 1 {
		return usagef("-c %d: it must be 1 or more", p.count)
	}
	ctx, cancel := withTimeout(ctx, p.timeout)
	defer cancel()
	report, err := p.measure(ctx, to)
	if err != nil {
		return err
	}
	out := report.text()
	if p.json {
		out = append(appendJSON(nil, report), '\n')
	}
	_, err = os.Stdout.Write(out)
	return err
}

func (p *pinging) measure(ctx context.Context, to *target) (*pingReport, error) {
	c, err := client.Dial(ctx, to.options("postbus ping"))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	trips := make([]time.Duration, p.count)
	for i := range trips {
		start := time.Now()
		if err := c.Ping(ctx); err != nil {
			return nil, err
		}
		trips[i] = time.Since(start)
	}
	return newPingReport(c.Server(), trips), nil
}

// pingReport is what ping has to say; times are in microseconds.
type pingReport struct {
	Address    string        `json:"address"`
	Broker     string        `json:"broker"`
	Bus        string        `json:"bus"`
	You        jsonPeer      `json:"you"`
	MaxMessage int           `json:"max_message"` // bytes
	RoundTrips pingStatistic `json:"round_trips"`
}

type pingStatistic struct {
	Count  int     `json:"count"`
	Min    float64 `json:"min_us"`
	Median float64 `json:"median_us"`
	Max    float64 `json:"max_us"`
}

func newPingReport(server client.Server, trips []time.Duration) *pingReport {
	slices.Sort(trips)
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	return &pingReport{
		Address:    server.Address,
		Broker:     server.Version,
		Bus:        server.Bus,
		You:        jsonPeer{server.Self.UID, server.Self.GID, server.Self.PID},
		MaxMessage: server.MaxMessage,
		RoundTrips: pingStatistic{len(trips), micros(trips[0]), micros(trips[len(trips)/2]), micros(trips[len(trips)-1])},
	}
}

// text is the report for people.
func (r *pingReport) text() []byte {
	trips := fmt.Sprintf("%.0f µs", r.RoundTrips.Median)
	if r.RoundTrips.Count > 1 {
		trips = fmt.Sprintf("%.0f µs median of %d, %.0f to %.0f µs",
			r.RoundTrips.Median, r.RoundTrips.Count, r.RoundTrips.Min, r.RoundTrips.Max)
	}
	return fmt.Appendf(nil, `address      %s
broker       %s
bus          %s
you are      uid %d, gid %d, pid %d
limit        messages of %s
round trip   %s
`, r.Address, r.Broker, r.Bus, r.You.UID, r.You.GID, r.You.PID,
		formatSize(r.MaxMessage), trips)
}
