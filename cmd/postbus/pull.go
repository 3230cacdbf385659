package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// pullFlags are the flags of `postbus pull`.
type pullFlags struct {
	nul, raw, json bool
	format         string
	count          int
	follow         bool
	timeout        time.Duration
	ack            string
	prefetch       int
	lease          time.Duration
	retryDelay     time.Duration
	ready          readiness
}

// What --ack may be.
const (
	ackAuto   = "auto"
	ackManual = "manual"
)

const pullHelp = `Pull takes the next message of QUEUE and prints its body and a newline; with -n N it
takes so many, with --follow all that ever come. A message is acknowledged, and
thereby gone from the queue, only once it was written to standard output. What could
not be written, and what was not yet when a signal came, goes back to the queue at
once.

With COMMAND it is run for each message, one at a time, with the body on its standard
input. When it ends with 0 the message is acknowledged, else it goes back and comes
again after --retry-delay; as long as it runs the message is leased to it. Its
environment has POSTBUS_QUEUE, POSTBUS_TOPIC, POSTBUS_SEQ, POSTBUS_TRIES (1 the first
time), POSTBUS_REDELIVERED (1 if it may have been delivered before, else empty),
POSTBUS_KEY, POSTBUS_ID, POSTBUS_PRIORITY, POSTBUS_TIME (RFC 3339) and, of who pushed
it, POSTBUS_UID, POSTBUS_GID and POSTBUS_PID. At SIGINT or SIGTERM pull waits for the
command that runs.

With --ack manual pull prints and lets standard input say what becomes of each
message, by its number (%s, or seq of --json), a command a line:

  ack SEQ               it is done
  nack SEQ [TIME]       it is not: deliver it again, after a time such as 10s
  reject SEQ [REASON]   it never will be: make it a dead letter
  extend SEQ [TIME]     it takes longer: the lease ends so long from now (default:
                        as long as a new one)

At the end of standard input what is not settled goes back. The next message comes
when the one before is settled, or up to --prefetch of them at a time.

` + deliveryHelp + `

Exit codes: 0 when -n messages were taken; without -n (--follow) also at SIGINT,
SIGTERM and the end of --timeout. With it these are 1 and 124 if fewer were. 73 when
standard output could not be written. 66 when there is no such queue. 1 when a
command failed with -n, or when a message was dealt with after its lease was lost, so
that it may come again.`

func newPull(to *target) *cobra.Command {
	var f pullFlags
	cmd := &cobra.Command{
		Use:   "pull QUEUE [-- COMMAND [ARG]…]",
		Short: "Take messages out of a queue",
		Long:  pullHelp,
		Example: `  job=$(postbus pull jobs) && do-it "$job"      # one message
  postbus pull -n 0 --timeout 1s jobs           # all that is there
  postbus pull --follow jobs -- ./resize.sh     # a worker; start as many as you like
  coproc postbus pull --follow --ack manual -f '%s %b%n' jobs
  while read -r seq job; do do-it "$job" && echo "ack $seq" || echo "nack $seq 10s"
  done <&"${COPROC[0]}" >&"${COPROC[1]}"`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeQueues(to, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			command := args[1:]
			if len(command) > 0 && cmd.ArgsLenAtDash() != 1 {
				return usagef("%q: write the command after --", command[0])
			}
			p, err := newPuller(&f, args[0], command, cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return p.run(cmd.Context(), to)
		},
	}
	f.addFlags(cmd)
	return cmd
}

func (f *pullFlags) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVarP(&f.nul, "null", "0", false, "end each body with a NUL byte, not a newline")
	flags.BoolVar(&f.raw, "raw", false, "print bodies with nothing between them")
	flags.BoolVar(&f.json, "json", false, "print each message as a JSON object on a line of its own")
	flags.StringVarP(&f.format, "format", "f", "", "print each message as `FORMAT` says (see above)")
	flags.IntVarP(&f.count, "count", "n", 1, "end after `N` messages; 0: as --follow")
	flags.BoolVar(&f.follow, "follow", false, "take messages until a signal, or the end of --timeout")
	flags.DurationVar(&f.timeout, "timeout", 0, "end when for `TIME` no message has come (default: never)")
	flags.StringVar(&f.ack, "ack", ackAuto, "acknowledge what was written (auto), or what standard input says (manual): `HOW`")
	flags.IntVar(&f.prefetch, "prefetch", 0, "hold `N` messages at a time (default 64, with a command or --ack manual 1)")
	flags.DurationVar(&f.lease, "lease", 0, "a message is leased to this process for `TIME` at a time (default: the queue's)")
	flags.DurationVar(&f.retryDelay, "retry-delay", time.Second, "a message whose command failed comes again after `TIME`")
	f.ready.addFlags(flags, "messages can come")
	cmd.MarkFlagsMutuallyExclusive("null", "raw", "json", "format")
	cmd.MarkFlagsMutuallyExclusive("count", "follow")
	_ = cmd.RegisterFlagCompletionFunc("ack", cobra.FixedCompletions([]string{ackAuto, ackManual}, cobra.ShellCompDirectiveNoFileComp))
}

// puller is one run of `postbus pull`.
type puller struct {
	*pullFlags
	queue   string
	command []string
	append  printer[*client.Delivery]

	client *client.Client
	out    output
	seen   int // messages dealt with
	failed int // that should have ended otherwise
	again  int // that were dealt with and may come again
}

