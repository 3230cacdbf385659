package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// importing is one run of `postbus sysv import`.
type importing struct {
	target     *target
	source     kernelQueueFlag
	state      stateFlag
	queue      string
	topic      string
	requireSub bool
	mtype      int64
	count      int
	follow     bool
	noCopy     bool
	timeout    time.Duration
	json       bool
	quiet      bool
	ready      readiness
}

func newSysVImport(to *target) *cobra.Command {
	im := &importing{target: to}
	cmd := &cobra.Command{
		Use:   "import QUEUE",
		Short: "Move an old program's messages into a queue, or to a topic",
		Long: `Import takes the messages out of an existing kernel queue and pushes them into
QUEUE, which must be there (see postbus queue create), or publishes them to the
topic --topic. It ends when the kernel queue is empty; with --follow it stays. The
type of each message goes with it as header sysv-type.

No message is lost when this process or the broker is killed at any moment. Import
copies messages with MSG_COPY, waits until they are kept at QUEUE's level, and only
then receives exactly these. On a kernel without MSG_COPY, and with --no-copy, it
receives them into a journal in --state first (this user's, if no bus is named).
Started again it goes on where it was killed; QUEUE takes no message twice as long as it remembers their ids (queue create
--dedup). A --topic has no such memory: there, the messages that were on their way at
a kill may come twice. And a queue of level memory does not outlive its broker.

While a queue is full import waits. If another program receives from the same kernel
queue, import finishes what it has begun, says so, and ends with 1; with --no-copy
each message goes to one of the two.`,
		Example: `  ipcs -q                                       # which keys there are
  postbus queue create --level disk orders
  postbus sysv import --key 0x5105 orders
  postbus sysv import --follow --path /etc/app.conf --proj A orders
  postbus sysv import --id 32769 --type 3 --topic app/alarms`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeQueues(to, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				im.queue = args[0]
			}
			return im.run(cmd.Context())
		},
	}
	im.source.addFlags(cmd)
	im.state.addFlag(cmd.Flags())
	flags := cmd.Flags()
	flags.StringVar(&im.topic, "topic", "", "publish to `TOPIC` in place of a queue")
	flags.BoolVar(&im.requireSub, "require-sub", true, "with --topic: stop (exit 100) at a message that nobody is\nsubscribed to, and leave it where it is")
	flags.Int64Var(&im.mtype, "type", 0, "only messages of type `N` (default: all)")
	flags.IntVarP(&im.count, "count", "n", 0, "end after `N` messages")
	flags.BoolVar(&im.follow, "follow", false, "wait for more when the kernel queue is empty, looking every 1 to 50 ms")
	flags.BoolVar(&im.noCopy, "no-copy", false, "do as on a kernel without MSG_COPY")
	flags.DurationVar(&im.timeout, "timeout", 0, "end after `TIME` in all, such as 10s: exit 124 if there was more to do")
	flags.BoolVar(&im.json, "json", false, "print what was done as a JSON object")
	flags.BoolVarP(&im.quiet, "quiet", "q", false, "print nothing, and no warnings")
	im.ready.addFlags(flags, "it begins")
	return cmd
}

func (im *importing) check() error {
	switch {
	case (im.queue == "") == (im.topic == ""):
		return usagef("where to: name either a queue or --topic")
	case im.count < 0:
		return usagef("-n %d: it must be above 0", im.count)
	case im.mtype < 0:
		return usagef("--type %d: types are above 0", im.mtype)
	case im.timeout < 0:
		return usagef("--timeout %v: it must be 0 or more", im.timeout)
	}
	if _, _, err := im.source.byKey(); err != nil {
		return err
	}
	err := im.ready.check()
	if err == nil && im.queue != "" {
		err = wire.CheckQueueName(im.queue)
	} else if err == nil {
		err = wire.CheckTopic(im.topic)
	}
	if err != nil {
		return &usageError{err}
	}
	return nil
}

func (im *importing) run(ctx context.Context) error {
	if err := im.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if im.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, im.timeout, errTimeout)
		defer stop()
	}
	defer onSignal(func() { cancel(errInterrupted) }, unix.SIGINT, unix.SIGTERM)()

	opts := im.target.options("postbus sysv import")
	if im.follow {
		opts.ReconnectFor = -1 // it has nothing better to do than to wait for a broker
	}
	c, err := client.Dial(ctx, autostarting(opts))
	if err != nil {
		return endedBy(ctx, err)
	}
	defer c.Close()
	to, err := im.destination(ctx, c)
	if err != nil {
		return endedBy(ctx, err)
	}
	return im.move(ctx, to)
}

// warn tells what the user should know.
func (im *importing) warn(format string, args ...any) {
	if !im.quiet {
		fmt.Fprintf(os.Stderr, "postbus sysv import: "+format+"\n", args...)
	}
}

