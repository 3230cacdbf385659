package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/store"
)

// newSysVOrphans returns `postbus sysv rm-orphans`.
func newSysVOrphans(to *target) *cobra.Command {
	var state stateFlag
	var json bool
	cmd := &cobra.Command{
		Use:   "rm-orphans",
		Short: "Remove kernel queues that a crash has left behind",
		Long: `Rm-orphans removes kernel queues with a key of a key file in --state that are not
known to that file, with the messages in them. It leaves, and ends with 1, those that
are not proved to be ours: that are empty, hold anything but records of that queue, are
older than it, were last sent to by a process that runs, or belong to another queue
or user. It may run beside the broker.`,
		Example: `  postbus sysv ls            # shows orphans
  postbus sysv rm-orphans`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			queues, files, dir, why, err := kernelQueues(&state, to)
			if err == nil {
				err = why
			}
			if err != nil {
				return err
			}
			if len(files) == 0 {
				fmt.Fprintf(os.Stderr, "postbus sysv rm-orphans: nothing to do: there is no key file in %s\n", state.looked(to, dir))
			}
			return removeOrphans(queues, dir, json)
		},
	}
	state.addFlag(cmd.Flags())
	cmd.Flags().BoolVar(&json, "json", false, "print what became of each as a JSON object on a line of its own")
	return cmd
}

// jsonRemoved is an orphan as sysv rm-orphans --json prints it.
type jsonRemoved struct {
	Key     string `json:"key"`
	ID      int    `json:"id"`
	Queue   string `json:"queue"`
	Segment int    `json:"segment"`
	Removed bool   `json:"removed"`
	Records int    `json:"records"`
	Why     string `json:"why,omitempty"` // it was left
}

// removeOrphans removes those of queues that are orphans of key files in dir, and provably so.
func removeOrphans(queues []kernelQueue, dir string, json bool) error {
	out := output{file: os.Stdout}
	left := 0
	for i := range queues {
		q := &queues[i]
		if q.claim != store.Orphaned {
			continue
		}
		records, err := store.RemoveSysVOrphan(dir, q.queue, &q.HostQueue)
		j := jsonRemoved{Key: q.Key.String(), ID: q.ID, Queue: q.queue, Segment: q.segment, Removed: err == nil, Records: records}
		if err != nil {
			left++
			j.Why = sentence(err)
		}
		switch {
		case json:
			out.printJSON(j)
		case err != nil:
			out.buf = fmt.Appendf(out.buf, "left: %s\n", j.Why)
		default:
			out.buf = fmt.Appendf(out.buf, "removed kernel queue %d, %s/%d, with %s\n", q.ID, q.queue, q.segment, plural(records, "record"))
		}
	}
	if err := out.flush(); err != nil {
		return err
	}
	if left > 0 {
		return fmt.Errorf("%s left: not proved to be ours", plural(left, "kernel queue"))
	}
	return nil
}
