package bench

import (
	"cmp"
	"fmt"
	"time"

	"github.com/postbus/postbus/wire"
)

// Defaults and limits of queues.
const (
	defaultPrefetch = 1000

	// A round is as many messages as are pushed before they are taken. Where a queue
	// has not room for many, or most of it stays, there are many rounds.
	messagesInRound = 1_000_000
	messagesOnTop   = 10_000 // of a backlog
	fewOnTop        = 2_000  // of one of level kernel
	manyRounds      = 20

	maxBacklog = 100_000_000
	manyQueued = 10_000 // from here on what one of them weighs can be told

	// What a kernel queue has, with the limits a kernel begins with: the segments of a
	// key (a byte of the key tells them apart), of msgmnb bytes each.
	kernelSegments = 254
	segmentBytes   = 16384
	recordBytes    = 40 // more than a message takes beyond its body

	// settleTime is how long a full queue is watched for the least memory it needs.
	settleTime = 500 * time.Millisecond

	// queueGrace is how long a run may take: the slowest yardstick syncs for each ack.
	queueGrace = 10 * time.Minute

	flat      = 1.3 // most that a message may cost where many wait, over where few do
	maxWeight = 350 // most bytes of memory for a queued message of 128 bytes
)

// checkQueue reports the first option of queues that makes no sense.
func (o *Options) checkQueue() error {
	if _, ok := wireLevels[o.Queue]; !ok && o.Queue != AllQueues {
		return usage("queue level %q is unknown: use memory, kernel, disk, disk-interval or all", o.Queue)
	}
	switch o.Compare {
	case Postbus, Redis, Beanstalkd, MsgQ:
	default:
		return usage("a queue cannot be compared with %q: use redis, beanstalkd or msgq", o.Compare)
	}
	bounds := []bound{
		{"pushers", o.Pushers, 1, maxProcesses},
		{"consumers", o.Consumers, 1, maxProcesses},
		{"messages of prefetch", o.Prefetch, 1, wire.MaxPrefetch},
		{"messages of an ack", o.AckBatch, 1, wire.MaxPrefetch},
		{"messages", o.Messages, 0, maxBacklog},
		{"bytes of a message", o.Size, MinSize, 64 << 10},
		{"runs", o.Runs, 1, maxRuns},
	}
	most := maxBacklog
	if o.Queue == KernelQueue {
		most = o.kernelRoom() - fewOnTop
	}
	for _, n := range o.Backlogs {
		bounds = append(bounds, bound{"messages in a queue of level " + string(o.Queue), n, 1, most})
	}
	return cmp.Or(checkBounds(bounds), o.checkQueueTogether())
}

// checkQueueTogether reports options that exclude each other.
func (o *Options) checkQueueTogether() error {
	switch {
	case o.Mode != o.defaultMode():
		return usage("mode %s is not for queues", o.Mode)
	case o.OneAtATime && len(o.Backlogs) > 0:
		return usage("a backlog and pushes one at a time are measured each by itself")
	case o.Subscribers != 1 || o.Publishers != 1 || o.Topics != 1 || o.Rate != 0 || o.Relay:
		return usage("publishers, subscribers, topics, a rate and a relay are not for queues: those have pushers and consumers")
	case o.Address != "":
		return usage("a bench of queues has brokers of its own: leave the address out")
	case o.Network == Both:
		return usage("a bench of queues is on one network: use stream or packet")
	case o.Compare != Postbus && o.Endpoints == clientEndpoints:
		return usage("compare with raw endpoints: the yardsticks have no other")
	case o.Compare == MsgQ && o.Queue != KernelQueue:
		return usage("message queues are compared with level kernel")
	case o.Queue == AllQueues && !o.Suite:
		return usage("queues of all levels are for the suite")
	}
	return nil
}

// kernelRoom is how many messages a queue of level kernel surely has room for.
func (o *Options) kernelRoom() int {
	return kernelSegments * segmentBytes / (o.Size + recordBytes) * 9 / 10
}

