package main

import (
	"bytes"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/store"
)

// newSysVList returns `postbus sysv ls`.
func newSysVList(to *target) *cobra.Command {
	var state stateFlag
	var json bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the host's System V message queues",
		Long: `Ls lists the message queues of this IPC namespace, those of all users, as
/proc/sysvipc/msg has them. QUEUE is for those of queues of level kernel, by the
key files in --state: NAME/3 is segment 3 of queue NAME; with "orphan" it has a
key of that queue and is not known to it (see postbus sysv doctor).

SENDER and RECEIVER are the processes that sent and received last; their numbers
may be others' by now.`,
		Example: `  postbus sysv ls
  postbus sysv ls --json | jq 'select(.messages > 0)'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return listSysV(&state, to, json) },
	}
	state.addFlag(cmd.Flags())
	cmd.Flags().BoolVar(&json, "json", false, "print each queue as a JSON object on a line of its own")
	return cmd
}

// jsonKernelQueue is a kernel queue as sysv ls --json prints it.
type jsonKernelQueue struct {
	Key          string `json:"key"`
	ID           int    `json:"id"`
	UID          int    `json:"uid"`
	GID          int    `json:"gid"`
	CUID         int    `json:"cuid"`
	CGID         int    `json:"cgid"`
	Mode         string `json:"mode"`
	Messages     int    `json:"messages"`
	Bytes        int    `json:"bytes"`
	LastSender   int    `json:"last_sender,omitempty"`
	LastReceiver int    `json:"last_receiver,omitempty"`
	Sent         string `json:"sent,omitempty"`
	Received     string `json:"received,omitempty"`
	Changed      string `json:"changed,omitempty"`
	Queue        string `json:"queue,omitempty"`
	Segment      int    `json:"segment,omitempty"`
	Orphan       bool   `json:"orphan,omitempty"`
}

// kernelQueue is one of the host's, and what it is to us.
type kernelQueue struct {
	store.HostQueue
	claim   store.Claim
	queue   string // with Owned and Orphaned: whose segment it has the key of
	segment int
}

// kernelQueues lists the host's queues. dir is the state directory; why, if not nil, says why
// ours could not all be told from the others.
func kernelQueues(state *stateFlag, to *target) (all []kernelQueue, files []store.SysVKeyFile, dir string, why, err error) {
	host, err := store.HostQueues() // before the key files: see Claim
	if err != nil {
		return nil, nil, "", nil, err
	}
	files, dir, why, err = state.keyFiles(to)
	if err != nil {
		return nil, nil, dir, nil, err
	}
	for _, q := range host {
		k := kernelQueue{HostQueue: q}
		for i := range files {
			segment, c := files[i].Claim(&q)
			if c == store.Owned || c != store.Unrelated && k.claim == store.Unrelated {
				k.claim, k.queue, k.segment = c, files[i].Name, segment
			}
		}
		all = append(all, k)
	}
	return all, files, dir, why, nil
}

func listSysV(state *stateFlag, to *target, json bool) error {
	all, files, dir, why, err := kernelQueues(state, to)
	if err != nil {
		return err
	}
	out := output{file: os.Stdout}
	if json {
		for i := range all {
			out.printJSON(all[i].json())
		}
	} else {
		out.buf = appendKernelQueues(out.buf, all)
	}
	switch {
	case why != nil:
		fmt.Fprintf(os.Stderr, "postbus sysv ls: ours are not all marked: %s\n", sentence(why))
	case len(files) == 0:
		fmt.Fprintf(os.Stderr, "postbus sysv ls: none is marked as ours: there is no key file in %s\n", state.looked(to, dir))
	}
	return out.flush()
}

func (k *kernelQueue) json() jsonKernelQueue {
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	j := jsonKernelQueue{
		Key: k.Key.String(), ID: k.ID, UID: k.UID, GID: k.GID, CUID: k.CUID, CGID: k.CGID, Mode: fmt.Sprintf("%04o", k.Mode&0o777),
		Messages: k.Messages, Bytes: k.Bytes, LastSender: k.LastSender, LastReceiver: k.LastReceiver,
		Sent: at(k.Sent), Received: at(k.Received), Changed: at(k.Changed),
	}
	if k.claim == store.Owned || k.claim == store.Orphaned {
		j.Queue, j.Segment, j.Orphan = k.queue, k.segment, k.claim == store.Orphaned
	}
	return j
}

// mark is what the column QUEUE has.
func (k *kernelQueue) mark() string {
	switch k.claim {
	case store.Owned:
		return fmt.Sprintf("%s/%d", k.queue, k.segment)
	case store.Orphaned:
		return fmt.Sprintf("%s/%d orphan", k.queue, k.segment)
	}
	return ""
}

// appendKernelQueues appends a table.
func appendKernelQueues(dst []byte, all []kernelQueue) []byte {
	var text bytes.Buffer
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "KEY\tID\tOWNER\tMODE\tMESSAGES\tBYTES\tSENDER\tRECEIVER\tQUEUE")
	pid := func(n int) string {
		if n == 0 {
			return "-"
		}
		return fmt.Sprint(n)
	}
	for i := range all {
		k := &all[i]
		fmt.Fprintf(table, "%v\t%d\t%s\t%04o\t%d\t%d\t%s\t%s\t%s\n", k.Key, k.ID, userName(k.UID), k.Mode&0o777,
			k.Messages, k.Bytes, pid(k.LastSender), pid(k.LastReceiver), k.mark())
	}
	table.Flush()
	for line := range bytes.Lines(text.Bytes()) {
		dst = append(append(dst, bytes.TrimRight(line, " \n")...), '\n')
	}
	return dst
}
