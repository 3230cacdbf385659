package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// peeking is one run of `postbus queue peek` or `queue dead`.
type peeking struct {
	asking
	opts   client.PeekOptions
	format string
	print  printer[*client.Delivery] // nil: a table
	dead   bool                      // the table of dead letters
}

var states = []string{wire.StateReady, wire.StateDelayed, wire.StateLeased, wire.StateDead}

func newQueuePeek(to *target) *cobra.Command {
	p := &peeking{asking: asking{target: to}}
	cmd := queueCommand(&p.asking, "peek NAME", "Look at messages of a queue, and leave them there", p.run)
	cmd.Long = `Peek prints messages of the queue NAME in the order they were pushed in. They stay
as they are: nothing is leased or acknowledged.

` + deliveryHelp
	cmd.Example = `  postbus queue peek jobs
  postbus queue peek -n 0 --state delayed --json reminders | jq .due
  postbus queue peek -n 1 --from 17 -f %b jobs`
	flags := cmd.Flags()
	flags.IntVarP(&p.opts.Limit, "count", "n", 10, "`N` messages at most; 0: all")
	flags.StringVar(&p.opts.State, "state", "", "only those that are ready, delayed, leased or dead, by `STATE` (default: all)")
	flags.Uint64Var(&p.opts.From, "from", 0, "begin at the message with number `SEQ`")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	p.addFormat(cmd)
	return cmd
}

func newQueueDead(to *target) *cobra.Command {
	p := &peeking{asking: asking{target: to}, opts: client.PeekOptions{State: wire.StateDead}, dead: true}
	cmd := queueCommand(&p.asking, "dead NAME", "List the dead letters of a queue", p.run)
	cmd.Long = `Dead lists the messages of the queue NAME that were set aside because nobody could
do what they ask: rejected by a consumer, or delivered as often as the queue allows.
Of a queue that has a --dead-letter queue they are there instead. The table shows the
beginning of a long reason or body; --json has all of them.

` + deliveryHelp
	cmd.Example = `  postbus queue dead jobs
  postbus queue dead --json jobs | jq -r '.seq, .reason, .body'
  postbus queue requeue jobs          # once the cause is mended
  postbus queue purge --dead jobs     # or never`
	flags := cmd.Flags()
	flags.IntVarP(&p.opts.Limit, "count", "n", 0, "`N` dead letters at most (default: all)")
	flags.Uint64Var(&p.opts.From, "from", 0, "begin at the message with number `SEQ`")
	p.addFormat(cmd)
	return cmd
}

func (p *peeking) addFormat(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&p.format, "format", "f", "", "print each message as `FORMAT` says (see above)")
	cmd.MarkFlagsMutuallyExclusive("format", "json")
	ask := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := p.check(cmd, args[0]); err != nil {
			return err
		}
		return ask(cmd, args)
	}
}

func (p *peeking) check(cmd *cobra.Command, queue string) error {
	if p.opts.Limit < 0 {
		return usagef("-n %d: it must be 0 (all) or more", p.opts.Limit)
	}
	if p.opts.State != "" && !slices.Contains(states, p.opts.State) {
		return checkWord(cmd.Flags(), "state", states...)
	}
	switch {
	case p.json:
		p.print = jsonDeliveryLine(queue)
	case cmd.Flags().Changed("format"):
		print, err := parseFormatOf("queue "+cmd.Name(), p.format, deliveryVerbs)
		if err != nil {
			return &usageError{err}
		}
		p.print = print
	}
	return nil
}

func (p *peeking) run(ctx context.Context, _ *cobra.Command, q *client.Queue, name string) error {
	out := output{file: os.Stdout}
	keepOnBrokenPipe()
	print := p.print
	now := time.Now()
	if print == nil {
		print = func(dst []byte, d *client.Delivery) []byte { return p.row(dst, d, name, now) }
	}
	rows := 0
	for d, err := range q.Peek(ctx, &p.opts) {
		if err != nil {
			_ = out.flush()
			return err
		}
		if rows == 0 && p.print == nil {
			out.buf = append(out.buf, p.head()...)
		}
		rows++
		out.buf = print(out.buf, d)
		if out.full() {
			if err := out.flush(); err != nil {
				return ignoreClosed(err)
			}
		}
	}
	return ignoreClosed(out.flush())
}

// ignoreClosed takes it for a success that nobody wants to see the rest.
func ignoreClosed(err error) error {
	if err == errOutputClosed {
		return nil
	}
	return err
}

// The columns have widths of their own, since nobody knows the widest of a million
// messages before they are all there.
const (
	peekRow   = "%-8s %-8s %6s %6s %10s %10s  %s\n"
	deadRow   = "%-8s %6s %10s  %-40s  %s\n"
	shownBody = 60 // bytes of a body that a table shows

	shownReason = 40 // characters: its column in deadRow
)

func (p *peeking) head() string {
	if p.dead {
		return fmt.Sprintf(deadRow, "SEQ", "TRIES", "AGE", "REASON", "BODY")
	}
	return fmt.Sprintf(peekRow, "SEQ", "STATE", "TRIES", "BYTES", "AGE", "DUE", "BODY")
}

// row appends the line of a table.
func (p *peeking) row(dst []byte, d *client.Delivery, queue string, now time.Time) []byte {
	seq, age := strconv.FormatUint(d.Seq, 10), shortly(now.Sub(d.Time))
	if p.dead {
		reason := oneLine(d.Reason)
		if origin := elsewhere(d, queue); origin != "" {
			reason += " (in " + origin + ")"
		}
		return fmt.Appendf(dst, deadRow, seq, strconv.Itoa(d.Tries), age, cut(reason, shownReason), shortBody(d.Body))
	}
	due := ""
	if !d.Due.IsZero() {
		due = "in " + shortly(d.Due.Sub(now))
	}
	return fmt.Appendf(dst, peekRow, seq, d.State, strconv.Itoa(d.Tries), strconv.Itoa(len(d.Body)), age, due, shortBody(d.Body))
}

// shortly writes a duration to about three digits.
func shortly(d time.Duration) string {
	for _, unit := range []time.Duration{time.Hour, time.Minute, time.Second, time.Millisecond} {
		if d >= 10*unit || d <= -10*unit {
			return d.Round(unit / 10).String()
		}
	}
	return d.Round(time.Millisecond).String()
}

// shortBody is a body as a terminal may show it: quoted where it is not plain text, and
// not all of a long one.
func shortBody(body []byte) string {
	short := body[:min(len(body), shownBody)]
	for len(short) < len(body) && len(short) > 0 && !utf8.RuneStart(body[len(short)]) {
		short = short[:len(short)-1]
	}
	text := string(short)
	if quoted := strconv.Quote(text); quoted[1:len(quoted)-1] != text || text == "" {
		text = quoted
	}
	if len(short) < len(body) {
		text += "…"
	}
	return text
}
