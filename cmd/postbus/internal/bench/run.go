package bench

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/postbus/postbus/wire"
)

// Run is one measurement.
type Run struct {
	Seconds    float64 `json:"seconds"`    // from the first message's start to the last one's arrival
	Published  uint64  `json:"published"`  // messages
	Deliveries uint64  `json:"deliveries"` // messages that arrived, at all subscribers
	Dropped    uint64  `json:"dropped"`    // those that the broker told it dropped

	PerSecond     float64 `json:"deliveries_per_second,omitempty"`
	CPUPerMillion float64 `json:"cpu_seconds_per_million,omitempty"` // of the broker or relay, deliveries
	RSS           int64   `json:"rss_bytes"`                         // of the broker or relay, afterwards

	P50  float64 `json:"p50_us,omitempty"` // microseconds
	P99  float64 `json:"p99_us,omitempty"`
	P999 float64 `json:"p999_us,omitempty"`
	Max  float64 `json:"max_us,omitempty"`

	// Of a queue: pushing and then taking, all rounds together.
	Pushed            uint64  `json:"pushed,omitempty"`
	Taken             uint64  `json:"taken,omitempty"`
	PushSeconds       float64 `json:"push_seconds,omitempty"`
	TakeSeconds       float64 `json:"take_seconds,omitempty"`
	PushesPerSecond   float64 `json:"pushes_per_second,omitempty"`
	TakesPerSecond    float64 `json:"takes_per_second,omitempty"`
	PushCPUPerMillion float64 `json:"push_cpu_seconds_per_million,omitempty"` // of the server
	TakeCPUPerMillion float64 `json:"take_cpu_seconds_per_million,omitempty"`
	BytesPerMessage   float64 `json:"bytes_per_message,omitempty"`      // resident, of what waits in the queue
	HeapPerMessage    float64 `json:"heap_bytes_per_message,omitempty"` // of our broker's heap

	Connections        int     `json:"connections,omitempty"`
	BytesPerConnection float64 `json:"bytes_per_connection,omitempty"`
}

