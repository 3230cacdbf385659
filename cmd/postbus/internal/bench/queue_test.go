package bench_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/postbus/postbus/cmd/postbus/internal/bench"
)

// queueRun measures a queue once, with few messages.
func queueRun(t *testing.T, o bench.Options) *bench.Outcome {
	t.Helper()
	o.Runs, o.Duration = 1, time.Minute // ended by the number of messages
	if len(o.Backlogs) > 0 {
		o.Duration = time.Millisecond // for which it is watched
	}
	if o.Messages == 0 {
		o.Messages = 200
	}
	return measure(t, o).Outcomes[0]
}

func TestQueues(t *testing.T) {
	plain := []string{"push", "take", "push cpu", "take cpu", "rss"}
	for name, test := range map[string]struct {
		options bench.Options
		figures []string
	}{
		"memory":          {bench.Options{Queue: bench.MemoryQueue}, plain},
		"kernel":          {bench.Options{Queue: bench.KernelQueue, Compare: bench.MsgQ}, plain},
		"disk":            {bench.Options{Queue: bench.DiskQueue, Network: bench.Packet}, plain},
		"disk interval":   {bench.Options{Queue: bench.DiskIntervalQueue}, plain},
		"client":          {bench.Options{Queue: bench.MemoryQueue, Endpoints: "client", Pushers: 2}, plain},
		"several":         {bench.Options{Queue: bench.MemoryQueue, Pushers: 3, Consumers: 2, Prefetch: 10, AckBatch: 3}, plain},
		"one at a time":   {bench.Options{Queue: bench.DiskQueue, OneAtATime: true}, []string{"p50", "p99", "push", "push cpu"}},
		"backlog":         {bench.Options{Queue: bench.MemoryQueue, Backlogs: []int{100}}, plain},
		"backlog, client": {bench.Options{Queue: bench.MemoryQueue, Backlogs: []int{100}, Endpoints: "client"}, plain},
		"large backlog":   {bench.Options{Queue: bench.DiskQueue, Backlogs: []int{10_000}, Messages: 10}, []string{"push", "take", "push cpu", "take cpu", "memory", "heap", "rss"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkQueueRun(t, test.options, test.figures)
		})
	}
}

func checkQueueRun(t *testing.T, o bench.Options, figures []string) {
	t.Helper()
	out := queueRun(t, o)
	var names []string
	for _, f := range out.Figures {
		names = append(names, f.Name)
		if compared := o.Compare != bench.Postbus; f.Name == "push" && (f.Ratio != nil) != compared {
			t.Errorf("%s has the ratio %v, compared with %q", f.Name, f.Ratio, o.Compare)
		}
	}
	if !slices.Equal(names, figures) {
		t.Errorf("figures %v, want %v", names, figures)
	}
	for _, r := range slices.Concat(out.Runs, out.ReferenceRuns) {
		if r.Pushed == 0 || r.Taken != r.Pushed {
			t.Errorf("%d pushed and %d taken", r.Pushed, r.Taken)
		}
	}
}

// TestYardsticks needs the programs that make bench-queues installs.
func TestYardsticks(t *testing.T) {
	for _, server := range []bench.Server{bench.Redis, bench.Beanstalkd} {
		for _, level := range []bench.QueueLevel{bench.MemoryQueue, bench.DiskQueue} {
			t.Run(string(server)+" "+string(level), func(t *testing.T) {
				t.Parallel()
				program := map[bench.Server]string{bench.Redis: "redis-server", bench.Beanstalkd: "beanstalkd"}[server]
				if _, err := exec.LookPath(program); err != nil {
					t.Skip(err)
				}
				out := queueRun(t, bench.Options{Queue: level, Compare: server, Pushers: 2, Consumers: 3, Messages: 100})
				if r := out.ReferenceRuns[0]; r.Pushed != 200 || r.Taken != 200 {
					t.Errorf("%d pushed and %d taken, want 200", r.Pushed, r.Taken)
				}
			})
		}
	}
}

func TestQueueProfiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpu")
	queueRun(t, bench.Options{Queue: bench.MemoryQueue, CPUProfile: path})
	for _, phase := range []string{".push", ".take"} {
		if info, err := os.Stat(path + phase); err != nil || info.Size() == 0 {
			t.Errorf("the profile of %s is missing or empty: %v", phase, err)
		}
	}
}

func TestQueueUsage(t *testing.T) {
	for name, o := range map[string]bench.Options{
		"level":           {Queue: "tape"},
		"all":             {Queue: bench.AllQueues},
		"compare":         {Queue: bench.MemoryQueue, Compare: "kafka"},
		"compare kernel":  {Queue: bench.DiskQueue, Compare: bench.MsgQ},
		"compare client":  {Queue: bench.MemoryQueue, Compare: bench.Redis, Endpoints: "client"},
		"pushers":         {Queue: bench.MemoryQueue, Pushers: 65},
		"prefetch":        {Queue: bench.MemoryQueue, Prefetch: -1},
		"backlog":         {Queue: bench.MemoryQueue, Backlogs: []int{0}},
		"kernel backlog":  {Queue: bench.KernelQueue, Backlogs: []int{1_000_000}},
		"backlog and one": {Queue: bench.MemoryQueue, Backlogs: []int{1}, OneAtATime: true},
		"mode":            {Queue: bench.MemoryQueue, Mode: bench.Idle},
		"subscribers":     {Queue: bench.MemoryQueue, Subscribers: 2},
		"address":         {Queue: bench.MemoryQueue, Address: "/nowhere"},
		"networks":        {Queue: bench.MemoryQueue, Network: bench.Both},
		"no queue":        {Pushers: 2},
		"no queue either": {OneAtATime: true},
	} {
		t.Run(name, func(t *testing.T) {
			var usage *bench.UsageError
			if _, err := bench.Measure(t.Context(), o); !errors.As(err, &usage) {
				t.Errorf("got %v, want a UsageError", err)
			}
		})
	}
}
