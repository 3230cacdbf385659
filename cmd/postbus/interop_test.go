package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/store"
)

// Interop with programs that nobody here wrote: util-linux, Perl's IPC::SysV and IPC::Msg,
// Python's sysv_ipc, and the C library through the programs in examples/. They run
// with POSTBUS_INTEROP=1, as .ci/run sets it, and need Debian's perl, python3-sysv-ipc, gcc,
// libc6-dev and util-linux.

// interop skips the test where it is not asked for, and returns a directory for all
// its files. At the end no kernel queue may be left that has a key of one of them.
func interop(t *testing.T) (root string) {
	t.Helper()
	if os.Getenv("POSTBUS_INTEROP") != "1" {
		t.Skip("interop is not asked for: POSTBUS_INTEROP=1")
	}
	root = t.TempDir()
	t.Cleanup(func() {
		removeKernelQueues(root) // those of brokers that were killed
		all, err := store.HostQueues()
		if err != nil {
			t.Error(err)
		}
		filepath.WalkDir(root, func(path string, _ os.DirEntry, _ error) error {
			key, _ := store.Ftok(path, 0)
			for _, q := range all {
				if uint32(q.Key)&0xffffff == uint32(key) {
					t.Errorf("kernel queue %d, key %v of %s, stays behind", q.ID, q.Key, path)
				}
			}
			return nil
		})
	})
	return root
}

// python is Debian's, which has its sysv_ipc; another in PATH may not.
const python = "/usr/bin/python3"

// other runs a program of others with input and returns what it printed.
func other(t testing.TB, input string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // t's ends before its cleanups
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, &stderr)
	}
	return string(out)
}

