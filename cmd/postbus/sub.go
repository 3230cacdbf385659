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
	"github.com/postbus/postbus/wire"
)

// subFlags are the flags of `postbus sub`.
type subFlags struct {
	nul, raw, json bool
	format         string
	count          int
	timeout        time.Duration
	idle           time.Duration
	policy         string
	buffer         bufferFlag
	credit         sizeFlag
	strict         bool
	quiet          bool
	ready          readiness
}

func newSub(to *target) *cobra.Command {
	var f subFlags
	cmd := &cobra.Command{
		Use:   "sub [FILTER]…",
		Short: "Print messages as they come",
		Long: `Sub prints the body of each message whose topic matches a FILTER, and a newline.
Without FILTER it takes all topics. In a filter + stands for one level and a
final # for any number of them: build/+/done, build/#.

` + formatHelp + `

A message is printed at once when no other waits behind it, else in batches.
Messages that the broker had to drop, because this reader was too slow (see
--policy) or away, are told on standard error, with --json also in their place.

Sub ends with 0 at SIGINT or SIGTERM, once it has printed what the broker had for
it (a second signal ends it at once); when standard output is closed, even if no
message comes; and without -n at the end of --timeout or --idle. With -n those two
ends are exit 124, and the signals 1, if fewer messages came.`,
		Example: `  postbus sub 'build/#'
  postbus sub --json build/+/done | jq .body
  postbus sub -f '%T %t %b%n' >> log
  postbus sub -n 1 --timeout 1m build/linux/done || echo not built
  postbus sub --ready-file up job/start & …     # wait for the file, then publish`,
		RunE: func(cmd *cobra.Command, filters []string) error {
			s, err := newSubscriber(&f, filters, cmd.Flags().Changed("format"))
			if err != nil {
				return &usageError{err}
			}
			return s.run(cmd.Context(), to)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.nul, "null", "0", false, "end each body with a NUL byte, not a newline")
	flags.BoolVar(&f.raw, "raw", false, "print bodies with nothing between them")
	flags.BoolVar(&f.json, "json", false, "print each message as a JSON object on a line of its own")
	flags.StringVarP(&f.format, "format", "f", "", "print each message as `FORMAT` says (see above)")
	flags.IntVarP(&f.count, "count", "n", 0, "end after `N` messages")
	flags.DurationVar(&f.timeout, "timeout", 0, "end after `TIME` in all, such as 10s")
	flags.DurationVar(&f.idle, "idle", 0, "end when for `TIME` no message has come")
	flags.StringVar(&f.policy, "policy", "drop-old",
		"what happens when this reader is slow and its buffer full: drop-old,\n"+
			"drop-new, latest (one per topic is kept), block (publishers wait) or\ndisconnect (exit 74); by `POLICY`")
	flags.Var(&f.buffer, "buffer", "bound of the broker's buffer for this reader: messages (1000),\nbytes (8MiB) or both (1000,8MiB)")
	flags.Var(&f.credit, "credit", "messages fetched ahead into this process, in bytes (default 1MiB)")
	flags.BoolVar(&f.strict, "strict", false, "end with exit 74 when messages were lost")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "say nothing on standard error of messages lost")
	f.ready.addFlags(flags, "subscribed")
	cmd.MarkFlagsMutuallyExclusive("null", "raw", "json", "format")
	return cmd
}

// formatter returns how messages are to be printed.
func (f *subFlags) formatter(formatGiven bool) (formatter, error) {
	switch {
	case formatGiven:
		return parseFormat(f.format)
	case f.json:
		return jsonLine, nil
	case f.raw:
		return terminated(""), nil
	case f.nul:
		return terminated("\x00"), nil
	}
	return terminated("\n"), nil
}

// subscriber is one run of `postbus sub`.
type subscriber struct {
	*subFlags
	filters []string
	policy  client.Policy
	append  formatter

	sub  *client.Subscription
	near int // messages that it gives without waiting, at least
	out  output
	seen int // messages printed
}

// newSubscriber checks the command line.
func newSubscriber(f *subFlags, filters []string, formatGiven bool) (*subscriber, error) {
	s := &subscriber{subFlags: f, filters: filters, out: output{file: os.Stdout}}
	if len(filters) == 0 {
		s.filters = []string{"#"}
	}
	for _, filter := range s.filters {
		if err := wire.CheckFilter(filter); err != nil {
			return nil, err
		}
	}
	if f.count < 0 {
		return nil, fmt.Errorf("-n %d: it must be above 0", f.count)
	}
	if f.timeout < 0 || f.idle < 0 {
		return nil, fmt.Errorf("--timeout %v, --idle %v: they must be 0 or more", f.timeout, f.idle)
	}
	var err error
	if s.policy, err = wire.ParsePolicy(f.policy); err != nil {
		return nil, err
	}
	if s.append, err = f.formatter(formatGiven); err != nil {
		return nil, err
	}
	return s, f.ready.check()
}

// Why a stream of messages ends, besides the errors of the connection.
var (
	errInterrupted = errors.New("interrupted")
	errTimeout     = timeIsUp("the time of --timeout is over")
	errIdle        = timeIsUp("no message came for the time of --idle")
)