// rounds is how often a run pushes and takes.
func (o *Options) rounds() int {
	if o.Mode == Queueing && o.Queue == KernelQueue || o.Mode == Backlog {
		return manyRounds
	}
	return 1
}

// inRound is how many messages all pushers push at most before the consumers' turn.
func (o *Options) inRound() int {
	n := o.Messages * o.Pushers
	switch {
	case n == 0 && o.Mode == Backlog && o.Queue == KernelQueue:
		n = fewOnTop
	case n == 0 && o.Mode == Backlog:
		n = messagesOnTop
	case n == 0:
		n = messagesInRound
	}
	if o.Queue == KernelQueue {
		n = min(n, o.kernelRoom()-o.backlog)
	}
	return n
}

// queuePlan returns the scenarios that the options ask for.
func (o Options) queuePlan() []scenario {
	if o.Suite {
		return o.queueSuite()
	}
	if len(o.Backlogs) == 0 {
		return []scenario{o.queueScenario(reference(o.Compare), nil)}
	}
	var scenarios []scenario
	for _, o.backlog = range o.Backlogs {
		scenarios = append(scenarios, o.queueScenario(reference(o.Compare), nil))
	}
	return scenarios
}

func (o Options) queueScenario(r reference, goals map[string]goal) scenario {
	return scenario{name: o.queueTitle(), options: o, reference: r, goals: goals}
}

// queueTitle names what the options measure.
func (o *Options) queueTitle() string {
	title := string(o.Queue)
	if o.Pushers > 1 || o.Consumers > 1 {
		title += fmt.Sprintf(", %d→%d", o.Pushers, o.Consumers)
	}
	switch o.Mode {
	case OneByOne:
		title += ", one at a time"
	case Backlog:
		title += fmt.Sprintf(", %d queued", o.backlog)
	}
	return title
}

// queueSuite is what a release is measured by, with its goals, for the levels that the
// options name.
func (o Options) queueSuite() []scenario {
	o.Suite = false
	var scenarios []scenario
	for _, level := range []QueueLevel{MemoryQueue, KernelQueue, DiskQueue} {
		if o.Queue == level || o.Queue == AllQueues {
			s := o
			s.Queue = level
			scenarios = append(scenarios, s.queueEntries()...)
		}
	}
	return scenarios
}

// queueEntries are a level's entries of the suite.
func (o Options) queueEntries() []scenario {
	bothWays := func(g goal) map[string]goal { return map[string]goal{"push": g, "take": g} }
	oneByOne := o
	oneByOne.Mode, oneByOne.OneAtATime = OneByOne, true
	noSlower := map[string]goal{"p50": {atMost: 1}, "p99": {atMost: 1}}
	twice, third := bothWays(goal{atLeast: 2}), bothWays(goal{atLeast: 1. / 3, floor: 0.1})
	switch o.Queue {
	case KernelQueue:
		return append([]scenario{o.queueScenario(reference(MsgQ), third)}, o.flatness(1000, 10_000, 20_000)...)
	}
	return append([]scenario{
		o.queueScenario(reference(Redis), twice),
		oneByOne.queueScenario(reference(Beanstalkd), noSlower),
	}, o.flatness(1000, 100_000, 1_000_000)...)
}

// flatness are entries of the suite that compare a queue with that many messages in it
// with an empty one.
func (o Options) flatness(backlogs ...int) []scenario {
	o.Mode = Backlog
	goals := map[string]goal{"push cpu": {atMost: flat}, "take cpu": {atMost: flat}}
	if o.Queue == MemoryQueue {
		goals["memory"] = goal{atMost: maxWeight}
	}
	var scenarios []scenario
	for _, n := range backlogs {
		o.Backlogs, o.backlog = []int{n}, n
		scenarios = append(scenarios, o.queueScenario(emptyReference, goals))
	}
	return scenarios
}
