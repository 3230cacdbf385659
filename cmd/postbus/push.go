package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// pushing is one run of `postbus push`.
type pushing struct {
	bodies
	target  *target
	queue   string
	headers []string
	at      string
	timeout time.Duration
	receipt bool
	json    bool

	opts client.PushOptions
}

func newPush(to *target) *cobra.Command {
	p := &pushing{target: to}
	cmd := &cobra.Command{
		Use:   "push QUEUE [BODY]",
		Short: "Put messages into a queue",
		Long: `Push puts BODY into QUEUE, which must be there (see postbus queue create). Without
BODY all of standard input is one message; with -l each of its lines is one, with
-0 each piece that ends in a NUL byte. With BODY standard input is left alone.

It ends with 0 only when every message is kept at the queue's level: level disk, for
one, has it on the disk then. At a refusal it stops, says which message was the
first and how many were refused, and ends with 75 when the queue is full or being
drained, 66 when there is none of that name. A queue with --when-full block makes
push wait instead.

A message whose --id the queue has seen not long ago (see queue create --dedup) is
not kept a second time, which is no error: so a script may push again what it
cannot know to have been kept.`,
		Example: `  postbus push jobs resize/17.png
  find . -name '*.png' -print0 | postbus push -0 jobs
  postbus push --priority 9 --ttl 1h jobs urgent
  postbus push --delay 10m reminders 'tea is ready'
  postbus push --at 2026-12-24T18:00:00+01:00 reminders 'light the candles'
  postbus push --id "order-$n" --key "customer-$c" orders <order.json
  postbus push -v jobs x                     # disk 1: on the disk, in one queue`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeQueues(to, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.queue = args[0]
			if len(args) == 2 {
				p.body = []byte(args[1])
			}
			return p.run(cmd.Context())
		},
	}
	p.bodies.addFlags(cmd)
	flags := cmd.Flags()
	flags.StringArrayVarP(&p.headers, "header", "H", nil, "give each message the header `KEY=VALUE`; may be repeated")
	flags.StringVar(&p.opts.ID, "id", "", "the message's name, up to 128 bytes: a second one of this `ID` is not kept")
	flags.StringVar(&p.opts.Key, "key", "", "messages of one `KEY`, up to 256 bytes, are delivered one at a time, in order")
	flags.IntVar(&p.opts.Priority, "priority", 0, "0 to 9: `N` above another's is delivered before it")
	flags.DurationVar(&p.opts.Delay, "delay", 0, "deliver it after `TIME`, such as 90s, not before")
	flags.StringVar(&p.at, "at", "", "deliver it at `WHEN`, not before, within a year: a time such as\n2026-12-24T18:00:00Z (RFC 3339) or in seconds since 1970")
	flags.DurationVar(&p.opts.TTL, "ttl", 0, "throw it away if it was not delivered within `TIME` (default: the queue's)")
	flags.DurationVar(&p.timeout, "timeout", 0, "give up (exit 124) after `TIME` in all, such as 10s (default: never)")
	flags.BoolVarP(&p.receipt, "receipt", "v", false,
		"print for each message the level it is kept at (memory, kernel,\ndisk-interval or disk) and by how many queues; waits for each one")
	flags.BoolVar(&p.json, "json", false, "as --receipt, as JSON objects")
	cmd.MarkFlagsMutuallyExclusive("delay", "at")
	return cmd
}

func (p *pushing) run(ctx context.Context) error {
	if err := p.check(); err != nil {
		return err
	}
	ctx, cancel := withTimeout(ctx, p.timeout)
	defer cancel()
	c, err := client.Dial(ctx, autostarting(p.target.options("postbus push")))
	if err != nil {
		return err
	}
	defer c.Close()
	never := func(context.Context) error { return nil } // see verdicts
	return withInput(ctx, c, never, func(ctx context.Context, in *input) error {
		next := p.source(in, c.Server().MaxMessage)
		if p.receipt || p.json {
			return p.pushEach(ctx, c.Queue(p.queue), next)
		}
		return p.pushAll(ctx, c, in, next)
	})
}

// check finds what is wrong with the arguments before anything is done.
func (p *pushing) check() error {
	if err := wire.CheckQueueName(p.queue); err != nil {
		return &usageError{err}
	}
	if err := p.bodies.check(); err != nil {
		return err
	}
	if p.opts.ID != "" && p.many() {
		return usagef("--id %q with -l or -0: all messages but the first would be taken for its repetitions", p.opts.ID)
	}
	if p.opts.Priority < 0 || p.opts.Priority > wire.MaxPriority {
		return usagef("--priority %d: it must be from 0 to %d", p.opts.Priority, wire.MaxPriority)
	}
	for name, d := range map[string]time.Duration{"delay": p.opts.Delay, "ttl": p.opts.TTL, "timeout": p.timeout} {
		if d < 0 {
			return usagef("--%s %v: it must be 0 or more", name, d)
		}
	}
	if p.at != "" {
		at, err := parseMoment(p.at)
		if err != nil {
			return usagef("--at %q: %w", p.at, err)
		}
		p.opts.At = at
	}
	headers, err := parseHeaders(p.headers)
	p.opts.Headers = headers
	return err
}

