package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// salvaging is one run of `postbus queue salvage`.
type salvaging struct {
	target *target
	state  stateFlag
	yes    bool
	json   bool
}

func newQueueSalvage(to *target) *cobra.Command {
	s := &salvaging{target: to}
	cmd := &cobra.Command{
		Use:   "salvage NAME",
		Short: "Bring back what is whole of a damaged queue of level disk",
		Long: `Salvage makes the damaged queue NAME of level disk, of a broker that does not run,
usable again with every message that is whole. What was in the damaged places is
missing; a message whose ack was there comes again. Each file with such a place is kept
beside it as FILE.damaged, as it was, for whoever wants to look, and may be removed then;
a copy of the whole directory is still the first thing to make.

It prints what is damaged, what is kept where, and how many messages are saved. On a
terminal it asks first. It ends with 0 when the queue is whole, also if it was before,
with 66 when there is none of that name, with 77 when it belongs to another user (root
too is to become that user: root's files would keep the broker out), and with 1 while a
broker has it open.`,
		Example: `  postbus queue check
  cp -a /var/lib/postbus/jobs.disk /var/tmp/
  postbus queue salvage jobs
  postbus queue salvage --yes --json --state /var/lib/postbus jobs | jq .messages`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return s.state.keptNames(to), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			return s.run(args[0])
		},
	}
	s.state.addFlag(cmd.Flags())
	cmd.Flags().BoolVarP(&s.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&s.json, "json", false, "print a JSON object")
	return cmd
}

// salvaged is what became of a queue.
type salvaged struct {
	Queue    string       `json:"queue"`
	Level    string       `json:"level"`
	Damage   []jsonDamage `json:"damage"`   // there was
	Kept     []string     `json:"kept"`     // the files that were damaged, as they were
	Messages int          `json:"messages"` // there are now
}

func (s *salvaging) run(name string) error {
	if err := wire.CheckQueueName(name); err != nil {
		return &usageError{err}
	}
	dir, err := s.state.path(s.target)
	if err != nil {
		return err
	}
	if err := s.find(dir, name); err != nil {
		return err
	}
	before, err := checkStore(dir, name)
	if err != nil {
		return err
	}
	out := salvaged{Queue: name, Level: "disk", Damage: checkedDisk(name, &before).Damage, Kept: []string{}, Messages: before.Messages}
	if len(before.Damage) > 0 {
		if err := out.clear(); err != nil {
			return err
		}
		for i := range out.Damage {
			fmt.Fprintf(os.Stderr, "postbus queue salvage: %s\n", &out.Damage[i])
		}
		if err := confirm(s.yes, "Make queue %s in %s usable without these?", name, dir); err != nil {
			return err
		}
		if err := out.repair(dir); err != nil {
			return err
		}
	}
	if s.json {
		return writeOut(append(appendJSON(nil, out), '\n'))
	}
	return writeOut([]byte(out.text()))
}

// find fails if there is no queue of level disk of that name, or if it is another
// user's.
func (s *salvaging) find(dir, name string) error {
	base := filepath.Join(dir, name)
	info, err := os.Stat(base + diskFiles)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(base + keyFile); err == nil {
			return fmt.Errorf("queue %s is of level kernel, and has no files that can be salvaged: see postbus sysv doctor", name)
		}
		return s.state.notKept(s.target, dir, name)
	} else if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: queue %s belongs to user %s: run this as that user", store.ErrNotAllowed, name, userName(int(owner.Uid)))
	}
	return nil
}

// keptAs is where a damaged file is kept as it was.
func (d *jsonDamage) keptAs() string { return d.File + ".damaged" }

// clear fails if a file is kept from before, which the store would take for the one it
// is to keep.
func (q *salvaged) clear() error {
	for i := range q.Damage {
		if _, err := os.Lstat(q.Damage[i].keptAs()); err == nil {
			return fmt.Errorf("%s is there from an earlier salvage: move it away first", q.Damage[i].keptAs())
		}
	}
	return nil
}

// repair makes the queue in dir whole and completes what is known of it.
func (q *salvaged) repair(dir string) error {
	d, err := store.OpenDisk(dir, q.Queue, &store.DiskOptions{Salvage: true})
	if err != nil {
		return stopFirst(err)
	}
	if err := d.Close(); err != nil {
		return err
	}
	after, err := checkStore(dir, q.Queue)
	if err != nil {
		return err
	}
	q.Messages = after.Messages
	for i := range q.Damage {
		kept := q.Damage[i].keptAs()
		if _, err := os.Lstat(kept); err == nil && !slices.Contains(q.Kept, kept) {
			q.Kept = append(q.Kept, kept)
		}
	}
	if len(after.Damage) > 0 {
		return fmt.Errorf("%w: queue %s, still: %s", store.ErrDamaged, q.Queue, after.Damage[0])
	}
	return nil
}

// text is what is printed: a line, and one for each file that is kept.
func (q *salvaged) text() string {
	var out bytes.Buffer
	switch {
	case len(q.Damage) == 0:
		fmt.Fprintf(&out, "%s: nothing is damaged, %s in it\n", q.Queue, plural(q.Messages, "message"))
	case !slices.ContainsFunc(q.Damage, func(d jsonDamage) bool { return d.Lost }):
		fmt.Fprintf(&out, "%s: mended, nothing is missing, %s in it\n", q.Queue, plural(q.Messages, "message"))
	default:
		fmt.Fprintf(&out, "%s: %s saved\n", q.Queue, plural(q.Messages, "message"))
	}
	for _, file := range q.Kept {
		fmt.Fprintf(&out, "  kept as it was: %s\n", file)
	}
	return out.String()
}
