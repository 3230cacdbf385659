package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// Report is what Run found.
type Report struct {
	Size     int        `json:"size"` // bytes of a body
	Runs     int        `json:"runs"`
	CPUs     int        `json:"cpus"`
	Kernel   string     `json:"kernel"`
	Go       string     `json:"go"`
	Outcomes []*Outcome `json:"outcomes"`
}

// Outcome is what was found in one scenario.
type Outcome struct {
	Name        string  `json:"name"`
	Mode        Mode    `json:"mode"`
	Network     Network `json:"network"`
	Publishers  int     `json:"publishers"`
	Subscribers int     `json:"subscribers"` // connections
	Processes   int     `json:"subscriber_processes"`
	Rate        int     `json:"rate,omitempty"`
	Reference   string  `json:"reference,omitempty"` // what it is compared with

	Figures       []Figure `json:"figures"`
	Runs          []*Run   `json:"runs"`
	ReferenceRuns []*Run   `json:"reference_runs,omitempty"` // in turn with Runs
}

// Figure is one number of an outcome.
type Figure struct {
	Name      string  `json:"name"`
	Unit      string  `json:"unit"`
	Value     Spread  `json:"value"`
	Reference *Spread `json:"reference,omitempty"`
	Ratio     *Spread `json:"ratio,omitempty"` // of each run to the reference's beside it
	Goal      string  `json:"goal,omitempty"`  // of the ratio, or where there is none of the value
	Reached   *bool   `json:"reached,omitempty"`
}

// Spread is the middle and the ends of several runs.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func newSpread(values []float64) Spread {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Spread{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}
}

// metric is a figure that each run of a mode has.
type metric struct {
	name, unit string
	of         func(*Run) float64
}

var (
	cpuMetric     = metric{"cpu", "s/million", func(r *Run) float64 { return r.CPUPerMillion }}
	rssMetric     = metric{"rss", "MiB", func(r *Run) float64 { return float64(r.RSS) / (1 << 20) }}
	pushCPUMetric = metric{"push cpu", "s/million", func(r *Run) float64 { return r.PushCPUPerMillion }}
	takeCPUMetric = metric{"take cpu", "s/million", func(r *Run) float64 { return r.TakeCPUPerMillion }}

	latencies = []metric{
		{"p50", "µs", func(r *Run) float64 { return r.P50 }},
		{"p99", "µs", func(r *Run) float64 { return r.P99 }},
		{"p99.9", "µs", func(r *Run) float64 { return r.P999 }},
	}
)

// metrics says what is looked at in each mode.
var metrics = map[Mode][]metric{
	Throughput: {
		{"deliveries", "million/s", func(r *Run) float64 { return r.PerSecond / 1e6 }},
		cpuMetric, rssMetric,
	},
	RoundTrip: append(slices.Clone(latencies), cpuMetric, rssMetric),
	Steady:    append(slices.Clone(latencies), cpuMetric, rssMetric),
	Queueing: {
		{"push", "million/s", func(r *Run) float64 { return r.PushesPerSecond / 1e6 }},
		{"take", "million/s", func(r *Run) float64 { return r.TakesPerSecond / 1e6 }},
		pushCPUMetric, takeCPUMetric, rssMetric,
	},
	OneByOne: {
		latencies[0], latencies[1],
		{"push", "thousand/s", func(r *Run) float64 { return r.PushesPerSecond / 1e3 }},
		pushCPUMetric,
	},
	Backlog: {
		{"push", "ns", func(r *Run) float64 { return 1e9 / r.PushesPerSecond }},
		{"take", "ns", func(r *Run) float64 { return 1e9 / r.TakesPerSecond }},
		pushCPUMetric, takeCPUMetric,
		{"memory", "bytes/message", func(r *Run) float64 { return r.BytesPerMessage }},
		{"heap", "bytes/message", func(r *Run) float64 { return r.HeapPerMessage }},
		rssMetric,
	},
	Idle: {
		{"memory", "bytes/connection", func(r *Run) float64 { return r.BytesPerConnection }},
		rssMetric,
	},
}

