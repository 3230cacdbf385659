package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// checking is one run of `postbus queue check`.
type checking struct {
	target *target
	state  stateFlag
	json   bool
}

func newQueueCheck(to *target) *cobra.Command {
	c := &checking{target: to}
	cmd := &cobra.Command{
		Use:   "check [NAME|DIR]",
		Short: "Verify what a stopped broker has kept",
		Long: `Check reads all that the queue NAME keeps in the state directory of a broker that does
not run, and changes nothing; in the place of NAME a directory, with a slash in it,
stands for all queues there, and so does nothing at all.

It ends with 0 when all is whole. At the end of a log it may find a write that a
crash has cut off: that is whole too, for nobody was told that it was kept. For each
damage it prints the file, the offset and the length in bytes, and what it means,
and ends with 65; postbus queue salvage brings back what is whole.

Of a queue of level kernel it compares the key file with the queues that the kernel
has: some may be missing, or there may be some with its keys that are not its own,
which postbus sysv doctor says more of. What is in them the broker sees when it opens
them.`,
		Example: `  postbus queue check
  postbus queue check jobs
  postbus queue check --state /var/lib/postbus orders
  postbus queue check --json ./backup/ | jq -c 'select(.damage != [])'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.complete,
		RunE: func(_ *cobra.Command, args []string) error {
			return c.run(args)
		},
	}
	c.state.addFlag(cmd.Flags())
	cmd.Flags().BoolVar(&c.json, "json", false, "print a JSON object for each queue")
	return cmd
}

// checked is what was found of one queue.
type checked struct {
	Queue    string       `json:"queue"`
	Level    string       `json:"level"`
	Segments int          `json:"segments"` // files, or kernel queues
	Bytes    int64        `json:"bytes"`    // in these
	Damage   []jsonDamage `json:"damage"`

	// Of level disk.
	Messages int         `json:"messages,omitempty"`
	Torn     *jsonDamage `json:"torn,omitempty"` // a write that was cut off

	// Of level kernel.
	Records  int          `json:"records,omitempty"`  // messages, and parts of large ones
	Rebooted bool         `json:"rebooted,omitempty"` // it was used before the host was started, or in another IPC namespace
	Orphans  []jsonOrphan `json:"orphans,omitempty"`
}

type jsonDamage struct {
	File   string `json:"file"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Lost   bool   `json:"lost"` // messages are
	What   string `json:"what"`
}

type jsonOrphan struct {
	Key      string `json:"key"`
	ID       int    `json:"msqid"`
	Segment  int    `json:"segment"`
	Messages int    `json:"messages"`
	Bytes    int    `json:"bytes"`
}

func (c *checking) run(args []string) error {
	dir, name, err := c.where(args)
	if err != nil {
		return err
	}
	names := []string{name}
	if name == "" {
		if names, err = storedQueues(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: there is no directory %s", errNoQueue, c.state.looked(c.target, dir))
		} else if err != nil {
			return err
		}
		if len(names) == 0 {
			fmt.Fprintf(os.Stderr, "postbus queue check: nothing is kept in %s\n", c.state.looked(c.target, dir))
		}
	}
	p := newProgress(os.Stderr, int64(len(names)))
	var failed []error
	for i, name := range names {
		begin := time.Now()
		end := p.while(progressEvery, func() {
			p.show(int64(i), "checking %s, %v", name, time.Since(begin).Round(time.Second))
		})
		found, err := checkQueue(dir, name)
		end()
		if errors.Is(err, errNoQueue) {
			err = c.state.notKept(c.target, dir, name)
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		for i := range found {
			if err := c.print(&found[i], dir); err != nil {
				return err
			}
			if len(found[i].Damage) > 0 {
				failed = append(failed, fmt.Errorf("%w: queue %s", store.ErrDamaged, name))
			}
		}
	}
	return errors.Join(failed...)
}

// where returns the state directory, and which queue there; "" means all.
func (c *checking) where(args []string) (dir, name string, err error) {
	if len(args) == 1 && (strings.Contains(args[0], "/") || args[0] == ".") {
		if c.state.dir != "" {
			return "", "", usagef("both --state %s and the directory %s", c.state.dir, args[0])
		}
		return args[0], "", nil
	}
	if len(args) == 1 {
		if err := wire.CheckQueueName(args[0]); err != nil {
			return "", "", &usageError{err}
		}
		name = args[0]
	}
	dir, err = c.state.path(c.target)
	return dir, name, err
}

// What the names of a queue's files end in, by level.
const (
	diskFiles = ".disk" // a directory
	keyFile   = ".key"
)

// storedQueues returns the names of the queues that are kept in dir.
func storedQueues(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		for _, suffix := range []string{diskFiles, keyFile} {
			name, ok := strings.CutSuffix(e.Name(), suffix)
			if ok && wire.CheckQueueName(name) == nil && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// checkQueue verifies what is kept of one queue.
func checkQueue(dir, name string) (found []checked, err error) {
	base := filepath.Join(dir, name)
	if _, err := os.Stat(base + diskFiles); err == nil {
		report, err := checkStore(dir, name)
		if err != nil {
			return nil, err
		}
		found = append(found, checkedDisk(name, &report))
	}
	if _, err := os.Stat(base + keyFile); err == nil {
		kernel, err := checkKernel(dir, name)
		if err != nil {
			return nil, err
		}
		found = append(found, kernel)
	}
	if len(found) == 0 {
		return nil, errNoQueue
	}
	return found, nil
}

// notKept is the error for a queue of which nothing is kept.
func (s *stateFlag) notKept(to *target, dir, name string) error {
	return fmt.Errorf("%w: nothing is kept of a queue %s in %s; those of level memory are not kept", errNoQueue, name, s.looked(to, dir))
}

// checkStore is store.Check, for which damage is no error if the report has it.
func checkStore(dir, name string) (store.Report, error) {
	report, err := store.Check(dir, name)
	if errors.Is(err, store.ErrDamaged) && len(report.Damage) > 0 {
		err = nil
	}
	return report, stopFirst(err)
}

// stopFirst adds the remedy to the error of a store that is open.
func stopFirst(err error) error {
	if errors.Is(err, store.ErrInUse) {
		return fmt.Errorf("%w: stop the broker first", err)
	}
	return err
}

func checkedDisk(name string, r *store.Report) checked {
	c := checked{Queue: name, Level: "disk", Segments: r.Segments, Bytes: r.Bytes, Messages: r.Messages, Damage: []jsonDamage{}}
	for _, d := range r.Damage {
		c.Damage = append(c.Damage, newJSONDamage(&d))
	}
	if r.Torn != nil {
		torn := newJSONDamage(r.Torn)
		c.Torn = &torn
	}
	return c
}

func newJSONDamage(d *store.Damage) jsonDamage {
	return jsonDamage{d.Path, d.Offset, d.Length, d.Lost, d.What}
}

// checkKernel compares the key file of a queue of level kernel with the queues that the
// kernel has.
func checkKernel(dir, name string) (checked, error) {
	c := checked{Queue: name, Level: "kernel", Damage: []jsonDamage{}}
	host, err := store.HostQueues() // before the files: what is made meanwhile is not in it
	if err != nil {
		return c, err
	}
	files, err := store.SysVKeyFiles(dir)
	if err != nil && !errors.Is(err, store.ErrDamaged) {
		return c, err
	}
	path := filepath.Join(dir, name+keyFile)
	at := slices.IndexFunc(files, func(k store.SysVKeyFile) bool { return k.Name == name })
	if at < 0 {
		damage := jsonDamage{File: path, Lost: true, What: "the key file is not what was written: whose its kernel queues are is not known"}
		if info, err := os.Stat(path); err == nil {
			damage.Length = info.Size()
		}
		c.Damage = append(c.Damage, damage)
		return c, nil
	}
	k := &files[at]
	for i := range host {
		q := &host[i]
		switch segment, claim := k.Claim(q); claim {
		case store.Owned:
			c.Segments++
			c.Bytes += int64(q.Bytes)
			c.Records += q.Messages
		case store.Orphaned:
			c.Orphans = append(c.Orphans, jsonOrphan{q.Key.String(), q.ID, segment, q.Messages, q.Bytes})
		}
	}
	segments, gone := k.Segments(), 0
	for _, id := range segments {
		if !slices.ContainsFunc(host, func(q store.HostQueue) bool { return q.ID == id }) {
			gone++
		}
	}
	c.Rebooted = !k.ThisHost && len(segments) > 0
	if k.ThisHost && gone > 0 {
		c.Damage = append(c.Damage, jsonDamage{File: path, Lost: true,
			What: fmt.Sprintf("%d of its %d kernel queues are not there any more: somebody has removed them (ipcrm, RemoveIPC of systemd-logind)", gone, len(segments))})
	}
	return c, nil
}

func (c *checking) print(q *checked, dir string) error {
	if c.json {
		return writeOut(append(appendJSON(nil, q), '\n'))
	}
	text := q.text()
	if q.Level == "disk" && len(q.Damage) > 0 {
		text += fmt.Sprintf("  remedy: postbus queue salvage --state %s %s\n", dir, q.Queue)
	}
	return writeOut([]byte(text))
}

// text is what is printed of a queue: a line, and one for each thing that was found.
func (q *checked) text() string {
	var out bytes.Buffer
	state := "whole"
	if len(q.Damage) > 0 {
		state = "damaged"
		if !slices.ContainsFunc(q.Damage, func(d jsonDamage) bool { return d.Lost }) {
			state = "damaged, nothing is missing"
		}
	}
	fmt.Fprintf(&out, "%s, level %s: %s", q.Queue, q.Level, state)
	if q.Level == "disk" {
		fmt.Fprintf(&out, ", %d messages in %d files of %d bytes\n", q.Messages, q.Segments, q.Bytes)
	} else {
		fmt.Fprintf(&out, ", %d records in %d kernel queues with %d bytes\n", q.Records, q.Segments, q.Bytes)
	}
	for _, d := range q.Damage {
		fmt.Fprintf(&out, "  %s\n", &d)
	}
	if q.Torn != nil {
		fmt.Fprintf(&out, "  %s\n", q.Torn)
	}
	if q.Rebooted {
		out.WriteString("  it was last used before the host was started, or in another IPC namespace: what was in it then is gone\n")
	}
	for _, o := range q.Orphans {
		fmt.Fprintf(&out, "  kernel queue %d with key %s of segment %d is not its own: %d messages, %d bytes; see postbus sysv doctor\n",
			o.ID, o.Key, o.Segment, o.Messages, o.Bytes)
	}
	return out.String()
}

func (d *jsonDamage) String() string {
	return fmt.Sprintf("%s: offset %d, length %d: %s", d.File, d.Offset, d.Length, d.What)
}

// complete completes the names of queues that are kept.
func (c *checking) complete(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.state.keptNames(c.target), cobra.ShellCompDirectiveDefault
}

// keptNames returns the names of the queues that are kept, as far as they can be known.
func (s *stateFlag) keptNames(to *target) []string {
	dir, err := s.path(to)
	if err != nil {
		return nil
	}
	names, _ := storedQueues(dir)
	return names
}
