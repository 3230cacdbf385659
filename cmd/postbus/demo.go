package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
)

const (
	// demoLimit ends a demo that hangs.
	demoLimit = time.Minute

	// demoBurst is how many messages a slow reader has to cope with: several times
	// what fits into the broker's buffer for it and into a socket.
	demoBurst = 20000

	// demoBuffer is that reader's buffer in the broker, in messages.
	demoBuffer = "1000"

	// demoPatience is how long a held up publisher is watched.
	demoPatience = 300 * time.Millisecond
)

func newDemo() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show in a few seconds what postbus does",
		Long: `Demo starts a broker on a temporary bus, some subscriber and publisher processes
(this very program), and shows what each received, what a slow one missed and was
told, how the publisher was identified, and that a queue survives when its broker is
killed. It checks all that, ends with 1 if anything was not as promised, and leaves
nothing behind.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithCancelCause(cmd.Context())
			defer cancel(nil)
			defer onSignal(func() { cancel(errInterrupted) }, unix.SIGINT, unix.SIGTERM)()
			ctx, stop := context.WithTimeoutCause(ctx, demoLimit, fmt.Errorf("the demo did not end within %v", demoLimit))
			defer stop()
			keepOnBrokenPipe() // or it would leave its processes and files behind
			if err := runDemo(ctx, os.Stdout); err != nil {
				return endedBy(ctx, err)
			}
			return nil
		},
	}
}

// demo is one run of `postbus demo`.
type demo struct {
	troupe
	out    io.Writer
	checks int
	failed []string
}

// runDemo sets the stage, plays, and clears it away.
func runDemo(ctx context.Context, out io.Writer) (err error) {
	start := time.Now()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "postbus-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	bus := filepath.Join(tmp, "bus")
	endBroker, err := demoBroker(bus)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, endBroker()) }()

	d := &demo{troupe: troupe{self: self, bus: bus}, out: out}
	defer d.dismiss()
	d.printf("A broker runs in process %d, on the temporary bus %s.\nEvery other command below is a process of its own.\n", os.Getpid(), bus)
	for _, act := range []func(context.Context) error{d.topics, d.identity, d.slowReader, d.blockingReader, d.killedBroker} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return d.conclude(time.Since(start))
}

// demoBroker starts a broker within this process and returns what ends it.
func demoBroker(bus string) (end func() error, err error) {
	dir, err := broker.OpenDir(bus, nil)
	if err != nil {
		return nil, err
	}
	b, err := broker.New(nil)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	served := make(chan error, 1)
	go func() { served <- b.ServeDir(dir) }()
	return func() error {
		err := b.Close()
		if serr := <-served; !errors.Is(serr, broker.ErrClosed) {
			err = errors.Join(err, serr)
		}
		return err
	}, nil
}

// topics shows that each subscriber gets what its filter asks for.
func (d *demo) topics(ctx context.Context) error {
	d.title("Each subscriber gets what it asked for")
	const format = "%t=%b%n"
	subs := []struct {
		filter string
		want   string
		*process
	}{
		{filter: "build/#", want: "build/linux/done=ok build/arm/log=compiling"},
		{filter: "build/+/done", want: "build/linux/done=ok"},
		{filter: "deploy/#", want: "deploy/web=v2"},
	}
	var err error
	for i := range subs {
		if subs[i].process, err = d.subscribe(ctx, "-f", format, subs[i].filter); err != nil {
			return err
		}
	}
	for _, m := range [][2]string{{"build/linux/done", "ok"}, {"build/arm/log", "compiling"}, {"deploy/web", "v2"}} {
		p, err := d.publish(ctx, nil, m[0], m[1])
		if err != nil {
			return err
		}
		d.printf("  process %-8d%s\n", p.pid(), p.line)
	}
	d.printf("\n")
	for _, s := range subs {
		if err := s.finish(); err != nil {
			return err
		}
		got := strings.Join(strings.Fields(s.stdout.String()), " ")
		d.printf("  process %-8dpostbus sub %-16s received  %s\n", s.pid(), "'"+s.filter+"'", got)
		d.check(got == s.want, "%s was to receive %q", s.line, s.want)
	}
	return nil
}

// identity shows that the kernel tells who published.
func (d *demo) identity(ctx context.Context) error {
	d.title("The kernel says who published, nobody can pretend")
	sub, err := d.subscribe(ctx, "--json", "-n", "1", "alarm/#")
	if err != nil {
		return err
	}
	pub, err := d.publish(ctx, nil, "-H", "from=the president", "alarm/fire", "kitchen")
	if err != nil {
		return err
	}
	if err := sub.wait(); err != nil {
		return err
	}
	var m jsonMessage
	if err := json.Unmarshal(sub.stdout.Bytes(), &m); err != nil {
		return fmt.Errorf("%q printed no JSON: %w", sub.line, err)
	}
	d.printf("  process %-8d%s\n", pub.pid(), pub.line)
	d.printf("  process %-8d%s   received\n\n    %s", sub.pid(), sub.line, sub.stdout.Bytes())
	d.check(int(m.From.UID) == os.Getuid() && int(m.From.PID) == pub.pid(),
		"the message is from uid %d, pid %d, and was published by uid %d, pid %d", m.From.UID, m.From.PID, os.Getuid(), pub.pid())
	return nil
}

// slowReader shows that a subscriber that does not keep up is told what it missed,
// and costs the others nothing.
func (d *demo) slowReader(ctx context.Context) error {
	d.title("A slow reader is told what it missed, and holds up nobody")
	fast, err := d.subscribe(ctx, "burst")
	if err != nil {
		return err
	}
	slow, err := d.subscribe(ctx, "--json", "--policy", "drop-old", "--buffer", demoBuffer, "burst")
	if err != nil {
		return err
	}
	if err := slow.stop(); err != nil {
		return err
	}
	d.printf("  process %-8d%s   is stopped (SIGSTOP)\n", slow.pid(), slow.line)
	start := time.Now()
	burst := numbered(demoBurst)
	pub, err := d.publish(ctx, bytes.NewReader(burst), "-l", "burst")
	if err != nil {
		return err
	}
	d.printf("  process %-8d%s   published %d messages, done after %v\n",
		pub.pid(), pub.line, demoBurst, time.Since(start).Round(time.Millisecond))
	if err := errors.Join(slow.resume(), slow.finish(), fast.finish()); err != nil {
		return err
	}
	got, err := tally(slow.stdout.Bytes())
	if err != nil {
		return err
	}
	d.printf("  process %-8dgoes on (SIGCONT), and is told\n\n    %s\n", slow.pid(), slow.stderr.Bytes())
	d.printf("  slow   received %5d + told as missing %5d = %d\n", got.received, got.missing, got.received+got.missing)
	d.printf("  fast   received %5d\n", bytes.Count(fast.stdout.Bytes(), []byte("\n")))
	d.check(got.missing > 0, "the slow reader was to miss something")
	d.check(got.received+got.missing == demoBurst, "the slow reader received %d and was told of %d missing, of %d", got.received, got.missing, demoBurst)
	d.check(bytes.Equal(fast.stdout.Bytes(), burst), "the fast reader was to receive all messages in order")
	return nil
}

// blockingReader shows that a subscriber with the policy block loses nothing:
// publishers wait for it.
func (d *demo) blockingReader(ctx context.Context) error {
	d.title("A reader with --policy block loses nothing: publishers wait for it")
	sub, err := d.subscribe(ctx, "--policy", "block", "--buffer", demoBuffer, "burst")
	if err != nil {
		return err
	}
	if err := sub.stop(); err != nil {
		return err
	}
	d.printf("  process %-8d%s   is stopped (SIGSTOP)\n", sub.pid(), sub.line)
	burst := numbered(demoBurst)
	pub, err := d.start(ctx, bytes.NewReader(burst), "pub", "-l", "burst")
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- pub.wait() }()
	select {
	case err := <-done:
		d.check(false, "the publisher was to wait for the stopped reader, but ended: %v", err)
		done <- err
	case <-time.After(demoPatience):
		d.printf("  process %-8d%s   waits, also after %v\n", pub.pid(), pub.line, demoPatience)
	}
	if err := errors.Join(sub.resume(), <-done, sub.finish()); err != nil {
		return err
	}
	d.printf("  process %-8dgoes on (SIGCONT), so the publisher does\n\n", sub.pid())
	d.printf("  block  received %5d of %d, in order\n", bytes.Count(sub.stdout.Bytes(), []byte("\n")), demoBurst)
	d.check(bytes.Equal(sub.stdout.Bytes(), burst), "the block reader was to receive all messages in order")
	d.check(sub.stderr.Len() == 0, "the block reader was to be told of nothing missing, but was: %s", sub.stderr.Bytes())
	return nil
}

// conclude says how it went.
func (d *demo) conclude(took time.Duration) error {
	for _, f := range d.failed {
		d.printf("\nNOT AS PROMISED: %s", f)
	}
	if len(d.failed) > 0 {
		d.printf("\n")
		return fmt.Errorf("%d of %d checks failed", len(d.failed), d.checks)
	}
	d.printf(`
