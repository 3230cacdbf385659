package bench

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// QueueLevel is a level of queues, as `postbus queue create` has it.
type QueueLevel string

// The levels. AllQueues means one after the other.
const (
	MemoryQueue       QueueLevel = "memory"
	KernelQueue       QueueLevel = "kernel"
	DiskQueue         QueueLevel = "disk"
	DiskIntervalQueue QueueLevel = "disk-interval"
	AllQueues         QueueLevel = "all"
)

// wireLevels are the levels that a push is acknowledged at.
var wireLevels = map[QueueLevel]wire.Level{
	MemoryQueue:       wire.LevelMemory,
	KernelQueue:       wire.LevelKernel,
	DiskQueue:         wire.LevelDisk,
	DiskIntervalQueue: wire.LevelDiskInterval,
}

// queueRun is one run on a queue: pushers and consumers in turn, round by round.
type queueRun struct {
	*party
	options   *Options
	holder    *holder
	counters  *counters
	pushers   []*child
	consumers []*child
	round     int
	run       Run
	latency   histogram

	pushCPU, takeCPU float64 // of the server, seconds
}

// runQueue measures a queue once.
func runQueue(ctx context.Context, o *Options, server Server) (*Run, error) {
	dir, err := os.MkdirTemp("", "postbus-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	syncAll(dir)
	q := &queueRun{party: newParty(ctx, queueGrace), options: o}
	defer q.end()
	if q.holder, err = q.startHolder(o, server, dir); q.holder != nil {
		defer q.holder.close()
	}
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "counters")
	if q.counters, err = createCounters(path); err != nil {
		return nil, err
	}
	defer q.counters.close()
	if err := q.startAll(path); err != nil {
		return nil, err
	}
	if err := q.measure(); err != nil {
		return nil, err
	}
	return q.sumUp(), nil
}

// syncAll writes what is still to be written to dir's file system: what the run before has
// left is not to be this one's burden.
func syncAll(dir string) {
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	defer d.Close()
	_ = unix.Syncfs(int(d.Fd()))
}

// startAll starts the pushers and the consumers. The consumers open the queue only in
// their turn.
func (q *queueRun) startAll(counters string) error {
	o := q.options
	j := job{
		Network: o.Network, Path: q.holder.path, Server: q.holder.server, Endpoints: o.Endpoints,
		Queue: queueName, MsgIDs: q.holder.msgIDs, Size: o.Size, WriteSize: o.WriteSize,
		Publishers: o.Pushers, Rounds: o.rounds(), Duration: o.Duration, Counters: counters,
		OneAtATime: o.OneAtATime, Prefetch: o.Prefetch, AckBatch: o.AckBatch,
		Keep: o.backlog >= o.Consumers*o.Prefetch,
	}
	if j.Server == Postbus {
		j.Level = wireLevels[o.Queue]
	}
	for i := range max(o.Pushers, o.Consumers) {
		j.Index = i
		if i < o.Pushers {
			j.Messages, j.Fill = share(o.inRound(), o.Pushers, i), share(o.backlog, o.Pushers, i)
			c, err := q.startRole("pusher", fmt.Sprintf("pusher %d", i+1), &j)
			if err != nil {
				return err
			}
			q.pushers = append(q.pushers, c)
		}
		if i < o.Consumers {
			c, err := q.startRole("consumer", fmt.Sprintf("consumer %d", i+1), &j)
			if err != nil {
				return err
			}
			q.consumers = append(q.consumers, c)
		}
	}
	_, err := q.hear(slices.Concat(q.pushers, q.consumers)...)
	return err
}

// share is the part of n that is the i-th's of so many.
func share(n, many, i int) int { return n/many + min(1, max(0, n%many-i)) }

// measure runs the rounds.
func (q *queueRun) measure() error {
	o := q.options
	if o.backlog > 0 {
		if err := q.fill(); err != nil {
			return err
		}
	}
	for q.round = range o.rounds() {
		p, pushed, err := q.phase(q.pushers, "push")
		if err != nil {
			return err
		}
		q.run.Pushed += pushed
		q.run.PushSeconds += p.seconds
		q.pushCPU += p.cpu
		q.counters.target.Add(int64(pushed))
		p, taken, err := q.phase(q.consumers, "take")
		if err != nil {
			return err
		}
		if taken != pushed {
			return fmt.Errorf("%d messages were pushed and %d taken", pushed, taken)
		}
		q.run.Taken += taken
		q.run.TakeSeconds += p.seconds
		q.takeCPU += p.cpu
	}
	return nil
}

