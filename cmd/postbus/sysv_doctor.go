package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/store"
)

// newSysVDoctor returns `postbus sysv doctor`.
func newSysVDoctor(to *target) *cobra.Command {
	d := &doctor{target: to, host: "/"}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what endangers queues that are kept in the kernel",
		Long: `Doctor looks at this host, and at the key files in --state, and explains what it
finds, with a remedy where something needs attention:

  limits      kernel.msgmax, msgmnb and msgmni, and what they mean for queues
  room        kernel queues in use, of all users, against msgmni
  queues      the queues of level kernel, and what became of their kernel queues
  orphans     kernel queues with a key of ours that no queue has, left by a crash
  strangers   other users' kernel queues that have keys of ours
  remove-ipc  systemd-logind, which removes an ordinary user's queues at logout
  namespace   whether this IPC namespace is the host's
  msg-copy    whether the kernel has MSG_COPY
  units       systemd units of the broker that hide or remove its queues

It changes nothing without --fix-orphans, and ends with 0 when nothing needs
attention, else with 1. Run it as the broker's user, or as root, in the broker's
container if it has one.`,
		Example: `  postbus sysv doctor
  sudo postbus sysv doctor --state /var/lib/postbus
  postbus sysv doctor --json | jq -r 'select(.status == "attention").remedy'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return d.run() },
	}
	d.state.addFlag(cmd.Flags())
	cmd.Flags().BoolVar(&d.json, "json", false, "print each finding as a JSON object on a line of its own")
	cmd.Flags().BoolVar(&d.fix, "fix-orphans", false, "then do as postbus sysv rm-orphans")
	return cmd
}

// What a finding is.
const (
	statusOK        = "ok"
	statusNote      = "note"      // good to know
	statusAttention = "attention" // something is to be done
)

// finding is one thing that doctor has to say.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// doctor is one run of `postbus sysv doctor`.
type doctor struct {
	target *target
	state  stateFlag
	json   bool
	fix    bool
	host   string // the root of the file system looked at; tests have their own

	queues   []kernelQueue
	files    []store.SysVKeyFile
	dir      string
	findings []finding
}

func (d *doctor) ok(check, format string, args ...any) {
	d.findings = append(d.findings, finding{check, statusOK, fmt.Sprintf(format, args...), ""})
}

func (d *doctor) note(check, format string, args ...any) {
	d.findings = append(d.findings, finding{check, statusNote, fmt.Sprintf(format, args...), ""})
}

func (d *doctor) attention(check, remedy, format string, args ...any) {
	d.findings = append(d.findings, finding{check, statusAttention, fmt.Sprintf(format, args...), remedy})
}

func (d *doctor) run() error {
	if err := d.examine(); err != nil {
		return err
	}
	out := output{file: os.Stdout}
	need := 0
	for _, f := range d.findings {
		if f.Status == statusAttention {
			need++
		}
		if d.json {
			out.printJSON(f)
			continue
		}
		out.buf = fmt.Appendf(out.buf, "%-9s  %-10s  %s\n", f.Status, f.Check, f.Text)
		if f.Remedy != "" {
			out.buf = fmt.Appendf(out.buf, "%23s%s\n", "", "remedy: "+f.Remedy)
		}
	}
	if err := out.flush(); err != nil {
		return err
	}
	if d.fix {
		if err := removeOrphans(d.queues, d.dir, d.json); err != nil {
			return err
		}
	}
	switch need {
	case 0:
		return nil
	case 1:
		return errors.New("one finding needs attention")
	}
	return fmt.Errorf("%d findings need attention", need)
}

// examine makes the findings.
func (d *doctor) examine() error {
	queues, files, dir, why, err := kernelQueues(&d.state, d.target)
	if err != nil {
		return err
	}
	d.queues, d.files, d.dir = queues, files, dir
	if why != nil {
		remedy := "run it as the broker's user, or as root"
		if errors.Is(why, store.ErrDamaged) {
			remedy = "see postbus queue check"
		}
		d.attention("queues", remedy, "not all key files in %s can be read: %s", dir, sentence(why))
	}
	d.examineLimits()
	d.examineFiles()
	d.examineClaims()
	d.examineRemoveIPC()
	d.examineNamespace()
	d.examineCopy()
	d.examineUnits()
	return nil
}

// examineFiles looks at what the key files say of their kernel queues.
func (d *doctor) examineFiles() {
	_, ipc, err := store.SysVHost()
	if err != nil {
		d.attention("queues", "", "%s", sentence(err))
		return
	}
	if len(d.files) == 0 {
		d.ok("queues", "no queue of level kernel in %s", d.state.looked(d.target, d.dir))
	}
	for i := range d.files {
		k := &d.files[i]
		segments := k.Segments()
		switch {
		case len(segments) == 0:
			d.ok("queues", "%s has no kernel queue now", k.Name)
		case k.ThisHost:
			d.examineSegments(k, segments)
		case k.IPC != ipc:
			d.attention("queues", "run the broker where it ran before, or drain queue "+k.Name+" there first; a broker started here begins it anew",
				"%s has its messages in IPC namespace ipc:[%d], and this is ipc:[%d]", k.Name, k.IPC, ipc)
		case k.Messages != 0:
			d.attention("queues", "use level disk for what must outlive a reboot; the broker's next start says how many were lost and goes on",
				"%s had messages in kernel queues before this host was started (%s), and they are gone", k.Name, lastCount(k.Messages))
		default:
			d.ok("queues", "%s was empty when the host was last stopped", k.Name)
		}
	}
}

func lastCount(n int) string {
	if n < 0 {
		return "their number is not known"
	}
	return plural(n, "message") + " at the last stop of the broker"
}

// examineSegments looks for kernel queues that somebody has removed.
func (d *doctor) examineSegments(k *store.SysVKeyFile, segments map[int]int) {
	missing, messages, bytes := 0, 0, 0
	for _, id := range segments {
		if at := d.find(id); at != nil {
			messages += at.Messages
			bytes += at.Bytes
		} else if _, err := store.OpenForeignID(id); errors.Is(err, store.ErrNotFound) {
			missing++
		}
	}
	if missing > 0 {
		d.attention("queues", "find out who removes queues: ipcrm in a script, or RemoveIPC (see there); the broker tells what was lost and goes on",
			"%s: %d of its %d kernel queues were removed by somebody else", k.Name, missing, len(segments))
		return
	}
	d.ok("queues", "%s has %s of %d bytes in %s", k.Name, plural(messages, "record"), bytes, plural(len(segments), "kernel queue"))
}

func (d *doctor) find(id int) *kernelQueue {
	for i := range d.queues {
		if d.queues[i].ID == id {
			return &d.queues[i]
		}
	}
	return nil
}

// manyStrangers is how many of a queue's 254 segment numbers others may have before
// that is more than chance, and the queue short of them.
const manyStrangers = 128

// examineClaims looks at the kernel queues with our keys.
func (d *doctor) examineClaims() {
	strangers := make(map[string]int)
	orphans := 0
	for i := range d.queues {
		q := &d.queues[i]
		switch q.claim {
		case store.Orphaned:
			orphans++
			d.attention("orphans", "postbus sysv rm-orphans --state "+d.dir+", which removes it if it is proved to be ours",
				"kernel queue %d has the key of %s/%d, %v, and is not known to it: %s of %d bytes", q.ID, q.queue, q.segment, q.Key,
				plural(q.Messages, "message"), q.Bytes)
		case store.Stranger:
			strangers[q.queue]++
		}
	}
	if orphans == 0 {
		d.ok("orphans", "none")
	}
	for name, n := range strangers {
		if n >= manyStrangers {
			d.attention("strangers", "let another file make its keys: drain and remove the queue, and create it again",
				"other users have %d of the 254 keys of queue %s", n, name)
			continue
		}
		d.note("strangers", "other users have %s of queue %s's 254; it does without them", plural(n, "key"), name)
	}
	if len(strangers) == 0 {
		d.ok("strangers", "none")
	}
}