%d checks passed in %.1f s; nothing is left behind. Now you:

  postbus sub 'build/#'                    in one terminal
  postbus pub build/linux/done ok          in another

  postbus queue create jobs --level disk   work that waits until it is done
  postbus push jobs 'resize 17.png'
  postbus pull jobs
`, d.checks, took.Seconds())
	return nil
}

// check notes whether what was promised holds.
func (d *demo) check(holds bool, format string, args ...any) {
	d.checks++
	if !holds {
		d.failed = append(d.failed, fmt.Sprintf(format, args...))
	}
}

func (d *demo) title(text string) { d.printf("\n%s\n%s\n\n", text, strings.Repeat("-", len(text))) }

// printf prints; when nobody reads any more there is nothing left to say.
func (d *demo) printf(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

// numbered returns n lines that tell of their number.
func numbered(n int) []byte {
	var lines bytes.Buffer
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&lines, "message %d\n", i)
	}
	return lines.Bytes()
}

// demoTally is what `sub --json` printed, counted.
type demoTally struct{ received, missing int }

func tally(lines []byte) (t demoTally, err error) {
	dec := json.NewDecoder(bytes.NewReader(lines))
	for {
		var line jsonGap
		if err := dec.Decode(&line); err == io.EOF {
			return t, nil
		} else if err != nil {
			return t, fmt.Errorf("a subscriber printed no JSON: %w", err)
		}
		if line.Gap.Reason == "" {
			t.received++
		} else if line.Gap.Count != nil {
			t.missing += int(*line.Gap.Count)
		}
	}
}
