package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// creating is one run of `postbus queue create`.
type creating struct {
	asking
	opts     client.QueueOptions
	maxBytes largeSizeFlag
}

// The words that settings are given with.
var (
	levels   = []string{"memory", "kernel", "disk"}
	whenFull = []string{wire.WhenFullReject, wire.WhenFullBlock, wire.WhenFullDropOld}
)

func newQueueCreate(to *target) *cobra.Command {
	c := &creating{asking: asking{target: to}}
	cmd := queueCommand(&c.asking, "create NAME", "Make a queue", c.run)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.Long = `Create makes the queue NAME, of letters, digits, dots, underscores and hyphens. When
it is there with the same settings nothing is done, and with others it ends with 78
and says which differ; so a script may begin with it.

LEVEL is what messages survive once push has returned:

  memory   nothing: they are in the broker's memory
  kernel   the end of the broker, kill -9 too: they are in System V message queues
           of the kernel; not a reboot
  disk     a loss of power: they are on disk, in the broker's --state directory;
           with --sync-interval all but the last moments

A message that was delivered --max-tries times and never acknowledged becomes a dead
letter: it is set aside, or moved to the queue --dead-letter (see queue dead, queue
requeue).

` + "Sizes: " + sizeHelp + "."
	cmd.Example = `  postbus queue create jobs
  postbus queue create orders --level disk --max-tries 3 --dead-letter failed-orders
  postbus queue create builds --bind 'build/+/done' --bind build/failed --ttl 24h
  postbus queue create samples --max-messages 1000 --when-full drop-old`
	c.addSettings(cmd.Flags())
	ask := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := c.check(cmd.Flags()); err != nil {
			return err
		}
		return ask(cmd, args)
	}
	for name, values := range map[string][]string{"level": levels, "when-full": whenFull} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	_ = cmd.RegisterFlagCompletionFunc("dead-letter", func(cmd *cobra.Command, _ []string, begin string) ([]string, cobra.ShellCompDirective) {
		return completeQueues(to, 1)(cmd, nil, begin)
	})
	return cmd
}

// addSettings adds a flag to each setting. All are zero while they are not given, which
// leaves the default to the broker; what is shown is what that is.
func (c *creating) addSettings(flags *pflag.FlagSet) {
	o := &c.opts
	flags.StringVar(&o.Level, "level", "", "what messages survive: `LEVEL`, see above (default memory)")
	flags.StringArrayVar(&o.Bind, "bind", nil, "take what is published to a topic that matches `FILTER`; may be repeated")
	flags.IntVar(&o.MaxMessages, "max-messages", 0, "hold `N` messages at most, dead letters included (default 1000000)")
	flags.Var(&c.maxBytes, "max-bytes", "hold so many bytes of bodies and headers at most (default 256MiB in memory,\n1GiB on disk, what the kernel gives in the kernel)")
	flags.StringVar(&o.WhenFull, "when-full", "", "what becomes of a push when it is full, by `WORD`: reject (exit 75), block\n(push waits) or drop-old (the oldest messages go) (default reject)")
	flags.DurationVar(&o.Lease, "lease", 0, "deliver a message again that was not acknowledged within `TIME` (default 30s)")
	flags.IntVar(&o.MaxTries, "max-tries", 0, "deliver a message `N` times, then make it a dead letter; 0: no limit (default 10)")
	flags.StringVar(&o.DeadLetter, "dead-letter", "", "move dead letters to the queue `NAME` (default: set aside in this one)")
	flags.DurationVar(&o.TTL, "ttl", 0, "drop messages that were not delivered within `TIME` and have no --ttl of their\nown (default: never)")
	flags.DurationVar(&o.Dedup, "dedup", 0, "remember ids of messages for `TIME`; 0: not at all (default 2m)")
	flags.DurationVar(&o.SyncInterval, "sync-interval", 0, "level disk: confirm pushes before they are on the disk, and sync every `TIME`\n(default: sync first)")
}

// check finds what is wrong with the settings.
func (c *creating) check(flags *pflag.FlagSet) error {
	o := &c.opts
	o.MaxBytes = int64(c.maxBytes)
	for name, d := range map[string]time.Duration{"ttl": o.TTL, "dedup": o.Dedup, "sync-interval": o.SyncInterval} {
		if d < 0 {
			return usagef("--%s %v: it must be 0 or more", name, d)
		}
	}
	switch {
	case o.MaxMessages < 0 || flags.Changed("max-messages") && o.MaxMessages == 0:
		return usagef("--max-messages %d: it must be above 0", o.MaxMessages)
	case o.Lease < 0 || flags.Changed("lease") && o.Lease == 0:
		return usagef("--lease %v: it must be above 0", o.Lease)
	case o.MaxTries < 0:
		return usagef("--max-tries %d: it must be 0 (no limit) or more", o.MaxTries)
	case o.SyncInterval > 0 && o.Level != "disk":
		return usagef("--sync-interval is for --level disk")
	}
	for _, filter := range o.Bind {
		if err := wire.CheckFilter(filter); err != nil {
			return usagef("--bind: %w", err)
		}
	}
	if o.DeadLetter != "" {
		if err := wire.CheckQueueName(o.DeadLetter); err != nil {
			return usagef("--dead-letter: %w", err)
		}
	}
	if flags.Changed("max-tries") && o.MaxTries == 0 {
		o.MaxTries = -1
	}
	if flags.Changed("dedup") && o.Dedup == 0 {
		o.Dedup = -1
	}
	return errors.Join(
		checkWord(flags, "level", levels...),
		checkWord(flags, "when-full", whenFull...),
	)
}

// checkWord finds a flag that was given none of the words.
func checkWord(flags *pflag.FlagSet, flag string, words ...string) error {
	got := flags.Lookup(flag).Value.String()
	if !flags.Changed(flag) || slices.Contains(words, got) {
		return nil
	}
	last := len(words) - 1
	return usagef("--%s %q: it must be %s or %s", flag, got, strings.Join(words[:last], ", "), words[last])
}

func (c *creating) run(ctx context.Context, cmd *cobra.Command, q *client.Queue, _ string) error {
	info, err := q.Declare(ctx, &c.opts)
	if err != nil || !c.json {
		return err
	}
	return c.printLine(newJSONQueue(&info), "")
}