// compile builds a C program, of examples/sysv-consumer or a text, and returns its path.
func compile(t testing.TB, root, name, text string) string {
	t.Helper()
	source := filepath.Join("..", "..", "examples", "sysv-consumer", name+".c")
	if text != "" {
		source = filepath.Join(root, name+".c")
		if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(root, name)
	other(t, "", "gcc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source)
	return program
}

const interopFtokC = `#define _XOPEN_SOURCE 700
#include <stdio.h>
#include <sys/ipc.h>
int main(void) {
	static char path[4096];
	int proj;
	while (scanf("%d %4095[^\n]\n", &proj, path) == 2)
		printf("%d\n", (int)ftok(path, proj));
	return 0;
}
`

const interopFtokPerl = `use IPC::SysV; while (<STDIN>) { chomp; my ($proj, $path) = split / /, $_, 2;
	print IPC::SysV::ftok($path, $proj + 0), "\n" }`

const interopFtokPython = `import sys, sysv_ipc
for line in sys.stdin:
    proj, path = line.rstrip("\n").split(" ", 1)
    print(sysv_ipc.ftok(path, int(proj), True))`

// The C library, Perl and Python have the same keys for thousands of files and all project ids.
func TestInteropFtok(t *testing.T) {
	root := interop(t)
	var asked, want strings.Builder
	count := 0
	ask := func(path string, proj int) {
		key, err := store.Ftok(path, proj)
		real, _ := filepath.EvalSymlinks(path)
		if err != nil || strings.ContainsAny(path, "\n") || strings.HasPrefix(path, "/dev/std") || strings.HasPrefix(real, fmt.Sprintf("/proc/%d/", os.Getpid())) {
			return // it is the asking process's own
		}
		count++
		fmt.Fprintf(&asked, "%d %s\n", proj, path)
		fmt.Fprintln(&want, int32(key))
	}
	for _, pattern := range []string{"/*", "/etc/*", "/dev/*", "/proc/sys/kernel/*", "/sys/*", "/usr/bin/*", "/usr/lib/*/*"} {
		paths, _ := filepath.Glob(pattern)
		for i, path := range paths {
			ask(path, 1+i%255)
		}
	}
	for proj := 1; proj <= 255; proj++ {
		ask(root, proj)
	}
	for name, got := range map[string]string{
		"C":      other(t, asked.String(), compile(t, root, "ftok", interopFtokC)),
		"Perl":   other(t, asked.String(), "perl", "-e", interopFtokPerl),
		"Python": other(t, asked.String(), python, "-c", interopFtokPython),
	} {
		questions := strings.Split(asked.String(), "\n")
		answers, wanted := strings.Split(got, "\n"), strings.Split(want.String(), "\n")
		for i := range wanted {
			// Python and Perl may print a key above 2^31 as a positive number.
			a, _ := strconv.ParseInt(answers[min(i, len(answers)-1)], 10, 64)
			b, _ := strconv.ParseInt(wanted[i], 10, 64)
			if uint32(a) != uint32(b) || len(answers) != len(wanted) {
				t.Errorf("%s: ftok(%s) is %s, want %s", name, questions[i], answers[min(i, len(answers)-1)], wanted[i])
				break
			}
		}
	}
	t.Logf("%d keys are the same", count)
}

// kernelLevel starts a broker with a queue of level kernel and returns its key file.
func kernelLevel(t *testing.T, root string) (dir, keyFile string) {
	dir = filepath.Join(root, "bus")
	serve(t, dir)
	run(t, dir, "queue", "create", "--level", "kernel", "kept")
	return dir, filepath.Join(dir, "state", "kept.key")
}

// interopGet makes a kernel queue and sends a message to it, as a stranger to us.
const interopGet = `use IPC::SysV qw(IPC_CREAT IPC_EXCL S_IRUSR S_IWUSR ftok); use IPC::Msg;
	my $q = IPC::Msg->new(ftok($ARGV[0], $ARGV[1] + 0), IPC_CREAT | IPC_EXCL | S_IRUSR | S_IWUSR) or die "msgget: $!";
	$q->snd(5, "not yours") or die "msgsnd: $!"; print $q->id, "\n";`

// ipcs shows our segments under the keys that the C library computes from the key file, and a
// stranger's queue that has one of these keys first is stepped over and left alone.
func TestInteropSegments(t *testing.T) {
	root := interop(t)
	dir, keyFile := kernelLevel(t, root)
	stranger := strings.TrimSpace(other(t, "", "perl", "-e", interopGet, keyFile, "2"))
	t.Cleanup(func() { other(t, "", "ipcrm", "-q", stranger) })
	push := program(t, "push", "--address", dir, "-l", "kept")
	push.Stdin = strings.NewReader(strings.Repeat(strings.Repeat("x", 7000)+"\n", 6)) // three segments
	if err := push.Run(); err != nil {
		t.Fatalf("%v: %s", err, push.Stderr)
	}
	ipcs := other(t, "", "ipcs", "-q")
	var ours []string
	for line := range strings.Lines(run(t, dir, "sysv", "ls", "--json")) {
		var q jsonKernelQueue
		if err := json.Unmarshal([]byte(line), &q); err != nil {
			t.Fatal(err)
		}
		if q.Queue != "kept" || q.Orphan {
			continue
		}
		ours = append(ours, fmt.Sprint(q.Segment))
		key := other(t, fmt.Sprintf("%d %s\n", q.Segment, keyFile), "perl", "-e", interopFtokPerl)
		if n, _ := strconv.ParseInt(strings.TrimSpace(key), 10, 64); fmt.Sprintf("0x%08x", uint32(n)) != q.Key {
			t.Errorf("segment %d has key %s, and Perl's ftok gives %s", q.Segment, q.Key, key)
		}
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^%s +%d +\S+ +600 +%d +%d *$`, q.Key, q.ID, q.Bytes, q.Messages)).MatchString(ipcs) {
			t.Errorf("ipcs does not show %+v:\n%s", q, ipcs)
		}
	}
	slices.Sort(ours)
	if strings.Join(ours, " ") != "1 3 4" {
		t.Errorf("segments %v, want 1, 3 and 4: 2 is a stranger's", ours)
	}
	if len(pulled(t, dir, "kept", 6)) != 6 {
		t.Error("not all came back")
	}
	if q := other(t, "", "ipcs", "-q", "-i", stranger); !strings.Contains(q, "qnum=1") {
		t.Errorf("the stranger's queue:\n%s", q)
	}
}

// Somebody removes a segment under the running broker: that is told, what was in it is counted as
// lost, the rest stays, and the queue goes on.
func TestInteropIpcrm(t *testing.T) {
	root := interop(t)
	dir, _ := kernelLevel(t, root)
	push := program(t, "push", "--address", dir, "-l", "kept")
	var lines strings.Builder
	for n := 1; n <= 9; n++ {
		fmt.Fprintf(&lines, "%d%s\n", n, strings.Repeat(" ", 5000))
	}
	push.Stdin = strings.NewReader(lines.String())
	if err := push.Run(); err != nil {
		t.Fatalf("%v: %s", err, push.Stderr)
	}
	var first jsonKernelQueue
	for line := range strings.Lines(run(t, dir, "sysv", "ls", "--json")) {
		var q jsonKernelQueue
		if err := json.Unmarshal([]byte(line), &q); err != nil {
			t.Fatal(err)
		}
		if q.Queue == "kept" && q.Segment == 1 {
			first = q
		}
	}
	if first.Messages != 3 {
		t.Fatalf("segment 1: %+v", first)
	}
	other(t, "", "ipcrm", "-q", strconv.Itoa(first.ID))
	run(t, dir, "push", "kept", "10")
	var got []string
	for len(got) == 0 || got[len(got)-1] != "10" {
		got = append(got, strings.TrimSpace(pulled(t, dir, "kept", 1)[0]))
	}
	var info struct{ Counters struct{ Lost int } }
	if err := json.Unmarshal([]byte(run(t, dir, "queue", "show", "--json", "kept")), &info); err != nil {
		t.Fatal(err)
	}
	// The broker may have had some of the first ones in its memory.
	lost := info.Counters.Lost
	if lost < 1 || lost > first.Messages || len(got)+lost != 10 {
		t.Errorf("%v came and %d messages are lost, of %d that were in the kernel queue", got, lost, first.Messages)
	}
	if want := strings.Fields("4 5 6 7 8 9 10"); !slices.Equal(got[max(0, len(got)-7):], want) {
		t.Errorf("%v came, want %v after the first ones", got, want)
	}
}

// interopProduce is an old producer: Perl's IPC::Msg sends numbers and waits while the queue is full.
const interopProduce = `use IPC::SysV qw(IPC_CREAT S_IRUSR S_IWUSR ftok); use IPC::Msg;
	my ($path, $proj, $count) = @ARGV;
	my $q = IPC::Msg->new(ftok($path, $proj + 0), IPC_CREAT | S_IRUSR | S_IWUSR) or die "msgget: $!";
	for my $n (1 .. $count) { $q->snd(1 + $n % 3, $n) or die "msgsnd: $!" }`

// A producer in Perl goes on while import and the broker are killed and started again: all
// of its messages arrive once, in order.
func TestInteropImport(t *testing.T) {
	root := interop(t)
	dir, old := filepath.Join(root, "bus"), filepath.Join(root, "old.conf")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broker := serve(t, dir)
	run(t, dir, "queue", "create", "--level", "disk", "old")
	const count = 20000
	producer := exec.CommandContext(t.Context(), "perl", "-e", interopProduce, old, "7", strconv.Itoa(count))
	var stderr bytes.Buffer
	producer.Stderr = &stderr
	key, err := store.Ftok(old, 7)
	if err != nil {
		t.Fatal(err)
	}
	q, _, err := store.MakeForeign(key, 0o600) // else import may be there first
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Remove() })
	if err := producer.Start(); err != nil {
		t.Fatal(err)
	}
	args := []string{"sysv", "import", "--address", dir, "--path", old, "--proj", "7", "old"}
	for kill := range 12 {
		im := program(t, append(args, "--follow")...)
		startReady(t, im)
		anyMoment(100 * time.Millisecond)
		if kill%2 == 1 {
			broker.Process.Kill()
			broker.Wait()
			broker = serve(t, dir)
			anyMoment(100 * time.Millisecond)
		}
		im.Process.Kill()
		im.Wait()
	}
	last := program(t, append(args, "--follow")...)
	startReady(t, last)
	if err := producer.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	if err := last.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := last.Wait(); err != nil {
		t.Fatalf("import at SIGINT: %v: %s", err, last.Stderr)
	}
	run(t, dir, args...)
	checkNumbered(t, pulled(t, dir, "old", count), count)
}

// A queue that ipcmk made is imported by its id, with what the C producer sent and with what
// Python did, each type by itself.
func TestInteropIpcmk(t *testing.T) {
	root := interop(t)
	dir := filepath.Join(root, "bus")
	serve(t, dir)
	run(t, dir, "queue", "create", "--level", "kernel", "old")
	made := regexp.MustCompile(`\d+`).FindString(other(t, "", "ipcmk", "-Q", "-p", "0600"))
	t.Cleanup(func() { other(t, "", "ipcrm", "-q", made) })
	id, err := strconv.Atoi(made)
	if err != nil {
		t.Fatal(err)
	}
	q, err := store.OpenForeignID(id)
	if err != nil {
		t.Fatal(err)
	}
	other(t, "", python, "-c", `import sys, sysv_ipc
q = sysv_ipc.MessageQueue(int(sys.argv[1], 0))
for n in range(10): q.send(b"python %d" % n, type=3 + n % 2)`, fmt.Sprint(int32(q.Key())))
	run(t, dir, "sysv", "import", "--id", made, "--type", "4", "old")
	run(t, dir, "sysv", "import", "--id", made, "old")
	want := "4 python 1,4 python 3,4 python 5,4 python 7,4 python 9,3 python 0,3 python 2,3 python 4,3 python 6,3 python 8"
	var got []string
	for line := range strings.Lines(run(t, dir, "pull", "-n", "10", "--json", "old")) {
		var m struct {
			Headers map[string]string
			Body    string
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Headers[headerType]+" "+m.Body)
	}
	if strings.Join(got, ",") != want {
		t.Errorf("got %v", got)
	}

	// A key can be made for the C program too: it is that of a file.
	file := filepath.Join(root, "app.conf") // interop removes the queue of A
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other(t, "one\n\nthree\n", compile(t, root, "producer", ""), file, "A", "9")
	run(t, dir, "sysv", "import", "--path", file, "--proj", "A", "old")
	if out := run(t, dir, "pull", "-n", "3", "-f", "%h %b%n", "old"); out != "{\"sysv-type\":\"9\"} one\n{\"sysv-type\":\"9\"} \n{\"sysv-type\":\"9\"} three\n" {
		t.Errorf("from the C producer: %q", out)
	}
}

const interopConsume = `import sys, sysv_ipc
q = sysv_ipc.MessageQueue(sysv_ipc.ftok(sys.argv[1], int(sys.argv[2]), True))
for n in range(int(sys.argv[3])):
    body, mtype = q.receive()
    sys.stdout.buffer.write(body + b"\n")`

// A consumer in C is fed from a queue, and one in Python from a topic: both get every body,
// in order.
func TestInteropExport(t *testing.T) {
	root := interop(t)
	dir := filepath.Join(root, "bus")
	serve(t, dir)
	var lines bytes.Buffer
	const count = 5000
	for n := range count {
		fmt.Fprintf(&lines, "%d %s\n", n, strings.Repeat("b", n*7%900))
	}
	for name, test := range map[string]struct {
		from, feed []string
		consumer   func(file string) *exec.Cmd
	}{
		"C": {[]string{"--queue", "new"}, []string{"push", "-l", "new"}, func(file string) *exec.Cmd {
			return exec.CommandContext(t.Context(), compile(t, root, "consumer", ""), file, "\x07", strconv.Itoa(count))
		}},
		"Python": {[]string{"new/#"}, []string{"pub", "-l", "new/x"}, func(file string) *exec.Cmd {
			return exec.CommandContext(t.Context(), python, "-c", interopConsume, file, "7", strconv.Itoa(count))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(root, name+".conf")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, dir, "queue", "create", "--level", "disk", "new")
			export := program(t, append([]string{"sysv", "export", "--address", dir, "--path", file, "--proj", "7", "--create", "--rm"}, test.from...)...)
			startReady(t, export)
			consumer := test.consumer(file)
			var out, stderr bytes.Buffer
			consumer.Stdout, consumer.Stderr = &out, &stderr
			feed := program(t, append(test.feed, "--address", dir)...)
			feed.Stdin = bytes.NewReader(lines.Bytes())
			if err := errors.Join(consumer.Start(), feed.Run(), consumer.Wait()); err != nil {
				t.Fatalf("%v: %s%s", err, feed.Stderr, &stderr)
			}
			if !bytes.Equal(out.Bytes(), lines.Bytes()) {
				t.Errorf("the consumer got %d bytes that differ from the %d sent", out.Len(), lines.Len())
			}
			if err := export.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			if err := export.Wait(); err != nil {
				t.Errorf("export at SIGINT: %v: %s", err, export.Stderr)
			}
		})
	}
}