// runOnce measures once, with a relay or a broker in the middle.
func runOnce(ctx context.Context, o *Options, useRelay bool) (run *Run, err error) {
	dir, err := os.MkdirTemp("", "postbus-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	p := newParty(ctx, o.Duration+grace)
	defer p.end()

	var m *middle
	switch {
	case useRelay:
		m, err = p.startRelay(o, dir)
	case o.Address != "":
		m, err = findBroker(o)
	default:
		m, err = p.startBroker(o, dir)
	}
	if err != nil {
		return nil, err
	}
	switch o.Mode {
	case RoundTrip:
		return p.roundTrips(o, m)
	case Idle:
		return p.idleMemory(o, m)
	}
	return p.fanOut(o, m)
}

// fanOut lets publishers send to subscribers.
func (p *party) fanOut(o *Options, m *middle) (*Run, error) {
	subscribers, err := p.startSubscribers(o, m)
	if err != nil {
		return nil, err
	}
	if _, err := p.hear(subscribers...); err != nil {
		return nil, err
	}
	publishers, err := p.startPublishers(o, m)
	if err != nil {
		return nil, err
	}
	if _, err := p.hear(publishers...); err != nil {
		return nil, err
	}
	meter, err := startMeter(m)
	if err != nil {
		return nil, err
	}
	if err := tellAll(append(subscribers[:len(subscribers):len(subscribers)], publishers...), goLine); err != nil {
		return nil, err
	}
	sent, err := p.hear(publishers...)
	if err != nil {
		return nil, err
	}
	if err := tellAll(subscribers, finishLine); err != nil {
		return nil, err
	}
	received, err := p.hear(subscribers...)
	if err != nil {
		return nil, err
	}
	return o.sumUp(sent, received, meter)
}

// sumUp makes a Run of what the endpoints saw, and checks that it adds up.
func (o *Options) sumUp(sent, received []*result, m *meter) (*Run, error) {
	run := &Run{}
	start, end := sent[0].Start, int64(0)
	for _, r := range sent {
		start = min(start, r.Start)
		run.Published += r.Published
	}
	var latency histogram
	for _, r := range received {
		end = max(end, r.End)
		run.Deliveries += r.Received
		run.Dropped += r.Told
		latency.merge(&r.Latency)
	}
	if due := run.Published * uint64(o.Subscribers); due != run.Deliveries+run.Dropped {
		return nil, fmt.Errorf("%d messages to %d subscribers should make %d: %d arrived and %d were told as dropped",
			run.Published, o.Subscribers, due, run.Deliveries, run.Dropped)
	}
	run.Seconds = float64(end-start) / 1e9
	run.PerSecond = float64(run.Deliveries) / run.Seconds
	run.setLatency(&latency)
	return run, m.stop(run)
}

func (r *Run) setLatency(h *histogram) {
	us := func(ns int64) float64 { return float64(ns) / 1e3 }
	r.P50, r.P99, r.P999 = us(h.quantile(0.5)), us(h.quantile(0.99)), us(h.quantile(0.999))
	r.Max = us(h.max)
}

// startSubscribers starts the subscribers' processes: one each up to 64, above that
// fewer with many connections each, for a thousand processes would measure the
// scheduler.
func (p *party) startSubscribers(o *Options, m *middle) ([]*child, error) {
	var children []*child
	for _, n := range spread(o.Subscribers) {
		c, err := p.startRole("subscriber", fmt.Sprintf("subscriber %d", len(children)+1), &job{
			Network: o.Network, Path: m.out(), Relay: m.relay, Endpoints: o.Endpoints,
			Conns: n, Publishers: o.Publishers, Size: o.Size,
			Filter: topicPrefix() + "#", Policy: o.Policy, Latency: o.Mode == Steady,
		})
		if err != nil {
			return nil, err
		}
		children = append(children, c)
	}
	return children, nil
}

// spread returns how many connections each process has.
func spread(connections int) []int {
	processes := connections
	if connections > maxProcesses {
		processes = min(maxProcesses, (connections+manyInEach-1)/manyInEach)
	}
	each := make([]int, processes)
	for i := range connections {
		each[i%processes]++
	}
	return each
}

func (p *party) startPublishers(o *Options, m *middle) ([]*child, error) {
	topics := topicNames(o.Topics)
	var children []*child
	for i := range o.Publishers {
		j := &job{
			Network: o.Network, Path: m.in(), Relay: m.relay, Endpoints: o.Endpoints,
			Index: i, Publishers: o.Publishers, Topics: topics, Size: o.Size,
			WriteSize: o.WriteSize, Messages: o.Messages, Duration: o.Duration,
		}
		if o.Mode == Steady {
			j.Rate = float64(o.Rate) / float64(o.Publishers)
		}
		c, err := p.startRole("publisher", fmt.Sprintf("publisher %d", i+1), j)
		if err != nil {
			return nil, err
		}
		children = append(children, c)
	}
	return children, nil
}

// topicPrefix begins every topic of this bench; two at once on one broker do not mix.
func topicPrefix() string { return fmt.Sprintf("bench/%d/", os.Getpid()) }

// topicNames returns n topics of equal length.
func topicNames(n int) []string {
	width := len(fmt.Sprint(n - 1))
	topics := make([]string, n)
	for i := range topics {
		topics[i] = fmt.Sprintf("%s%0*d", topicPrefix(), width, i)
	}
	return topics
}

// roundTrips lets one client send to another, which sends back.
func (p *party) roundTrips(o *Options, m *middle) (*Run, error) {
	there, back := topicPrefix()+thereTopic, topicPrefix()+backTopic
	j := job{
		Network: o.Network, Path: m.pair(), Relay: m.relay, Endpoints: o.Endpoints,
		Size: o.Size, Policy: o.Policy, Messages: o.Messages, Duration: o.Duration,
	}
	j.Topics, j.Filter = []string{back}, there
	far, err := p.startRole("echo", "the far client", &j)
	if err != nil {
		return nil, err
	}
	j.Topics, j.Filter = []string{there}, back
	near, err := p.startRole("ping", "the near client", &j)
	if err != nil {
		return nil, err
	}
	if _, err := p.hear(far, near); err != nil {
		return nil, err
	}
	meter, err := startMeter(m)
	if err != nil {
		return nil, err
	}
	if err := tellAll([]*child{far, near}, goLine); err != nil {
		return nil, err
	}
	results, err := p.hear(near, far)
	if err != nil {
		return nil, err
	}
	r := results[0]
	run := &Run{Published: 2 * r.Published, Deliveries: 2 * r.Received, Seconds: float64(r.End-r.Start) / 1e9}
	run.setLatency(&r.Latency)
	return run, meter.stop(run)
}

// idleMemory opens subscribed connections and looks at what they cost the broker.
func (p *party) idleMemory(o *Options, m *middle) (*Run, error) {
	_, before, err := memory(m.pid)
	if err != nil {
		return nil, err
	}
	var children []*child
	for _, n := range spread(o.Subscribers) {
		c, err := p.startRole("idler", fmt.Sprintf("idle client %d", len(children)+1), &job{
			Network: o.Network, Path: m.path, Conns: n, Size: MinSize,
			Filter: topicPrefix() + "idle", Policy: wire.DropOld,
		})
		if err != nil {
			return nil, err
		}
		children = append(children, c)
	}
	if _, err := p.hear(children...); err != nil {
		return nil, err
	}
	run := &Run{Connections: o.Subscribers}
	lowest := int64(0)
	// What the handshakes left behind goes with the broker's next garbage collection.
	for end := time.Now().Add(o.Duration); ; {
		all, own, err := memory(m.pid)
		if err != nil {
			return nil, err
		}
		if lowest == 0 || own < lowest {
			lowest, run.RSS = own, all
		}
		if time.Now().After(end) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	run.BytesPerConnection = float64(lowest-before) / float64(o.Subscribers)
	return run, nil
}

// meter reads the CPU time of the process in the middle before and after.
type meter struct {
	pid   int
	start int64
}

func startMeter(m *middle) (*meter, error) {
	cpu, err := cpuTime(m.pid)
	if err != nil {
		return nil, fmt.Errorf("read the CPU time of process %d: %w", m.pid, err)
	}
	return &meter{pid: m.pid, start: cpu}, nil
}

// stop enters what the run cost.
func (m *meter) stop(run *Run) error {
	cpu, err := cpuTime(m.pid)
	if err != nil {
		return fmt.Errorf("read the CPU time of process %d: %w", m.pid, err)
	}
	run.CPUPerMillion = float64(cpu-m.start) / 1e3 / float64(max(run.Deliveries, 1))
	run.RSS, _, err = memory(m.pid)
	return err
}
