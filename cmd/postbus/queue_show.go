package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

func newQueueList(to *target) *cobra.Command {
	a := &asking{target: to}
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the queues",
		Long: `Ls lists the queues: of each its level, how many messages are ready for a consumer,
delayed, leased to one, and dead letters, what their bodies and headers take, how
many consumers it has, and its state: ok, paused, draining, full (no room for
another such as those in it), or the beginning of why it takes no pushes, all of which
queue show has.`,
		Example: `  postbus queue ls
  postbus queue ls --json | jq -r 'select(.dead > 0).name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd, a.list)
		},
	}
	a.addFlags(cmd)
	return cmd
}

func (a *asking) list(ctx context.Context, c *client.Client) error {
	all, err := c.Queues(ctx)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	if !a.json {
		fmt.Fprintln(table, "NAME\tLEVEL\tREADY\tDELAYED\tLEASED\tDEAD\tSIZE\tCONSUMERS\tSTATE")
	}
	for i := range all {
		q := &all[i]
		if a.json {
			out.Write(append(appendJSON(nil, newJSONQueue(q)), '\n'))
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%d\t%s\n", q.Name, q.Settings.Level,
			q.Ready, q.Delayed, q.Leased, q.Dead, strings.Replace(roughSize(q.Bytes), " ", "", 1), q.Consumers, cut(stateOf(q), shownState))
	}
	table.Flush()
	return writeOut(out.Bytes())
}

// shownState is how much of a queue's state a table shows, in characters.
const shownState = 60

// messagesIn returns how many messages are in a queue, whatever their state.
func messagesIn(q *client.QueueInfo) int64 { return q.Ready + q.Delayed + q.Leased + q.Dead }

// isFull reports whether a queue has no room for another message, such as those in it
// are on average.
func isFull(q *client.QueueInfo) bool {
	n := messagesIn(q)
	return n > 0 && (n >= q.Settings.MaxMessages || q.Bytes+q.Bytes/n > q.Settings.MaxBytes)
}

// stateOf says in a few words what is unusual about a queue, or ok.
func stateOf(q *client.QueueInfo) string {
	var all []string
	if q.Draining {
		all = append(all, "draining")
	}
	if q.Paused {
		all = append(all, "paused")
	}
	if isFull(q) {
		all = append(all, "full")
	}
	if q.Trouble != "" {
		all = append(all, oneLine(q.Trouble))
	}
	if len(all) == 0 {
		return "ok"
	}
	return strings.Join(all, ", ")
}

func newQueueShow(to *target) *cobra.Command {
	a := &asking{target: to}
	cmd := queueCommand(a, "show NAME", "Show a queue's settings and counters",
		func(ctx context.Context, _ *cobra.Command, q *client.Queue, _ string) error {
			info, err := q.Info(ctx)
			if err != nil {
				return err
			}
			return a.printLine(newJSONQueue(&info), "%s", queueText(&info))
		})
	cmd.Long = `Show prints what there is to know of the queue NAME: its settings, what is in it, and
its counters since the broker was started.`
	cmd.Example = `  postbus queue show jobs
  postbus queue show --json jobs | jq .ready`
	return cmd
}

// queueText is what queue show prints, without the last newline.
func queueText(q *client.QueueInfo) string {
	var out bytes.Buffer
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	s := &q.Settings
	row("name", "%s", q.Name)
	row("state", "%s", stateOf(q))
	row("level", "%s", levelText(s))
	row("owner", "uid %d", q.Owner)
	row("ready", "%d", q.Ready)
	if q.Ready > 0 {
		row("oldest", "%v", milliseconds(q.OldestMS))
	}
	row("delayed", "%d", q.Delayed)
	row("leased", "%d", q.Leased)
	row("dead", "%d", q.Dead)
	row("size", "%s", roughSize(q.Bytes))
	row("consumers", "%d", q.Consumers)
	row("store", "%s", storeText(q))
	row("bind", "%s", orNone(strings.Join(s.Bind, " ")))
	row("max messages", "%d", s.MaxMessages)
	row("max bytes", "%s", formatSize(s.MaxBytes))
	row("when full", "%s", s.WhenFull)
	row("lease", "%v", milliseconds(s.LeaseMS))
	row("max tries", "%s", orNone(positive(s.MaxTries)))
	row("dead letter", "%s", deadLetterText(s))
	row("ttl", "%s", orNone(positiveTime(s.TTLMS)))
	row("dedup", "%s", orNone(positiveTime(s.DedupMS)))
	row("since the broker started", "%d pushed, %d delivered (%d again), %d acked, %d nacked, %d expired, %d dropped, %d duplicates, %d lost",
		q.Pushed, q.Delivered, q.Redelivered, q.Acked, q.Nacked, q.Expired, q.Dropped, q.Duplicates, q.Lost)
	table.Flush()
	return strings.TrimSuffix(out.String(), "\n")
}

func levelText(s *wire.QueueSettings) string {
	if s.Level == "disk" && s.SyncMS > 0 {
		return fmt.Sprintf("disk, synced every %v", milliseconds(s.SyncMS))
	}
	return s.Level
}

func storeText(q *client.QueueInfo) string {
	used := roughSize(q.StoreUsed) + " used"
	if q.StoreFree >= 0 {
		used += ", " + roughSize(q.StoreFree) + " free"
	}
	return used
}

func deadLetterText(s *wire.QueueSettings) string {
	if s.DeadLetter == "" {
		return "set aside in this queue"
	}
	return "moved to " + s.DeadLetter
}

func milliseconds(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

func positive(n int64) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func positiveTime(ms int64) string {
	if ms <= 0 {
		return ""
	}
	return milliseconds(ms).String()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// oneLine keeps what others wrote from being taken for a column or line of ours.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// cut returns a text of at most n characters, the last an ellipsis where there was more.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// jsonQueue is a queue as queue ls, show and create print it.
type jsonQueue struct {
	Name      string       `json:"name"`
	Level     string       `json:"level"`
	State     string       `json:"state"`
	Paused    bool         `json:"paused"`
	Draining  bool         `json:"draining"`
	Trouble   string       `json:"trouble,omitempty"`
	Owner     uint32       `json:"owner"`
	Ready     int64        `json:"ready"`
	Delayed   int64        `json:"delayed"`
	Leased    int64        `json:"leased"`
	Dead      int64        `json:"dead"`
	Bytes     int64        `json:"bytes"`
	Consumers int64        `json:"consumers"`
	OldestMS  int64        `json:"oldest_ms"`
	Store     jsonStore    `json:"store"`
	Settings  jsonSettings `json:"settings"`
	Counters  jsonCounters `json:"counters"`
}

type jsonStore struct {
	Used int64  `json:"used"`
	Free *int64 `json:"free"` // null: it has no limit of its own
}

// jsonSettings has null for what the queue is not to do.
type jsonSettings struct {
	Bind        []string `json:"bind"`
	MaxMessages int64    `json:"max_messages"`
	MaxBytes    int64    `json:"max_bytes"`
	WhenFull    string   `json:"when_full"`
	LeaseMS     int64    `json:"lease_ms"`
	MaxTries    *int64   `json:"max_tries"`
	DeadLetter  *string  `json:"dead_letter"`
	TTLMS       *int64   `json:"ttl_ms"`
	DedupMS     *int64   `json:"dedup_ms"`
	SyncMS      *int64   `json:"sync_ms"`
}

type jsonCounters struct {
	Pushed      uint64 `json:"pushed"`
	Delivered   uint64 `json:"delivered"`
	Redelivered uint64 `json:"redelivered"`
	Acked       uint64 `json:"acked"`
	Nacked      uint64 `json:"nacked"`
	Expired     uint64 `json:"expired"`
	Dropped     uint64 `json:"dropped"`
	Duplicates  uint64 `json:"duplicates"`
	Lost        uint64 `json:"lost"`
}

func newJSONQueue(q *client.QueueInfo) jsonQueue {
	s := &q.Settings
	above := func(least, n int64) *int64 {
		if n < least {
			return nil
		}
		return &n
	}
	settings := jsonSettings{
		Bind: append([]string{}, s.Bind...), MaxMessages: s.MaxMessages, MaxBytes: s.MaxBytes, WhenFull: s.WhenFull, LeaseMS: s.LeaseMS,
		MaxTries: above(1, s.MaxTries), TTLMS: above(1, s.TTLMS), DedupMS: above(1, s.DedupMS), SyncMS: above(1, s.SyncMS),
	}
	if s.DeadLetter != "" {
		settings.DeadLetter = &s.DeadLetter
	}
	return jsonQueue{
		Name: q.Name, Level: s.Level, State: stateOf(q), Paused: q.Paused, Draining: q.Draining, Trouble: q.Trouble, Owner: q.Owner,
		Ready: q.Ready, Delayed: q.Delayed, Leased: q.Leased, Dead: q.Dead, Bytes: q.Bytes, Consumers: q.Consumers, OldestMS: q.OldestMS,
		Store:    jsonStore{q.StoreUsed, above(0, q.StoreFree)},
		Settings: settings,
		Counters: jsonCounters{q.Pushed, q.Delivered, q.Redelivered, q.Acked, q.Nacked, q.Expired, q.Dropped, q.Duplicates, q.Lost},
	}
}
