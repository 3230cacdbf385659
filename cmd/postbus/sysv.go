package main

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/store"
)

// newSysV returns the commands about System V message queues.
func newSysV(to *target) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sysv",
		Short: "System V message queues: old programs, and the kernel level's own",
		Long: `Sysv is about the message queues of msgget(2): those of old programs, which it
connects with the bus, and those in which queues of level kernel are kept.

  postbus sysv ls                                  what there is on this host
  postbus sysv import --key 0x5105 orders          an old producer feeds a queue
  postbus sysv export --queue orders --path /etc/app.conf --proj 7
                                                   a queue feeds an old consumer
  postbus sysv doctor                              limits, orphans, what removes queues`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("which command? They are: %s", commandNames(cmd))
		},
	}
	cmd.AddCommand(newSysVList(to), newSysVImport(to), newSysVExport(to), newSysVDoctor(to), newSysVOrphans(to))
	return cmd
}

// keyFiles reads the key files in the directory. One that is not there, or another user's,
// is no error unless it was named: then nothing is known to be ours, and why says so.
func (s *stateFlag) keyFiles(to *target) (files []store.SysVKeyFile, dir string, why, err error) {
	if dir, err = s.path(to); err != nil {
		return nil, dir, nil, err
	}
	files, err = store.SysVKeyFiles(dir)
	switch {
	case err == nil:
		return files, dir, nil, nil
	case errors.Is(err, store.ErrNotFound) && s.dir == "": // no queue was ever made
		return nil, dir, nil, nil
	case errors.Is(err, store.ErrNotAllowed) && s.dir == "", errors.Is(err, store.ErrDamaged):
		return files, dir, err, nil
	}
	return files, dir, nil, err
}

// kernelQueueFlag says which kernel queue a command is about.
type kernelQueueFlag struct {
	key  string
	id   int
	path string
	proj string
}

func (k *kernelQueueFlag) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&k.key, "key", "", "the kernel queue with `KEY`, such as 0x5105, as ipcs -q shows it")
	flags.IntVar(&k.id, "id", -1, "the kernel queue with msqid `N`")
	flags.StringVar(&k.path, "path", "", "the kernel queue with the key ftok(`FILE`, --proj)")
	flags.StringVar(&k.proj, "proj", "", "`N`, 1 to 255, or one character that is no digit: ftok's second argument")
	flags.Lookup("id").DefValue = "0" // shows none
	cmd.MarkFlagsMutuallyExclusive("key", "id", "path")
	cmd.MarkFlagsOneRequired("key", "id", "path")
	cmd.MarkFlagsRequiredTogether("path", "proj")
}

// byKey returns the key that the flags say; false where they say an id.
func (k *kernelQueueFlag) byKey() (key store.Key, ok bool, err error) {
	switch {
	case k.path != "":
		proj, err := parseProj(k.proj)
		if err != nil {
			return 0, true, err
		}
		key, err := store.Ftok(k.path, proj)
		return key, true, err
	case k.key != "":
		key, err := parseKey(k.key)
		return key, true, err
	case k.id < 0:
		return 0, false, usagef("--id %d: it must be 0 or more", k.id)
	}
	return 0, false, nil
}

// open finds the queue.
func (k *kernelQueueFlag) open() (q *store.Foreign, err error) {
	key, ok, err := k.byKey()
	if err != nil {
		return nil, err
	}
	if ok {
		q, err = store.OpenForeign(key)
	} else {
		q, err = store.OpenForeignID(k.id)
	}
	if errors.Is(err, store.ErrNotFound) {
		err = &noKernelQueue{err}
	}
	return q, err
}

// noKernelQueue is an errNoQueue about a kernel queue.
type noKernelQueue struct{ err error }

func (e *noKernelQueue) Error() string        { return e.err.Error() }
func (e *noKernelQueue) Unwrap() error        { return e.err }
func (e *noKernelQueue) Is(target error) bool { return target == errNoQueue }

// parseKey reads a key as ipcs prints it, or as a decimal number that may be signed.
func parseKey(s string) (store.Key, error) {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil || n < -1<<31 || n >= 1<<32 {
		return 0, usagef("--key %q: write it as ipcs -q does, such as 0x00005105", s)
	}
	if key := store.Key(uint32(n)); key != 0 && key != -1 {
		return key, nil
	}
	return 0, usagef("--key %s: 0 is IPC_PRIVATE and -1 what a failed ftok gives; neither finds a queue; try --id", s)
}

// parseProj reads ftok's project id: a number, or the character that a C program has
// there. Only the low 8 bits count (ftok(3)).
func parseProj(s string) (int, error) {
	bare := strings.TrimSuffix(strings.TrimPrefix(s, "'"), "'")
	if len(bare) == 1 && (bare[0] < '0' || bare[0] > '9' || len(s) == 3) {
		return int(bare[0]), nil
	}
	n, err := strconv.ParseInt(s, 0, 32)
	if err != nil || n&0xff == 0 {
		return 0, usagef("--proj %q: write a number from 1 to 255, or the character that ftok is given, such as A or \"'7'\"", s)
	}
	return int(n), nil
}

// refuseOurs fails if q is one of a broker's own: those are read by nobody else. One whose key
// file is not among files is known by what is in it.
func refuseOurs(files []store.SysVKeyFile, q *store.Foreign) error {
	state, err := q.Stat()
	if errors.Is(err, store.ErrNotAllowed) { // who may only send may not look either
		return nil
	} else if err != nil {
		return err
	}
	for i := range files {
		if segment, c := files[i].Claim(&state); c == store.Owned || c == store.Orphaned {
			return usagef("%v is segment %d of postbus's own queue %s: use postbus pull %s, or postbus sysv doctor for an orphan",
				q, segment, files[i].Name, files[i].Name)
		}
	}
	if r, err := q.Copy(make(store.Record, store.TypeSize+state.Bytes), 0); err == nil && r.Ours() {
		return usagef("%v is a segment of a queue of postbus: use postbus pull, or postbus sysv doctor --state with its broker's", q)
	}
	return nil
}

// userName returns the name of uid, or the number where it has none.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// printJSON prints v as a JSON object on a line of its own.
func (o *output) printJSON(v any) {
	o.buf = append(appendJSON(o.buf, v), '\n')
}

// plural is "1 message" or "2 messages".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
