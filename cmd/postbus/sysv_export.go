package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// exporting is one run of `postbus sysv export`.
type exporting struct {
	target  *target
	sink    kernelQueueFlag
	state   stateFlag
	filter  string
	queue   string
	mtype   int64
	create  bool
	mode    string
	remove  bool
	count   int
	timeout time.Duration
	idle    time.Duration
	json    bool
	quiet   bool
	ready   readiness
}

func newSysVExport(to *target) *cobra.Command {
	ex := &exporting{target: to}
	cmd := &cobra.Command{
		Use:   "export [FILTER]",
		Short: "Feed an old program that receives from a kernel queue",
		Long: `Export sends messages into a kernel queue, whose reader calls msgrcv(2) itself: the
bare bodies, of type --type, else of that in a message's header sysv-type, else 1. Where
the kernel queue is full it waits for its reader.

With --queue the messages are a queue's, and each is acked only once msgsnd(2) has
taken it: none is lost, and one whose ack a kill prevented comes twice. A body
that the kernel queue can never take, mostly one above kernel.msgmax, is rejected to the
dead letters with the reason. With FILTER they are those published to topics that match
it, from now on, with publishers waiting for the old reader (sub --policy block); what is
on its way at a kill is lost, and so is, told and counted, a body that is too large. To
lose none bind a queue: postbus queue create --bind FILTER.

Export ends with 0 at SIGINT or SIGTERM, with FILTER once it has sent what was published
before; a second signal ends it at once. It never removes the kernel queue, unless it has
made it itself (--create), --rm is given, and the reader has taken everything.`,
		Example: `  postbus sysv export --queue orders --path /etc/app.conf --proj 7 --create
  postbus sysv export 'sensors/#' --key 0x5105 --type 2
  postbus sysv export --queue orders --id 32769 -n 100 --timeout 1m`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				ex.filter = args[0]
			}
			return ex.run(cmd.Context())
		},
	}
	ex.sink.addFlags(cmd)
	ex.state.addFlag(cmd.Flags())
	flags := cmd.Flags()
	flags.StringVar(&ex.queue, "queue", "", "take the messages of queue `NAME` in place of FILTER's")
	flags.Int64Var(&ex.mtype, "type", 0, "send them with type `N`, above 0")
	flags.BoolVar(&ex.create, "create", false, "make the kernel queue if it is not there")
	flags.StringVar(&ex.mode, "mode", "0600", "with --create: `MODE` of the new kernel queue, in octal; the reader\nneeds the right to read")
	flags.BoolVar(&ex.remove, "rm", false, "with --create: remove the kernel queue at the end, if it was made\nhere and is empty")
	flags.IntVarP(&ex.count, "count", "n", 0, "end after `N` messages")
	flags.DurationVar(&ex.timeout, "timeout", 0, "end after `TIME` in all, such as 10s; exit 124 if there were fewer than -n")
	flags.DurationVar(&ex.idle, "idle", 0, "end when for `TIME` no message has come")
	flags.BoolVar(&ex.json, "json", false, "print what was done as a JSON object")
	flags.BoolVarP(&ex.quiet, "quiet", "q", false, "print nothing, and no warnings")
	ex.ready.addFlags(flags, "messages can come")
	return cmd
}

func (ex *exporting) check() (mode uint32, err error) {
	m, err := strconv.ParseUint(ex.mode, 8, 32)
	switch {
	case (ex.queue == "") == (ex.filter == ""):
		return 0, usagef("what: name either a FILTER or --queue")
	case ex.count < 0:
		return 0, usagef("-n %d: it must be above 0", ex.count)
	case ex.mtype < 0:
		return 0, usagef("--type %d: types are above 0", ex.mtype)
	case ex.timeout < 0 || ex.idle < 0:
		return 0, usagef("--timeout %v, --idle %v: they must be 0 or more", ex.timeout, ex.idle)
	case err != nil || m == 0 || m&^0o666 != 0:
		return 0, usagef("--mode %q: write it in octal, such as 0640; a queue has no rights to execute", ex.mode)
	case ex.create && ex.sink.id >= 0:
		return 0, usagef("--create with --id: the kernel chooses ids; use --key, or --path and --proj")
	case ex.remove && !ex.create:
		return 0, usagef("--rm goes with --create: a kernel queue that was there before is not removed")
	}
	if _, _, err := ex.sink.byKey(); err != nil {
		return 0, err
	}
	err = ex.ready.check()
	if err == nil && ex.queue != "" {
		err = wire.CheckQueueName(ex.queue)
	} else if err == nil {
		err = wire.CheckFilter(ex.filter)
	}
	if err != nil {
		return 0, &usageError{err}
	}
	return uint32(m), nil
}

