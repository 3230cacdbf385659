package main

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/store"
)

// run runs the program in the bus directory dir and returns what it printed.
func run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := program(t, args...)
	cmd.Env = append(os.Environ(), "POSTBUS_ADDRESS="+dir)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, cmd.Stderr)
	}
	return string(out)
}

// busDir returns a new bus directory, whose kernel queues are removed at the end.
func busDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bus")
	t.Cleanup(func() { removeKernelQueues(filepath.Dir(dir)) })
	return dir
}

// pulled returns the bodies that are in a queue, and takes them.
func pulled(t testing.TB, dir, queue string, count int) []string {
	t.Helper()
	if count == 0 {
		return nil
	}
	out := run(t, dir, "pull", "-n", strconv.Itoa(count), "--timeout", "1m", queue)
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// anyMoment waits for up to limit.
func anyMoment(limit time.Duration) { <-time.After(rand.N(limit)) }

// An old program sends without a pause while import is killed again and again, and the broker
// too: every message arrives once, in order.
func TestSysVImportKilled(t *testing.T) {
	for level, flags := range map[string][]string{"disk": nil, "kernel": {"--no-copy"}} {
		t.Run(level, func(t *testing.T) {
			q, _, _ := oldQueue(t)
			dir := busDir(t)
			broker := serve(t, dir)
			run(t, dir, "queue", "create", "--level", level, "old")
			count, kills := 2000, 6
			if full() {
				count, kills = 20000, 60 // what a queue of level kernel holds
			}
			args := append([]string{"sysv", "import", "--address", dir, "--key", q.Key().String(), "old"}, flags...)
			sent := make(chan error, 1)
			go func() { sent <- sendNumbered(t.Context(), q, count) }()
			for kill := range kills {
				im := program(t, append(args, "--follow")...)
				startReady(t, im)
				anyMoment(80 * time.Millisecond)
				if kill%3 == 2 {
					broker.Process.Kill()
					broker.Wait()
					broker = serve(t, dir)
					anyMoment(80 * time.Millisecond)
				}
				im.Process.Kill()
				im.Wait()
			}
			last := program(t, append(args, "--follow")...)
			startReady(t, last)
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			last.Process.Kill()
			last.Wait()
			run(t, dir, args...)
			checkNumbered(t, pulled(t, dir, "old", count), count)
			if left := run(t, dir, "queue", "peek", "old", "-f", "%b%n"); left != "" {
				t.Errorf("more than was sent: %.100q", left)
			}
		})
	}
}

// sendNumbered sends the numbers from 1 to count and waits while the queue is full.
func sendNumbered(ctx context.Context, q *store.Foreign, count int) error {
	s := &kernelSender{sink: q, warn: func(string, ...any) {}}
	for n := 1; n <= count; n++ {
		if err := s.sendRecord(ctx, store.NewRecord(int64(1+n%3), []byte(strconv.Itoa(n)))); err != nil {
			return err
		}
	}
	return nil
}

func checkNumbered(t testing.TB, got []string, count int) {
	t.Helper()
	for i, body := range got {
		if body != strconv.Itoa(i+1) {
			t.Fatalf("message %d is %q", i+1, body)
		}
	}
	if len(got) != count {
		t.Errorf("%d messages, want %d", len(got), count)
	}
}