// figures draws the figures from a scenario's runs.
func (s *scenario) figures(out *Outcome) []Figure {
	var figures []Figure
	for _, m := range metrics[s.options.Mode] {
		values := m.each(out.Runs)
		if slices.Max(values) == 0 {
			continue // there is no such figure of this scenario
		}
		f := Figure{Name: m.name, Unit: m.unit, Value: newSpread(values)}
		judged := f.Value.Median
		if others := m.each(out.ReferenceRuns); len(others) > 0 && slices.Min(others) > 0 {
			for i := range others {
				values[i] /= others[i]
			}
			reference, ratio := newSpread(others), newSpread(values)
			f.Reference, f.Ratio = &reference, &ratio
			judged = ratio.Median
		}
		if g, ok := s.goals[m.name]; ok {
			reached := g.reached(judged, f.Value.Median)
			f.Goal, f.Reached = g.String(), &reached
		}
		figures = append(figures, f)
	}
	return figures
}

func (m *metric) each(runs []*Run) []float64 {
	values := make([]float64, len(runs))
	for i, r := range runs {
		values[i] = m.of(r)
	}
	return values
}

// Measure does what the options ask for and waits until it is done. A mistake in the
// options is a *UsageError. On an error the report has what was done before it.
func Measure(ctx context.Context, o Options) (*Report, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	r := &Report{Size: o.Size, Runs: o.Runs, CPUs: runtime.NumCPU(), Kernel: kernel(), Go: runtime.Version()}
	say := newProgress(o.Progress)
	defer say.end()
	for _, s := range o.plan() {
		out, err := s.run(ctx, say)
		if err != nil {
			return r, err
		}
		r.Outcomes = append(r.Outcomes, out)
	}
	return r, nil
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	fmt.Fprintf(w, "%d-byte messages, median of %d runs (lowest to highest); %d CPUs, Linux %s, %s\n\n",
		r.Size, r.Runs, r.CPUs, r.Kernel, r.Go)
	rows := [][]string{{"", "", "postbus", "", "compared with", "", "ratio", "", "goal", ""}}
	for _, out := range r.Outcomes {
		for i, f := range out.Figures {
			row := f.row(out.Reference)
			if i == 0 {
				row[0] = out.Name
			}
			rows = append(rows, row)
		}
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range withoutEmpty(rows) {
		fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return r.writeNotes(w)
}

// row is the figure's line of the table; the first cell is the outcome's.
func (f *Figure) row(reference string) []string {
	row := append([]string{"", f.Name + ", " + f.Unit}, f.Value.cells("")...)
	row = append(row, f.Reference.cells(reference+" ")...)
	row = append(row, f.Ratio.cells("")...)
	verdict := ""
	if f.Reached != nil {
		verdict = "missed"
		if *f.Reached {
			verdict = "reached"
		}
	}
	return append(row, f.Goal, verdict)
}

// cells are a spread's two cells of the table, empty for nil.
func (s *Spread) cells(prefix string) []string {
	if s == nil {
		return []string{"", ""}
	}
	return []string{prefix + number(s.Median), fmt.Sprintf("(%s–%s)", number(s.Min), number(s.Max))}
}

// number writes v with three digits, or all before the point.
func number(v float64) string {
	if math.Abs(v) >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// withoutEmpty leaves out the columns that have nothing but a heading.
func withoutEmpty(rows [][]string) [][]string {
	out := make([][]string, len(rows))
	for column := range rows[0] {
		if !slices.ContainsFunc(rows[1:], func(row []string) bool { return row[column] != "" }) {
			continue
		}
		for i, row := range rows {
			out[i] = append(out[i], row[column])
		}
	}
	return out
}

// writeNotes says what a reader must know of how it was measured.
func (r *Report) writeNotes(w io.Writer) error {
	for _, out := range r.Outcomes {
		if out.Processes == out.Subscribers {
			continue
		}
		_, err := fmt.Fprintf(w, "\n%s: %d connections in %d processes\n", out.Name, out.Subscribers, out.Processes)
		if err != nil {
			return err
		}
	}
	return nil
}