// spent is what a phase took.
type spent struct {
	seconds float64
	cpu     float64 // of the server, seconds
}

// phase lets the pushers, or the consumers, run once, and returns how many messages
// they pushed or took.
func (q *queueRun) phase(children []*child, name string) (spent, uint64, error) {
	if err := q.profile(" " + q.options.CPUProfile + "." + name); err != nil {
		return spent{}, 0, err
	}
	cpu, err := q.cpu()
	if err != nil {
		return spent{}, 0, err
	}
	if err := tellAll(children, goLine); err != nil {
		return spent{}, 0, err
	}
	results, err := q.hear(children...)
	if err != nil {
		return spent{}, 0, err
	}
	after, err := q.cpu()
	if err == nil {
		err = q.profile("")
	}
	start, end, count := int64(math.MaxInt64), int64(0), uint64(0)
	for _, r := range results {
		start, end = min(start, r.Start), max(end, r.End)
		count += r.Published + r.Received
		q.latency.merge(&r.Latency)
	}
	return spent{seconds: float64(end-start) / 1e9, cpu: float64(after-cpu) / 1e9}, count, err
}

// profile has our broker begin a CPU profile, with a space and the path, or end it, with
// "", where profiles are wanted.
func (q *queueRun) profile(path string) error {
	if q.options.CPUProfile == "" || q.holder.server != Postbus {
		return nil
	}
	if path != "" && q.options.rounds() > 1 {
		path += fmt.Sprint(".", q.round)
	}
	_, err := q.askBroker(profileLine + path)
	return err
}

// cpu returns the CPU time of the server so far, in nanoseconds; of system calls alone
// there is none.
func (q *queueRun) cpu() (int64, error) {
	if q.holder.pid == 0 {
		return 0, nil
	}
	return cpuTime(q.holder.pid)
}

// askBroker asks the role "broker" something and waits for the answer.
func (q *queueRun) askBroker(line string) (*result, error) {
	if err := q.holder.child.tell(line); err != nil {
		return nil, err
	}
	results, err := q.hear(q.holder.child)
	if err != nil {
		return nil, err
	}
	return results[0], nil
}

// fill pushes the backlog and sees what memory it takes.
func (q *queueRun) fill() error {
	before, heapBefore, err := q.memory(0)
	if err != nil {
		return err
	}
	if _, _, err := q.phase(q.pushers, "fill"); err != nil {
		return err
	}
	after, heapAfter, err := q.memory(min(settleTime, q.options.Duration))
	if n := q.options.backlog; n >= manyQueued {
		q.run.BytesPerMessage = float64(after-before) / float64(n)
		q.run.HeapPerMessage = float64(heapAfter-heapBefore) / float64(n)
	}
	return err
}

// memory returns how much of its own the server has in memory, the lowest within that
// time, and then what objects a broker of ours has on its heap, in bytes.
func (q *queueRun) memory(within time.Duration) (own, heap int64, err error) {
	if q.holder.pid == 0 {
		return 0, 0, nil
	}
	for end := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		_, n, err := memory(q.holder.pid)
		if err != nil {
			return 0, 0, err
		}
		if own == 0 || n < own {
			own = n
		}
		if time.Now().After(end) {
			break
		}
	}
	if q.holder.server != Postbus {
		return own, 0, nil
	}
	r, err := q.askBroker(heapLine)
	if err != nil {
		return 0, 0, err
	}
	return own, r.Heap, nil
}

// sumUp makes a Run of the rounds.
func (q *queueRun) sumUp() *Run {
	r := &q.run
	r.Seconds = r.PushSeconds + r.TakeSeconds
	r.PushesPerSecond = float64(r.Pushed) / r.PushSeconds
	r.TakesPerSecond = float64(r.Taken) / r.TakeSeconds
	r.PushCPUPerMillion = q.pushCPU * 1e6 / float64(r.Pushed)
	r.TakeCPUPerMillion = q.takeCPU * 1e6 / float64(r.Taken)
	r.setLatency(&q.latency)
	if q.holder.pid != 0 {
		r.RSS, _, _ = memory(q.holder.pid)
	}
	return r
}
