package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// jsonCount is what a command prints that moved messages.
type jsonCount struct {
	Queue    string `json:"queue"`
	Purged   *int   `json:"purged,omitempty"`
	Requeued *int   `json:"requeued,omitempty"`
}

func newQueuePurge(to *target) *cobra.Command {
	a := &asking{target: to}
	var dead, yes bool
	cmd := queueCommand(a, "purge NAME", "Throw away the messages of a queue",
		func(ctx context.Context, _ *cobra.Command, q *client.Queue, name string) error {
			state, what := "", "messages"
			if dead {
				state, what = wire.StateDead, "dead letters"
			}
			info, err := q.Info(ctx)
			if err != nil {
				return err
			}
			count := info.Ready + info.Delayed
			if dead {
				count = info.Dead
			}
			if err := confirm(yes, "Throw away %d %s of queue %s?", count, what, name); err != nil {
				return err
			}
			n, err := q.Purge(ctx, state)
			if err != nil {
				return err
			}
			return a.printLine(jsonCount{Queue: name, Purged: &n}, "%d", n)
		})
	cmd.Long = `Purge removes for good what is ready or delayed in the queue NAME, or with --dead its
dead letters, and prints how many those were. What a consumer is at work on stays.
On a terminal it asks first.`
	cmd.Example = `  postbus queue purge jobs
  postbus queue purge --dead --yes jobs`
	cmd.Flags().BoolVar(&dead, "dead", false, "remove the dead letters instead")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

var errNotConfirmed = errors.New("not confirmed: nothing was done")

// confirm asks a question, if somebody sits there who can answer it.
func confirm(yes bool, question string, args ...any) error {
	if yes || !isTerminal(os.Stdin) || !isTerminal(os.Stderr) {
		return nil
	}
	fmt.Fprintf(os.Stderr, question+" [y/N] ", args...)
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errNotConfirmed
}

func newQueueRequeue(to *target) *cobra.Command {
	a := &asking{target: to}
	limit := 0
	cmd := queueCommand(a, "requeue NAME", "Bring dead letters back",
		func(ctx context.Context, _ *cobra.Command, q *client.Queue, name string) error {
			if limit < 0 {
				return usagef("-n %d: it must be 0 (all) or more", limit)
			}
			n, err := q.Requeue(ctx, limit)
			if err != nil {
				return err
			}
			return a.printLine(jsonCount{Queue: name, Requeued: &n}, "%d", n)
		})
	cmd.Long = `Requeue makes dead letters of the queue NAME ready again, the oldest first, as if they
had never been delivered, and prints how many those were.`
	cmd.Example = `  postbus queue requeue jobs
  postbus queue requeue -n 1 jobs     # one, to see how it fares`
	cmd.Flags().IntVarP(&limit, "count", "n", 0, "`N` dead letters at most (default: all)")
	return cmd
}

func newQueuePause(to *target) *cobra.Command {
	a := &asking{target: to}
	cmd := queueCommand(a, "pause NAME", "Hold deliveries back",
		func(ctx context.Context, _ *cobra.Command, q *client.Queue, _ string) error { return q.Pause(ctx) })
	cmd.Long = `Pause stops deliveries from the queue NAME until queue resume. Pushes are taken; what
consumers are at work on they may finish.`
	cmd.Example = "  postbus queue pause jobs"
	_ = cmd.Flags().MarkHidden("json") // it prints nothing
	return cmd
}

func newQueueResume(to *target) *cobra.Command {
	a := &asking{target: to}
	cmd := queueCommand(a, "resume NAME", "End pause or drain",
		func(ctx context.Context, _ *cobra.Command, q *client.Queue, _ string) error { return q.Resume(ctx) })
	cmd.Long = "Resume ends what queue pause and queue drain began."
	cmd.Example = "  postbus queue resume jobs"
	_ = cmd.Flags().MarkHidden("json")
	return cmd
}

func newQueueDrain(to *target) *cobra.Command {
	a := &asking{target: to}
	cmd := queueCommand(a, "drain NAME", "Take no more pushes, and wait until the queue is empty", a.drain)
	cmd.Long = `Drain has the queue NAME refuse pushes (exit 75) and waits until consumers have
emptied it; delayed messages count, dead letters do not. It stays so afterwards, and
also when drain gives up or is interrupted, until queue resume.`
	cmd.Example = `  postbus queue drain jobs && postbus queue rm jobs
  postbus queue drain --timeout 5m jobs || postbus queue resume jobs`
	_ = cmd.Flags().MarkHidden("json")
	return cmd
}

// drainLook is how often a drain looks how far it has come, on a terminal.
const drainLook = time.Second

func (a *asking) drain(ctx context.Context, _ *cobra.Command, q *client.Queue, name string) error {
	ctx, cancel := context.WithCancel(ctx)
	p := newProgress(os.Stderr, 0)
	end := p.while(drainLook, func() {
		if info, err := q.Info(ctx); err == nil {
			p.show(0, "%s: %d to go", name, info.Ready+info.Delayed+info.Leased)
		}
	})
	err := q.Drain(ctx)
	cancel() // a look under way ends with it
	end()
	return err
}

func newQueueRemove(to *target) *cobra.Command {
	a := &asking{target: to}
	var force, yes bool
	cmd := queueCommand(a, "rm NAME", "Remove a queue",
		func(ctx context.Context, _ *cobra.Command, q *client.Queue, name string) error {
			info, err := q.Info(ctx)
			if err != nil {
				return err
			}
			if err := checkRemove(&info, force, yes); err != nil {
				return err
			}
			return q.Delete(ctx)
		})
	cmd.Long = `Rm removes the queue NAME, with --force even if there are messages or dead letters in
it, or if its store has failed so that nobody knows; on a terminal it asks first then.
Its consumers end.`
	cmd.Example = "  postbus queue rm jobs"
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove the messages in it too")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	_ = cmd.Flags().MarkHidden("json")
	return cmd
}

// checkRemove fails if a queue is not to be removed for what is in it.
func checkRemove(q *client.QueueInfo, force, yes bool) error {
	n := messagesIn(q)
	switch {
	case n == 0 && q.Trouble == "":
		return nil
	case n > 0 && !force:
		return fmt.Errorf("queue %s has %d messages, %d of them dead letters: --force removes them too", q.Name, n, q.Dead)
	case !force:
		return fmt.Errorf("queue %s is in trouble, so there may be messages in it: --force removes it all the same: %s", q.Name, oneLine(q.Trouble))
	case n == 0:
		return confirm(yes, "Remove queue %s, of which it is not known what is in it?", q.Name)
	}
	return confirm(yes, "Remove queue %s with %d messages, %d of them dead letters?", q.Name, n, q.Dead)
}