// newPuller checks the command line.
func newPuller(f *pullFlags, queue string, command []string, given func(flag string) bool) (*puller, error) {
	p := &puller{pullFlags: f, queue: queue, command: command, out: output{file: os.Stdout}}
	if err := wire.CheckQueueName(queue); err != nil {
		return nil, &usageError{err}
	}
	if f.follow {
		f.count = 0
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	if len(command) > 0 {
		for _, flag := range []string{"null", "raw", "json", "format", "ack"} {
			if given(flag) {
				return nil, usagef("--%s with a command: it gets the body, and its exit code is the answer", flag)
			}
		}
		if _, err := exec.LookPath(command[0]); err != nil {
			return nil, &usageError{err}
		}
	}
	var err error
	if p.append, err = f.printer(queue, given("format")); err != nil {
		return nil, &usageError{err}
	}
	return p, f.ready.check()
}

func (f *pullFlags) check() error {
	if f.count < 0 {
		return usagef("-n %d: it must be 0 or more", f.count)
	}
	if f.prefetch < 0 || f.prefetch > wire.MaxPrefetch {
		return usagef("--prefetch %d: it must be from 1 to %d", f.prefetch, wire.MaxPrefetch)
	}
	for name, d := range map[string]time.Duration{"timeout": f.timeout, "lease": f.lease, "retry-delay": f.retryDelay} {
		if d < 0 {
			return usagef("--%s %v: it must be 0 or more", name, d)
		}
	}
	if f.ack != ackAuto && f.ack != ackManual {
		return usagef("--ack %q: it must be auto or manual", f.ack)
	}
	return nil
}

// printer returns how messages are to be printed.
func (f *pullFlags) printer(queue string, formatGiven bool) (printer[*client.Delivery], error) {
	switch {
	case formatGiven:
		return parseFormatOf("pull", f.format, deliveryVerbs)
	case f.json:
		return jsonDeliveryLine(queue), nil
	case f.raw:
		return ofMessage(terminated("")), nil
	case f.nul:
		return ofMessage(terminated("\x00")), nil
	}
	return ofMessage(terminated("\n")), nil
}

var errNothingCame = timeIsUp("no message came for the time of --timeout")

func (p *puller) run(ctx context.Context, to *target) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer onSignal(func() { cancel(errInterrupted) }, unix.SIGINT, unix.SIGTERM)()
	if len(p.command) == 0 {
		keepOnBrokenPipe()
		endWatch, err := watchClosed(unix.Stdout, func() { cancel(errOutputClosed) })
		if err != nil {
			return err
		}
		defer endWatch()
	}
	c, err := client.Dial(ctx, autostarting(to.options("postbus pull")))
	if err != nil {
		return p.verdict(endedBy(ctx, err))
	}
	defer c.Close()
	p.client = c
	switch {
	case len(p.command) > 0:
		err = p.execute(ctx)
	case p.ack == ackManual:
		err = p.ask(ctx)
	default:
		err = p.print(ctx)
	}
	return p.verdict(err)
}

// enough reports whether all that was asked for has been dealt with.
func (p *puller) enough() bool { return p.count > 0 && p.seen >= p.count }

// verdict turns why it ended into the command's result.
func (p *puller) verdict(err error) error {
	short := p.count > 0 && p.seen < p.count
	switch {
	case orderly(err) && short:
		return fmt.Errorf("%d of %d messages were taken: %w", p.seen, p.count, err)
	case err != nil && !orderly(err):
		return err
	case p.count > 0 && p.again > 0:
		return fmt.Errorf("%d of %d messages may come again: %w", p.again, p.seen, client.ErrLeaseLost)
	case p.count > 0 && p.failed > 0 && p.ack == ackManual:
		return fmt.Errorf("%d lines of standard input were not carried out", p.failed)
	case p.count > 0 && p.failed > 0:
		return fmt.Errorf("%d of %d messages were not dealt with", p.failed, p.seen)
	}
	return nil
}

// orderly reports whether err is an end that a user may want.
func orderly(err error) bool {
	return err == errInterrupted || err == errOutputClosed || err == errNothingCame || err == errInputEnded
}

// errInputEnded says that nobody will settle any more.
var errInputEnded = errors.New("standard input ended")

// notWritten tells of messages that went back because they could not be written.
type notWritten struct {
	err   error // why
	n     int   // how many
	queue string
}

func (e *notWritten) Error() string {
	if e.n == 1 {
		return fmt.Sprintf("%v: 1 message went back to queue %s", e.err, e.queue)
	}
	return fmt.Sprintf("%v: %d messages went back to queue %s", e.err, e.n, e.queue)
}

func (e *notWritten) Unwrap() error        { return e.err }
func (e *notWritten) Is(target error) bool { return target == errNotWritten }

// say tells something on standard error.
func (p *puller) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "postbus pull: "+format+"\n", args...)
}

// tell tells of leases that a lost connection ended.
func (p *puller) tell(lost *client.LeasesLost) {
	p.say("the connection to the broker was lost and made again: %d messages at hand and %d dealt with just before may come again",
		len(lost.Unsettled), len(lost.Unconfirmed))
	p.again += len(lost.Unconfirmed)
}

// settled takes the result of settling a delivery.
func (p *puller) settled(err error) error {
	if errors.Is(err, client.ErrLeaseLost) {
		p.again++
		return nil
	}
	return err
}

// confirmPatience is how long the end waits for the broker to say that it has kept what
// was settled.
const confirmPatience = 5 * time.Second

// confirm waits until the broker has kept what was settled.
func (p *puller) confirm(consumer *client.Consumer) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), confirmPatience,
		timeIsUp(fmt.Sprintf("the broker has not confirmed within %v that what was acknowledged is gone from the queue", confirmPatience)))
	defer cancel()
	err := consumer.Flush(ctx)
	var lost *client.LeaseError
	if errors.As(err, &lost) {
		p.again += lost.Count
		return nil
	}
	return err
}
