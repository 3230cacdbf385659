package examples_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Each program is run as its reader would run it.

func TestPubsub(t *testing.T) {
	program := build(t, "./pubsub")
	out := runProgram(t, "POSTBUS_ADDRESS="+startBroker(t, "unixpacket"), program)
	if !strings.HasPrefix(out, "build/done: ok, from uid ") {
		t.Errorf("it printed %q", out)
	}
}

func TestWorkqueue(t *testing.T) {
	program := build(t, "./workqueue")
	address := startBroker(t, "unixpacket")
	want := []string{
		"broken.png is a dead letter: rejected: not a picture",
		"broken.png is kept at level disk",
		"busy.png is done",
		"busy.png is kept at level disk",
		"one.png is done",
		"one.png is kept at level disk",
		"two.png is done",
		"two.png is kept at level disk",
	}
	for range 2 { // the second time it finds nothing of the first
		got := strings.Split(strings.TrimSpace(runProgram(t, "POSTBUS_ADDRESS="+address, program)), "\n")
		slices.Sort(got) // two workers print
		if !slices.Equal(got, want) {
			t.Errorf("it printed, in another order,\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestWorkqueueScript(t *testing.T) {
	postbus := build(t, "../cmd/postbus")
	script, err := filepath.Abs("workqueue.sh")
	if err != nil {
		t.Fatal(err)
	}
	out := runProgram(t, "PATH="+filepath.Dir(postbus)+":"+os.Getenv("PATH"), script)
	if !strings.HasSuffix(out, "all 20 jobs are done\n") {
		t.Errorf("it printed %q", out)
	}
}

// build builds the program in folder, and returns its path.
func build(t *testing.T, folder string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(folder))
	if out, err := exec.Command("go", "build", "-o", path, folder).CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", folder, err, out)
	}
	return path
}

// runProgram runs a program with one more variable in its environment, and returns what
// it printed. Without a broker's address it would start, and leave, one for this user.
func runProgram(t *testing.T, variable, program string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, program)
	command.Env = append(os.Environ(), "POSTBUS_AUTOSTART=0", "TMPDIR="+t.TempDir(), variable)
	command.Stdout, command.Stderr = &stdout, &stderr
	command.WaitDelay = time.Second // what it started may have its output open
	if err := command.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", program, err, &stdout, &stderr)
	}
	return stdout.String()
}
