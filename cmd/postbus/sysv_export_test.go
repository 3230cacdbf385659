package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/store"
)

// nextOld receives a message as an old program does, waiting while there is none.
func nextOld(ctx context.Context, q *store.Foreign) (string, error) {
	for buf := make(store.Record, 16<<10); ; {
		r, err := q.Receive(buf, 0)
		if err == nil {
			return fmt.Sprintf("%d %s", r.Type(), r.Body()), nil
		}
		if !errors.Is(err, store.ErrEmpty) {
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(pollMin):
		}
	}
}

// readOld receives count messages.
func readOld(t testing.TB, q *store.Foreign, count int) (got []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(got) < count {
		line, err := nextOld(ctx, q)
		if err != nil {
			t.Fatalf("%d of %d messages came: %v", len(got), count, err)
		}
		got = append(got, line)
	}
	return got
}

// fails runs cmd, which must end with code, and returns what it printed on standard error.
func fails(t testing.TB, cmd *exec.Cmd, code int) string {
	t.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("%s: %v, want exit code %d", strings.Join(cmd.Args, " "), err, code)
	}
	return fmt.Sprint(cmd.Stderr)
}

func TestSysVExportQueue(t *testing.T) {
	q, path, proj := oldQueue(t)
	dir := busDir(t)
	serve(t, dir)
	run(t, dir, "queue", "create", "new")
	run(t, dir, "push", "new", "one")
	run(t, dir, "push", "new", "-H", "sysv-type=77", "")
	run(t, dir, "push", "new", "-H", "sysv-type=no", strings.Repeat("x", 8192))
	run(t, dir, "push", "new", strings.Repeat("y", 8193))
	run(t, dir, "push", "new", "last")
	cmd := program(t, "sysv", "export", "--address", dir, "--queue", "new", "--path", path, "--proj", strconv.Itoa(proj), "-n", "4", "--json")
	out, err := cmd.Output()
	if err != nil || !strings.HasSuffix(string(out), "\"exported\":4,\"too_large\":1}\n") {
		t.Fatalf("%v: %s%s", err, out, cmd.Stderr)
	}
	want := []string{"1 one", "77 ", "1 " + strings.Repeat("x", 8192), "1 last"}
	for i, got := range readOld(t, q, 4) {
		if got != want[i] {
			t.Errorf("message %d: %.80q, want %.80q", i+1, got, want[i])
		}
	}
	dead := run(t, dir, "queue", "peek", "new", "--state", "dead", "--json")
	if strings.Count(dead, "\n") != 1 || !strings.Contains(dead, "a body of 8193 bytes is above kernel.msgmax, 8192 bytes: sysctl -w kernel.msgmax=8193") {
		t.Errorf("dead letters: %.500s", strings.ReplaceAll(dead, "y", ""))
	}
	if left := run(t, dir, "queue", "peek", "new", "--state", "ready"); strings.Count(left, "\n") > 1 {
		t.Errorf("left: %s", left)
	}
}

// The kernel queue is full for a while: export waits, and a message is in the queue or in
// the kernel queue whatever happens, until the reader has it.
func TestSysVExportFull(t *testing.T) {
	q, _, _ := oldQueue(t)
	dir := busDir(t)
	serve(t, dir)
	var lines, want bytes.Buffer
	for n := range 60 {
		fmt.Fprintf(&lines, "%d %01000d\n", n, n)
		fmt.Fprintf(&want, "3 %d %01000d\n", n, n)
	}
	for name, from := range map[string][]string{"queue": {"--queue", "new"}, "topic": {"new/#"}} {
		t.Run(name, func(t *testing.T) {
			cmd := program(t, append([]string{"sysv", "export", "--address", dir, "--key", q.Key().String(), "--type", "3", "-n", "60"}, from...)...)
			var feed *exec.Cmd
			if name == "queue" {
				run(t, dir, "queue", "create", "--level", "disk", "new")
				feed = program(t, "push", "--address", dir, "-l", "new")
			} else {
				feed = program(t, "pub", "--address", dir, "-l", "new/x")
			}
			startReady(t, cmd)
			feed.Stdin = bytes.NewReader(lines.Bytes())
			if err := feed.Start(); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(readOld(t, q, 60), "\n") + "\n"
			if err := errors.Join(feed.Wait(), cmd.Wait()); err != nil || got != want.String() {
				t.Errorf("%v: got %d bytes, want %d", err, len(got), want.Len())
			}
		})
	}
}

