package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

func newQueue(to *target) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Make, look at and look after queues",
		Long: `A queue keeps messages until somebody has taken each one and said that it is done:
see postbus push and postbus pull. The commands below make queues, show what is in
them and mend what went wrong; all but check and salvage
ask the broker.`,
		Example: `  postbus queue create jobs --level disk --max-tries 3
  postbus queue ls
  postbus queue dead jobs && postbus queue requeue jobs`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("which command? They are: %s", commandNames(cmd))
		},
	}
	cmd.AddCommand(
		newQueueCreate(to),
		newQueueList(to),
		newQueueShow(to),
		newQueuePeek(to),
		newQueueDead(to),
		newQueuePurge(to),
		newQueueRequeue(to),
		newQueuePause(to),
		newQueueResume(to),
		newQueueDrain(to),
		newQueueRemove(to),
		newQueueCheck(to),
		newQueueSalvage(to),
	)
	return cmd
}

// asking is what the commands that ask the broker of one queue have in common.
type asking struct {
	target  *target
	timeout time.Duration
	json    bool
}

func (a *asking) addFlags(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&a.timeout, "timeout", 0, "give up (exit 124) after `TIME`, such as 10s (default: never)")
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON")
}

// ask connects and calls f. A queue that outlived its broker is there again when
// another is started, so that is done here too.
func (a *asking) ask(cmd *cobra.Command, f func(context.Context, *client.Client) error) error {
	if a.timeout < 0 {
		return usagef("--timeout %v: it must be 0 or more", a.timeout)
	}
	ctx, cancel := withTimeout(cmd.Context(), a.timeout)
	defer cancel()
	c, err := client.Dial(ctx, autostarting(a.target.options(cmd.CommandPath())))
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c)
}

// askQueue is ask about the queue named by args.
func (a *asking) askQueue(cmd *cobra.Command, args []string, f func(context.Context, *client.Queue) error) error {
	if err := wire.CheckQueueName(args[0]); err != nil {
		return &usageError{err}
	}
	return a.ask(cmd, func(ctx context.Context, c *client.Client) error { return f(ctx, c.Queue(args[0])) })
}

// queueCommand returns a subcommand about one queue.
func queueCommand(a *asking, use, short string, f func(ctx context.Context, cmd *cobra.Command, q *client.Queue, name string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:               use,
		Short:             short,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeQueues(a.target, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.askQueue(cmd, args, func(ctx context.Context, q *client.Queue) error {
				return f(ctx, cmd, q, args[0])
			})
		},
	}
	a.addFlags(cmd)
	return cmd
}

// printLine writes a line to standard output: v as JSON, or else the text.
func (a *asking) printLine(v any, format string, args ...any) error {
	line := fmt.Appendf(nil, format, args...)
	if a.json {
		line = appendJSON(nil, v)
	}
	return writeOut(append(line, '\n'))
}

// writeOut writes to standard output.
func writeOut(text []byte) error {
	if _, err := os.Stdout.Write(text); err != nil {
		return fmt.Errorf("write to standard output: %w", err)
	}
	return nil
}

// completionPatience is how long a shell waits for the names of queues.
const completionPatience = time.Second

// completeQueues completes the names of queues for the first n arguments, if a broker
// runs.
func completeQueues(to *target, n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), completionPatience)
		defer cancel()
		opts := to.options("postbus completion")
		opts.NoReconnect = true
		c, err := client.Dial(ctx, opts)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		all, err := c.Queues(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, q := range all {
			if strings.HasPrefix(q.Name, begin) {
				names = append(names, q.Name+"\t"+describeQueue(&q))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// describeQueue says of a queue what helps to choose it.
func describeQueue(q *client.QueueInfo) string {
	return fmt.Sprintf("%s, %d ready", q.Settings.Level, q.Ready)
}
