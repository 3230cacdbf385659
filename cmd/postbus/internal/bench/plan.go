package bench

import (
	"context"
	"fmt"
)

// scenario is one thing to measure, several times, and what to compare it with.
type scenario struct {
	name      string
	options   Options
	reference reference
	goals     map[string]goal // by metric
}

// reference is what a scenario's runs are compared with, in turn.
type reference string

const (
	noReference     reference = ""
	relayReference  reference = "relay"
	streamReference reference = "stream" // the same broker on SOCK_STREAM
	emptyReference  reference = "empty"  // the same queue with next to nothing in it
)

// goal is what a ratio, or where there is none the figure, is to reach.
type goal struct {
	atLeast, atMost float64 // 0: no bound
	floor           float64 // what the figure is to reach beside the ratio
}

// reached reports whether v, a ratio or the figure itself, reaches the goal.
func (g goal) reached(v, figure float64) bool {
	return v >= g.atLeast && (g.atMost == 0 || v <= g.atMost) && figure >= g.floor
}

// String returns the goal as a table has it.
func (g goal) String() string {
	if g.floor != 0 {
		return fmt.Sprintf("≥ %.3g and itself ≥ %g", g.atLeast, g.floor)
	}
	if g.atMost != 0 {
		return fmt.Sprintf("≤ %g", g.atMost)
	}
	return fmt.Sprintf("≥ %g", g.atLeast)
}

// plan returns the scenarios that the options ask for.
func (o Options) plan() []scenario {
	if o.Queue != "" {
		return o.queuePlan()
	}
	if o.Suite {
		return o.suite()
	}
	networks := []Network{o.Network}
	if o.Network == Both {
		networks = []Network{Stream, Packet}
	}
	var scenarios []scenario
	for _, n := range networks {
		s := scenario{options: o}
		s.options.Network = n
		s.name = s.options.title()
		if o.Relay {
			s.reference = relayReference
		}
		scenarios = append(scenarios, s)
	}
	return scenarios
}

// title names what the options measure.
func (o *Options) title() string {
	switch o.Mode {
	case RoundTrip:
		return fmt.Sprintf("%s, round trip", o.Network)
	case Steady:
		return fmt.Sprintf("%s, %d→%d at %d/s", o.Network, o.Publishers, o.Subscribers, o.Rate)
	case Idle:
		return fmt.Sprintf("%s, %d idle", o.Network, o.Subscribers)
	}
	return fmt.Sprintf("%s, %d→%d", o.Network, o.Publishers, o.Subscribers)
}

// suite is what a release is measured by, with its goals.
func (o Options) suite() []scenario {
	fanOut := func(n Network, subscribers int, r reference, least float64) scenario {
		return o.entry(Options{Network: n, Subscribers: subscribers}, r, map[string]goal{"deliveries": {atLeast: least}})
	}
	roundTrip := map[string]goal{"p50": {atMost: 1.2}, "p99": {atMost: 1.2}}
	steady := map[string]goal{"p99": {atMost: 2}}
	memory := map[string]goal{"memory": {atMost: 4096}}
	return []scenario{
		fanOut(Stream, 1, relayReference, 0.7),
		fanOut(Stream, 8, relayReference, 0.75),
		fanOut(Stream, 64, relayReference, 0.75),
		fanOut(Stream, 1000, relayReference, 0.5),
		fanOut(Packet, 1, streamReference, 0.7),
		fanOut(Packet, 8, streamReference, 0.7),
		fanOut(Packet, 64, streamReference, 0.7),
		o.entry(Options{Network: Stream, Mode: RoundTrip}, relayReference, roundTrip),
		o.entry(Options{Network: Packet, Mode: RoundTrip}, relayReference, roundTrip),
		o.entry(Options{Network: Stream, Mode: Steady}, relayReference, steady),
		o.entry(Options{Network: Packet, Mode: Steady}, relayReference, steady),
		o.entry(Options{Network: Packet, Mode: Idle}, noReference, memory),
	}
}

// entry makes a scenario of the suite: what s says, and of o what the suite heeds.
func (o Options) entry(s Options, r reference, goals map[string]goal) scenario {
	s.Size, s.Duration, s.Messages, s.Runs = o.Size, o.Duration, o.Messages, o.Runs
	s.WriteSize, s.ReadSize = o.WriteSize, o.ReadSize
	s = s.withDefaults()
	return scenario{name: s.title(), options: s, reference: r, goals: goals}
}

// runOnce measures once what is looked at, or what it is compared with.
func (s *scenario) runOnce(ctx context.Context, other bool) (*Run, error) {
	o := s.options
	if o.Queue != "" {
		switch {
		case !other:
			return runQueue(ctx, &o, Postbus)
		case s.reference == emptyReference:
			o.backlog = 1
			return runQueue(ctx, &o, Postbus)
		}
		return runQueue(ctx, &o, Server(s.reference))
	}
	if other && s.reference == streamReference {
		o.Network = Stream
	}
	return runOnce(ctx, &o, other && s.reference == relayReference)
}

// run measures a scenario: each run in turn with one of its reference, so that what
// else the machine does hits both alike.
func (s *scenario) run(ctx context.Context, say *progress) (*Outcome, error) {
	out := &Outcome{Name: s.name, Mode: s.options.Mode, Network: s.options.Network,
		Publishers: s.options.Publishers, Subscribers: s.options.Subscribers,
		Processes: len(spread(s.options.Subscribers)), Rate: s.options.Rate,
		Reference: string(s.reference)}
	for i := range s.options.Runs {
		say.begin("%s: run %d of %d", s.name, i+1, s.options.Runs)
		r, err := s.runOnce(ctx, false)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		out.Runs = append(out.Runs, r)
		if s.reference == noReference {
			continue
		}
		say.begin("%s: run %d of %d, the %s", s.name, i+1, s.options.Runs, s.reference)
		r, err = s.runOnce(ctx, true)
		if err != nil {
			return nil, fmt.Errorf("%s, the %s: %w", s.name, s.reference, err)
		}
		out.ReferenceRuns = append(out.ReferenceRuns, r)
	}
	out.Figures = s.figures(out)
	return out, nil
}