func (s *subscriber) run(ctx context.Context, to *target) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if s.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, s.timeout, errTimeout)
		defer stop()
	}
	defer onSignal(func() { cancel(errInterrupted) }, unix.SIGINT, unix.SIGTERM)()
	keepOnBrokenPipe()
	endWatch, err := watchClosed(unix.Stdout, func() { cancel(errOutputClosed) })
	if err != nil {
		return err
	}
	defer endWatch()
	err = s.verdict(s.connectAndPrint(ctx, to))
	if ferr := s.out.flush(); err == nil {
		err = s.verdict(ferr)
	}
	return err
}

func (s *subscriber) connectAndPrint(ctx context.Context, to *target) error {
	opts := to.options("postbus sub")
	opts.NoReconnect = s.policy == client.Disconnect // else it would come back at once
	c, err := client.Dial(ctx, autostarting(opts))
	if err != nil {
		return endedBy(ctx, err)
	}
	defer c.Close()
	s.sub, err = c.Subscribe(ctx, s.filters[0], &client.SubscribeOptions{
		Filters:        s.filters[1:],
		Policy:         s.policy,
		BufferMessages: s.buffer.messages,
		BufferBytes:    s.buffer.bytes,
		Credit:         int(s.credit),
	})
	if err != nil {
		return endedBy(ctx, err)
	}
	if err := s.ready.announce(); err != nil {
		return err
	}
	err = s.print(ctx)
	if !errors.Is(err, errInterrupted) {
		return err
	}
	return s.drain(err)
}

// endedBy returns why ctx ended if that is why err came, else err.
func endedBy(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// print prints what comes until -n is reached or something ends it.
func (s *subscriber) print(ctx context.Context) error {
	for s.count == 0 || s.seen < s.count {
		m, err := s.next(ctx)
		var gap *client.Gap
		switch {
		case err == nil:
			s.out.buf = s.append(s.out.buf, m)
			s.seen++
		case errors.As(err, &gap):
			if err := s.tell(gap); err != nil {
				return err
			}
		default:
			return endedBy(ctx, err)
		}
		if s.out.full() {
			if err := s.out.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// next returns the next message; when it has to wait for it, what was gathered is
// printed first.
func (s *subscriber) next(ctx context.Context) (*client.Message, error) {
	if s.near == 0 {
		s.near = s.sub.Buffered()
	}
	if s.near > 0 {
		s.near--
		return s.sub.Next(ctx)
	}
	if err := s.out.flush(); err != nil {
		return nil, err
	}
	if s.idle == 0 {
		return s.sub.Next(ctx)
	}
	waiting, cancel := context.WithTimeoutCause(ctx, s.idle, errIdle)
	defer cancel()
	m, err := s.sub.Next(waiting)
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return nil, errIdle
	}
	return m, err
}

// drain prints what the broker has for this subscription and was published before
// the signal came, so that `postbus sub > file & …; kill $!` leaves nothing out.
func (s *subscriber) drain(cause error) error {
	ctx := context.Background() // a second signal ends the process
	var gap *client.Gap         // is in the stream as well, at its place
	if err := s.sub.Drain(ctx); err != nil && !errors.As(err, &gap) {
		return err
	}
	if err := s.print(ctx); !errors.Is(err, client.ErrDrained) {
		return err
	}
	return cause
}

// tell reports a gap where it is in the stream.
func (s *subscriber) tell(gap *client.Gap) error {
	if s.json {
		s.out.buf = gapLine(s.out.buf, gap)
	}
	if s.strict {
		return fmt.Errorf("%w: %s", errLost, gapSentence(gap))
	}
	if s.quiet {
		return nil
	}
	if err := s.out.flush(); err != nil { // what came before is to be seen before
		return err
	}
	fmt.Fprintf(os.Stderr, "postbus sub: %s\n", gapSentence(gap))
	return nil
}

// gapReasons says why messages are missing, in words.
var gapReasons = map[client.Reason]string{
	client.ReasonDropOld:   "this reader was too slow and its buffer full (drop-old)",
	client.ReasonDropNew:   "this reader was too slow and its buffer full (drop-new)",
	client.ReasonLatest:    "newer ones of the same topic came (latest)",
	client.ReasonShutdown:  "the broker stopped before it could deliver them",
	client.ReasonReconnect: "the connection to the broker was lost and made again",
}

func gapSentence(gap *client.Gap) string {
	why, known := gapReasons[gap.Reason]
	if !known {
		why = gap.Reason.String()
	}
	where := ""
	if gap.Last > gap.First {
		where = fmt.Sprintf(", seq %d to %d", gap.First, gap.Last)
	} else if gap.Last > 0 {
		where = fmt.Sprintf(", seq %d", gap.Last)
	}
	switch gap.Count {
	case 0:
		return fmt.Sprintf("messages may be missing here%s: %s", where, why)
	case 1:
		return fmt.Sprintf("1 message is missing here%s: %s", where, why)
	}
	return fmt.Sprintf("%d messages are missing here%s: %s", gap.Count, where, why)
}

// verdict turns why the stream ended into the command's result.
func (s *subscriber) verdict(err error) error {
	wanted := s.count > 0 && s.seen < s.count
	switch err {
	case errOutputClosed:
		return nil
	case errInterrupted, errTimeout, errIdle:
		if wanted {
			return fmt.Errorf("%d of %d messages came: %w", s.seen, s.count, err)
		}
		return nil
	}
	return err
}