// open finds or makes the kernel queue.
func (ex *exporting) open(mode uint32) (sink *store.Foreign, made bool, err error) {
	if ex.create {
		key, _, err := ex.sink.byKey()
		if err != nil {
			return nil, false, err
		}
		sink, made, err = store.MakeForeign(key, mode)
		if err != nil {
			return nil, false, err
		}
	} else if sink, err = ex.sink.open(); err != nil {
		return nil, false, err
	}
	if made {
		return sink, made, nil
	}
	files, _, _, err := ex.state.keyFiles(ex.target)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, false, err
	}
	return sink, made, refuseOurs(files, sink)
}

func (ex *exporting) run(ctx context.Context) error {
	mode, err := ex.check()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if ex.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, ex.timeout, errTimeout)
		defer stop()
	}
	defer onSignal(func() { cancel(errInterrupted) }, unix.SIGINT, unix.SIGTERM)()

	opts := ex.target.options("postbus sysv export")
	if ex.timeout == 0 && ex.idle == 0 {
		opts.ReconnectFor = -1 // it has nothing better to do than to wait for a broker
	}
	c, err := client.Dial(ctx, autostarting(opts))
	if err != nil {
		return endedBy(ctx, err)
	}
	defer c.Close()
	sink, made, err := ex.open(mode)
	if err != nil {
		return err
	}
	sender := &kernelSender{sink: sink, mtype: ex.mtype, warn: ex.warn}
	err = ex.feed(ctx, c, sender)
	if made && ex.remove {
		err = errors.Join(ex.verdict(err, sender), ex.removeEmpty(sink))
	} else {
		err = ex.verdict(err, sender)
	}
	return errors.Join(err, ex.report(sender))
}

func (ex *exporting) feed(ctx context.Context, c *client.Client, sender *kernelSender) error {
	if ex.queue != "" {
		return ex.feedQueue(ctx, c, sender)
	}
	return ex.feedTopic(ctx, c, sender)
}

// warn tells what the user should know.
func (ex *exporting) warn(format string, args ...any) {
	if !ex.quiet {
		fmt.Fprintf(os.Stderr, "postbus sysv export: "+format+"\n", args...)
	}
}

// verdict turns why it ended into the command's result.
func (ex *exporting) verdict(err error, s *kernelSender) error {
	switch err {
	case errInterrupted, errTimeout, errIdle:
		if ex.count > 0 && s.sent < ex.count {
			return fmt.Errorf("%d of %d messages were sent: %w", s.sent, ex.count, err)
		}
		return nil
	}
	return err
}

// removeEmpty removes the kernel queue if its reader has taken everything.
func (ex *exporting) removeEmpty(sink *store.Foreign) error {
	q, err := sink.Stat()
	switch {
	case errors.Is(err, store.ErrRemoved):
		return nil
	case err != nil:
		return err
	case q.Messages > 0:
		return fmt.Errorf("%v is not removed: its reader has left %s in it; ipcrm -q %d removes it with these", sink, plural(q.Messages, "message"), q.ID)
	}
	return sink.Remove()
}

// jsonExport is what sysv export --json prints.
type jsonExport struct {
	KernelQueue string `json:"kernel_queue"`
	Exported    int    `json:"exported"`
	TooLarge    int    `json:"too_large"`
}

func (ex *exporting) report(s *kernelSender) error {
	if ex.quiet {
		return nil
	}
	out := output{file: os.Stdout}
	if ex.json {
		out.printJSON(jsonExport{s.sink.String(), s.sent, s.tooLarge})
		return out.flush()
	}
	out.buf = fmt.Appendf(out.buf, "%s into %v", plural(s.sent, "message"), s.sink)
	if s.tooLarge > 0 {
		out.buf = fmt.Appendf(out.buf, ", %d too large for it", s.tooLarge)
	}
	out.buf = append(out.buf, '\n')
	return out.flush()
}