// readNumbers receives until all numbers below count have come, and returns how many came again.
func readNumbers(t testing.TB, q *store.Foreign, count int) (again int) {
	seen := make([]bool, count)
	for left := count; left > 0; {
		line, err := nextOld(t.Context(), q)
		if err != nil {
			t.Errorf("%d of %d messages came: %v", count-left, count, err)
			break
		}
		n, err := strconv.Atoi(strings.TrimPrefix(line, "1 "))
		switch {
		case err != nil || n < 0 || n >= count:
			t.Errorf("%q came", line)
		case seen[n]:
			again++
		default:
			seen[n] = true
			left--
		}
	}
	return again
}

// Export is killed again and again: nothing is lost, and little comes twice.
func TestSysVExportKilled(t *testing.T) {
	q, _, _ := oldQueue(t)
	dir := busDir(t)
	broker := serve(t, dir)
	run(t, dir, "queue", "create", "--level", "disk", "--max-tries", "0", "new")
	count, kills := 1500, 6
	if full() {
		count, kills = 50000, 60
	}
	var lines bytes.Buffer
	for n := range count {
		fmt.Fprintln(&lines, n)
	}
	push := program(t, "push", "--address", dir, "-l", "new")
	push.Stdin = &lines
	if err := push.Run(); err != nil {
		t.Fatal(err)
	}
	all := make(chan int, 1)
	go func() { all <- readNumbers(t, q, count) }()
	export := func() *exec.Cmd {
		cmd := program(t, "sysv", "export", "--address", dir, "--queue", "new", "--key", q.Key().String())
		startReady(t, cmd)
		return cmd
	}
	for kill := range kills {
		cmd := export()
		anyMoment(40 * time.Millisecond)
		if kill%3 == 2 {
			broker.Process.Kill()
			broker.Wait()
			broker = serve(t, dir)
			anyMoment(40 * time.Millisecond)
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	last := export()
	again := <-all
	if err := last.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := last.Wait(); err != nil {
		t.Errorf("export at SIGINT: %v: %s", err, last.Stderr)
	}
	if again > (kills+kills/3)*exportPrefetch {
		t.Errorf("%d messages came twice", again)
	}
	t.Logf("%d messages, %d twice", count, again)
}

// Somebody removes the kernel queue under an export.
func TestSysVExportRemoved(t *testing.T) {
	q, _, _ := oldQueue(t)
	dir := busDir(t)
	serve(t, dir)
	run(t, dir, "queue", "create", "new")
	cmd := program(t, "sysv", "export", "--address", dir, "--queue", "new", "--key", q.Key().String())
	startReady(t, cmd)
	if err := q.Remove(); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "push", "new", "still here")
	if text := fails(t, cmd, 1); !strings.Contains(text, "somebody removed it (ipcrm") {
		t.Errorf("it says %q", text)
	}
	if got := pulled(t, dir, "new", 1); got[0] != "still here" {
		t.Errorf("in the queue: %q", got)
	}
}

// Import waits while the queue is full, and stops beside another reader.
func TestSysVImportFull(t *testing.T) {
	q, _, _ := oldQueue(t)
	dir := busDir(t)
	serve(t, dir)
	run(t, dir, "queue", "create", "--max-messages", "10", "old")
	const count = 100
	cmd := program(t, "sysv", "import", "--address", dir, "--key", q.Key().String(), "--follow", "-n", strconv.Itoa(count), "old")
	startReady(t, cmd)
	if err := sendNumbered(t.Context(), q, count); err != nil {
		t.Fatal(err)
	}
	checkNumbered(t, pulled(t, dir, "old", count), count)
	if err := cmd.Wait(); err != nil || !strings.Contains(fmt.Sprint(cmd.Stderr), "waiting: ") {
		t.Errorf("%v: %s", err, cmd.Stderr)
	}
}
