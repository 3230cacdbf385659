package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/cmd/postbus/internal/bench"
	"github.com/postbus/postbus/wire"
)

// benchFlags are the flags that are not options of bench as they stand.
type benchFlags struct {
	options           bench.Options
	mode, network     string
	policy, compare   string
	queue             string
	size, write, read sizeFlag
	json, quiet       bool
}

// newBench returns the command that measures.
func newBench() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure throughput, latency and cost",
		Long: `bench starts a broker of its own, publishers and subscribers, each a process of its
own, lets the publishers send, checks that what arrives is complete and in order,
and says how much came, how long it took, and what CPU and memory the broker used.

  postbus bench --subs 8 --compare relay       1 publisher, 8 subscribers, beside a relay
  postbus bench --mode latency                 there and back, one message in flight
  postbus bench --rate 20000                   latency at a steady rate
  postbus bench --mode idle --subs 2000        memory of connections that do nothing
  postbus bench --suite                        all that a release is measured by
  postbus bench --queue disk --compare redis   a queue filled, then emptied
  postbus bench --queue memory --one-at-a-time each push waits for its ack
  postbus bench --queue disk --backlog 1,1000000   cost and memory with so many queued
  postbus bench --queue all --suite            all of that for queues, beside others

The relay of --compare relay is the least that can stand between them: it copies what
it reads to every subscriber and looks at nothing. It runs in turn with the broker
and the ratio is taken pair by pair, so that what else the machine does hits both.

With --queue pushers fill a queue, each push acknowledged at its level, and then
consumers empty it, each message acknowledged. It can be compared with a stream of
redis-server, the tube of beanstalkd (both are started for it, without a TCP port,
and must be installed) or bare System V message queues (msgq).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context()) },
	}
	f.add(cmd)
	for _, role := range bench.Roles() {
		cmd.AddCommand(&cobra.Command{
			Use: role, Hidden: true, Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				return benchError(bench.Child(role, os.Stdin, os.Stdout))
			},
		})
	}
	return cmd
}

func (f *benchFlags) add(cmd *cobra.Command) {
	flags, o := cmd.Flags(), &f.options
	flags.StringVar(&f.mode, "mode", "", "`MODE`: throughput, latency (round trip), rate (one-way latency), idle (memory)\n(default throughput, or rate with --rate)")
	flags.StringVar(&f.network, "network", "stream", "`NETWORK`: stream, packet or both")
	flags.IntVar(&o.Publishers, "pubs", 1, "`N` publishers")
	flags.IntVar(&o.Subscribers, "subs", 0, "`N` subscribers (default 1, with --mode idle 2000);\nabove 64, processes have many connections each")
	flags.IntVar(&o.Topics, "topics", 1, "spread the messages over `N` topics")
	flags.Var(&f.size, "size", "`SIZE` of a message's body (default 128)")
	flags.IntVar(&o.Rate, "rate", 0, "`N` messages a second of all publishers together (0: as fast as possible)")
	flags.DurationVar(&o.Duration, "duration", 0, "`TIME` that a run takes (default 2s)")
	flags.IntVar(&o.Messages, "messages", 0, "end a run after `N` messages of each publisher (pusher) instead")
	flags.IntVar(&o.Runs, "runs", 5, "`N` runs, of which the median counts")
	flags.StringVar(&f.policy, "policy", wire.Block.String(), "`POLICY` of the subscriptions: block, drop-old, drop-new, latest")
	flags.StringVar(&f.compare, "compare", "", "`WHAT` to run in turn: relay; with --queue redis, beanstalkd or msgq")
	flags.StringVar(&o.Address, "address", "", "an existing broker's `ADDRESS` (default: a broker of its own for each run)")
	flags.StringVar(&o.Endpoints, "endpoints", "raw", "`KIND` of publishers and subscribers: raw (frames over sockets), client (the Go client)")
	flags.Var(&f.write, "write-size", "`SIZE` that a publisher writes at once (default 64k)")
	flags.Var(&f.read, "read-size", "`SIZE` that the relay reads at once (default 128k, as the broker)")
	flags.StringVar(&f.queue, "queue", "", "measure a queue, of `LEVEL` memory, kernel, disk or disk-interval\n(for --suite also all)")
	flags.IntVar(&o.Pushers, "pushers", 0, "`N` pushers, each a process (default 1)")
	flags.IntVar(&o.Consumers, "consumers", 0, "`N` consumers, each a process (default as many as pushers)")
	flags.IntVar(&o.Prefetch, "prefetch", 0, "`N` messages that a consumer has in flight (default 1000)")
	flags.IntVar(&o.AckBatch, "ack-batch", 0, "`N` messages at most acknowledged at once (default: all that came at once)")
	flags.BoolVar(&o.OneAtATime, "one-at-a-time", false, "push each message when the one before is acknowledged")
	flags.IntSliceVar(&o.Backlogs, "backlog", nil, "push and take with `N,...` messages in the queue")
	flags.BoolVar(&o.Suite, "suite", false, "measure all that a release is measured by")
	flags.StringVar(&o.CPUProfile, "cpuprofile", "", "write a CPU profile of the broker, of the last run, to `FILE`\n(with --queue FILE.push and FILE.take, with .N for each round)")
	flags.BoolVar(&f.json, "json", false, "print the result as JSON")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "do not show on a terminal what is under way")
}

func (f *benchFlags) run(ctx context.Context) error {
	if err := f.fill(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	report, err := bench.Measure(ctx, f.options)
	if report != nil && len(report.Outcomes) > 0 {
		write := report.WriteTable
		if f.json {
			write = report.WriteJSON
		}
		err = errors.Join(err, write(os.Stdout))
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return benchError(err)
}

// fill completes the options from the flags that need reading.
func (f *benchFlags) fill() error {
	policy, err := wire.ParsePolicy(f.policy)
	if err != nil {
		return &usageError{err}
	}
	o := &f.options
	o.Queue = bench.QueueLevel(f.queue)
	switch {
	case f.queue != "":
		o.Compare = bench.Server(f.compare)
	case f.compare != "" && f.compare != "relay":
		return usagef("--compare %s: without --queue the only thing to compare with is relay", f.compare)
	}
	o.Mode, o.Network, o.Policy, o.Relay = bench.Mode(f.mode), bench.Network(f.network), policy, f.compare == "relay"
	o.Size, o.WriteSize, o.ReadSize = int(f.size), int(f.write), int(f.read)
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil && !f.quiet {
		o.Progress = os.Stderr
	}
	return nil
}

// benchError makes a mistake in the options one of the command line.
func benchError(err error) error {
	var usage *bench.UsageError
	if errors.As(err, &usage) {
		return &usageError{err}
	}
	return err
}