var errMoment = errors.New("write it as 2026-12-24T18:00:00Z, with +01:00 or the like in the place of Z, or in seconds since 1970")

// parseMoment reads a time in RFC 3339, or in seconds since 1970 with or without the
// @ that date(1) has before them.
func parseMoment(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	seconds, fraction, _ := strings.Cut(strings.TrimPrefix(s, "@"), ".")
	n, err := strconv.ParseUint(seconds, 10, 37) // up to the year 6325
	if err != nil {
		return time.Time{}, errMoment
	}
	nanos := 0
	if fraction != "" {
		if nanos, err = strconv.Atoi((fraction + "000000000")[:9]); err != nil || nanos < 0 {
			return time.Time{}, errMoment
		}
	}
	return time.Unix(int64(n), int64(nanos)), nil
}

// jsonReceipt is what push --json prints for a message.
type jsonReceipt struct {
	Level       string `json:"level"`
	Queues      int    `json:"queues"`
	Subscribers int    `json:"subscribers"`
}

// pushEach pushes what next gives one by one and prints the receipts.
func (p *pushing) pushEach(ctx context.Context, q *client.Queue, next source) error {
	for n := 1; ; n++ {
		body, err := next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		receipt, err := q.Push(ctx, body, &p.opts)
		if err != nil {
			return p.refused(err, 1, n, n)
		}
		line := fmt.Appendf(nil, "%v %d\n", receipt.Level, receipt.Queues)
		if p.json {
			line = append(appendJSON(nil, jsonReceipt{fmt.Sprint(receipt.Level), receipt.Queues, receipt.Subscribers}), '\n')
		}
		if _, err := os.Stdout.Write(line); err != nil {
			return fmt.Errorf("write to standard output: %w", err)
		}
	}
}

// pushAll pushes what next gives, and returns when the broker has answered all of it.
func (p *pushing) pushAll(outer context.Context, c *client.Client, in *input, next source) error {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	v := newVerdicts(c, newProgress(os.Stderr, p.sizeOf(in)), in)
	var watch sync.WaitGroup
	watch.Go(func() { v.watch(ctx, func(err error) { cancel(err); in.stop.wake() }) })
	err := p.feed(ctx, c.Queue(p.queue), v, next)
	close(v.more)
	watch.Wait()
	v.progress.end()
	if v.err == nil {
		return err
	}
	var refused, more *client.RefusedError
	if !errors.As(v.err, &refused) {
		if p.many() {
			return fmt.Errorf("after %d messages that are kept for certain: %w", v.kept, v.err)
		}
		return v.err
	}
	count := refused.Count
	if errors.As(c.Flush(outer), &more) { // of what was on its way meanwhile
		count += more.Count
	}
	return p.refused(refused.First, count, v.kept+1, int(v.sent.Load()))
}

// feed pushes until there is nothing more, or until a verdict ends it.
func (p *pushing) feed(ctx context.Context, q *client.Queue, v *verdicts, next source) error {
	for {
		body, err := next()
		if err == nil {
			err = q.PushAsync(ctx, body, &p.opts)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		v.sent.Add(1)
		select {
		case v.more <- struct{}{}:
		default:
		}
	}
}

// refused is the error for count messages that were refused, of which the first was
// among the first to the last given.
func (p *pushing) refused(reason error, count uint64, first, last int) error {
	noun := p.noun()
	switch {
	case !p.many():
		return reason
	case first == last:
		return fmt.Errorf("%s %d was refused: %w", noun, first, reason)
	case count == 1:
		return fmt.Errorf("1 of %ss %d to %d was refused: %w", noun, first, last, reason)
	}
	return fmt.Errorf("%d %ss were refused, the first of them between %s %d and %d: %w", count, noun, noun, first, last, reason)
}

// verdicts hears what the broker says of the messages while more are being pushed, so
// that a refusal need not wait for the end of the input, and is known to within what
// was on its way.
type verdicts struct {
	client   *client.Client
	progress *progress
	in       *input
	more     chan struct{} // of one: something was sent
	sent     atomic.Int64

	kept int   // messages, in order from the first, that were kept
	err  error // why the rest may not be
}

func newVerdicts(c *client.Client, p *progress, in *input) *verdicts {
	return &verdicts{client: c, progress: p, in: in, more: make(chan struct{}, 1)}
}

// watch asks for verdicts until more is closed and all are there, or until one is bad;
// then it calls stop.
func (v *verdicts) watch(ctx context.Context, stop func(error)) {
	for range v.more {
		v.flush(ctx, stop)
	}
	v.flush(ctx, stop)
}

func (v *verdicts) flush(ctx context.Context, stop func(error)) {
	if v.err != nil {
		return
	}
	sent := int(v.sent.Load())
	if v.err = v.client.Flush(ctx); v.err != nil {
		stop(v.err)
		return
	}
	v.kept = sent
	v.progress.show(v.in.bytes.Load(), "%d messages kept", v.kept)
}

// sizeOf returns how many bytes standard input has, 0 when nobody can know.
func (p *pushing) sizeOf(in *input) int64 {
	if p.body != nil {
		return 0
	}
	info, err := in.file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Size()
}