// destination returns where the messages go.
func (im *importing) destination(ctx context.Context, c *client.Client) (destination, error) {
	if im.topic != "" {
		return &topicDestination{client: c, topic: im.topic, requireSub: im.requireSub}, nil
	}
	q := c.Queue(im.queue)
	info, err := q.Info(ctx)
	if err != nil {
		return nil, err
	}
	if info.Settings.Level == "memory" {
		im.warn("queue %s is of level memory: what is moved there ends with the broker", im.queue)
	}
	if info.Settings.DedupMS < 0 {
		im.warn("queue %s remembers no ids (--dedup): what is on its way at a kill may come twice", im.queue)
	}
	return &queueDestination{client: c, queue: q, label: im.queue, oneByOne: info.Settings.DedupMS < 0, warn: im.warn}, nil
}

// move finds the kernel queue and its journal and moves messages until it is time to end.
func (im *importing) move(ctx context.Context, to destination) error {
	mover, err := im.open(to)
	if err != nil {
		return err
	}
	err = im.ready.announce()
	if err == nil {
		err = im.until(ctx, mover)
	}
	if cerr := mover.journal.close(); err == nil {
		err = cerr
	}
	if err := im.report(mover); err != nil {
		return err
	}
	missed := !im.follow
	if im.count > 0 {
		missed = mover.imported < im.count
	}
	if err != errInterrupted && err != errTimeout {
		return err
	}
	if missed {
		return fmt.Errorf("%s moved: %w", plural(mover.imported, "message"), err)
	}
	return nil
}

// open returns an importer with an open journal.
func (im *importing) open(to destination) (*importer, error) {
	files, _, _, err := im.state.keyFiles(im.target)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	dir, err := im.state.ownPath(im.target)
	if err != nil {
		return nil, err
	}
	key, _, err := im.source.byKey()
	if err != nil {
		return nil, err
	}
	source, openErr := im.source.open()
	if openErr == nil {
		key = source.Key()
		if err := refuseOurs(files, source); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the directory for this import's journal: name another with --state: %w", err)
	}
	// A queue that is gone may have left its messages in the journal.
	journal, err := openJournal(journalPath(dir, key, im.source.id), openErr == nil)
	if err != nil {
		return nil, err
	}
	if journal == nil {
		return nil, openErr
	}
	return &importer{source: source, missing: openErr, journal: journal, to: to, mtype: im.mtype, take: im.noCopy, guess: firstGuess}, nil
}

// until moves messages until there are no more, -n is reached, or ctx ends; then the batch
// on the way is brought to its end, if that does not take long.
func (im *importing) until(ctx context.Context, mover *importer) error {
	working, cancel := lingering(ctx, importLinger)
	defer cancel()
	if err := mover.resume(working); err != nil {
		return endedBy(working, err)
	}
	if mover.source == nil {
		return mover.missing
	}
	pause := pollMin
	for im.count == 0 || mover.imported < im.count {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		limit := importBatch
		if im.count > 0 {
			limit = min(limit, im.count-mover.imported)
		}
		n, err := mover.batch(working, limit)
		switch {
		case errors.Is(err, store.ErrNoCopy):
			mover.take = true
		case err != nil:
			return endedBy(working, err)
		case n > 0:
			pause = pollMin
		case !im.follow:
			return nil
		default:
			if err := mover.await(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, pollMax)
		}
	}
	return nil
}

// importLinger is how long a batch on the way may still take when it is time to end.
const importLinger = 5 * time.Second

// lingering returns a context that ends so long after ctx, with its cause.
func lingering(ctx context.Context, after time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-late.Done():
		case <-time.After(after):
			cancel(context.Cause(ctx))
		}
	})
	return late, func() { stop(); cancel(nil) }
}

// jsonImport is what sysv import --json prints.
type jsonImport struct {
	KernelQueue string `json:"kernel_queue"`
	To          string `json:"to"`
	Imported    int    `json:"imported"`
	Resumed     int    `json:"resumed"` // of these, what an import before had left on the way
	NoCopy      bool   `json:"no_copy,omitempty"`
	OtherReader bool   `json:"other_reader,omitempty"`
}

// report prints what was done.
func (im *importing) report(mover *importer) error {
	if im.quiet {
		return nil
	}
	from := "a kernel queue that is gone"
	if mover.source != nil {
		from = mover.source.String()
	}
	out := output{file: os.Stdout}
	if im.json {
		out.printJSON(jsonImport{from, mover.to.name(), mover.imported, mover.resumed, mover.take, mover.others})
		return out.flush()
	}
	out.buf = fmt.Appendf(out.buf, "%s from %s into %s", plural(mover.imported, "message"), from, mover.to.name())
	if mover.resumed > 0 {
		out.buf = fmt.Appendf(out.buf, ", %d of them begun by an import before", mover.resumed)
	}
	out.buf = append(out.buf, '\n')
	return out.flush()
}
