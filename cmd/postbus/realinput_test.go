package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// full reports whether the long form of the end-to-end tests is asked for, as
// .ci/run and make soak do.
func full() bool { return os.Getenv("POSTBUS_FULL") == "1" }

// program is the postbus program under test: $POSTBUS_BINARY, or this test binary,
// which TestMain has put into PATH under that name.
func program(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	name := os.Getenv("POSTBUS_BINARY")
	if name == "" {
		name = "postbus"
	}
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // nothing outlives the tests
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	t.Cleanup(func() {
		if cmd.Process != nil && cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("%s: %.2000s", strings.Join(cmd.Args, " "), stderr.String())
		}
	})
	return cmd
}

// startReady starts cmd with a --ready-fd and returns once it says that it is ready.
func startReady(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	cmd.Args = append(cmd.Args, "--ready-fd", "3")
	runtime.LockOSThread() // Pdeathsig is the thread's that forks
	err = cmd.Start()
	runtime.UnlockOSThread()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 16)); err != nil {
		t.Fatalf("%v is not ready: %v: %s", cmd.Args, err, cmd.Stderr)
	}
}

// serve starts a broker in dir.
func serve(t testing.TB, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := program(t, append([]string{"serve", "--dir", dir}, args...)...)
	startReady(t, cmd)
	return cmd
}

// sources returns every line of the Go source files below GOROOT/src, of net only
// unless the full form is asked for, each with its newline.
func sources(t *testing.T) []byte {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(strings.TrimSpace(string(goroot)), "src")
	if !full() {
		root = filepath.Join(root, "net")
	}
	var all []byte
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(path)
		all = append(all, text...)
		if n := len(all); n > 0 && all[n-1] != '\n' {
			all = append(all, '\n')
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// longestLine is more than the longest line of Go's sources has: some generated
// ones have above 1 MiB.
const longestLine = "16MiB"

// Every line to eight subscribers with policy block: all eight get the input, byte
// for byte.
func TestRealInput(t *testing.T) {
	input := sources(t)
	lines := bytes.Count(input, []byte("\n"))
	if full() && lines < 1_000_000 {
		t.Fatalf("GOROOT/src has %d lines, a million are wanted", lines)
	}
	want := sha256.Sum256(input)
	dir := t.TempDir()
	serve(t, dir, "--max-message", longestLine)
	var subs []*exec.Cmd
	var outputs []*digest
	for range 8 {
		cmd := program(t, "sub", "--address", dir, "--policy", "block", "--strict", "-n", fmt.Sprint(lines), "src/#")
		out := newDigest()
		cmd.Stdout = out
		startReady(t, cmd)
		subs, outputs = append(subs, cmd), append(outputs, out)
	}
	begin := time.Now()
	pub := program(t, "pub", "--address", dir, "-l", "src/go")
	pub.Stdin = bytes.NewReader(input)
	if err := pub.Run(); err != nil {
		t.Fatalf("pub: %v: %s", err, pub.Stderr)
	}
	for i, cmd := range subs {
		if err := cmd.Wait(); err != nil {
			t.Errorf("subscriber %d: %v: %s", i, err, cmd.Stderr)
		}
		if got := outputs[i].sum(); got != want {
			t.Errorf("subscriber %d: %d bytes that differ from the %d of the input", i, outputs[i].n, len(input))
		}
	}
	t.Logf("%d lines, %d bytes, to 8 subscribers in %v", lines, len(input), time.Since(begin).Round(time.Millisecond))
}

// digest is a writer that keeps the sum of what it is given.
type digest struct {
	h interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int
}

func newDigest() *digest { return &digest{h: sha256.New()} }

func (d *digest) Write(b []byte) (int, error) {
	d.n += len(b)
	return d.h.Write(b)
}

func (d *digest) sum() (sum [sha256.Size]byte) {
	copy(sum[:], d.h.Sum(nil))
	return sum
}

// Four publishers at once: a subscriber gets all lines of each, in their order.
func TestRealInputFromFourPublishers(t *testing.T) {
	input := sources(t)
	lines := strings.SplitAfter(strings.TrimSuffix(string(input), "\n"), "\n")
	lines[len(lines)-1] += "\n"
	dir := t.TempDir()
	serve(t, dir, "--max-message", longestLine)
	sub := program(t, "sub", "--address", dir, "--policy", "block", "--strict", "--idle", "30s", "-n", fmt.Sprint(len(lines)), "-f", "%t %b%n", "src/+")
	out, err := sub.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	startReady(t, sub)
	var shares [4][]string
	var wg sync.WaitGroup
	for i := range shares {
		shares[i] = lines[i*len(lines)/4 : (i+1)*len(lines)/4]
		pub := program(t, "pub", "--address", dir, "-l", fmt.Sprintf("src/%d", i))
		pub.Stdin = strings.NewReader(strings.Join(shares[i], ""))
		wg.Go(func() {
			if err := pub.Run(); err != nil {
				t.Errorf("publisher %d: %v: %s", i, err, pub.Stderr)
			}
		})
	}
	r := bufio.NewReaderSize(out, 1<<20)
	for n := range lines {
		line, err := r.ReadString('\n')
		if err != nil || len(line) < 6 {
			t.Fatalf("after %d of %d lines: %q, %v", n, len(lines), line, err)
		}
		share := &shares[line[4]-'0']
		if len(*share) == 0 || line[6:] != (*share)[0] {
			t.Fatalf("publisher %c: got %.100q, want %.100q", line[4], line[6:], (*share)[:min(1, len(*share))])
		}
		*share = (*share)[1:]
	}
	wg.Wait()
	if err := sub.Wait(); err != nil {
		t.Fatalf("sub: %v: %s", err, sub.Stderr)
	}
}

// 20 MiB and nothing at all arrive intact on both socket types; above the limit the
// error names it, and the connection of the others is untouched.
func TestLargeAndEmpty(t *testing.T) {
	big := make([]byte, 20<<20)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	for _, socket := range []string{"unixpacket:%s/bus.sock", "unix:%s/stream.sock"} {
		t.Run(strings.SplitN(socket, ":", 2)[0], func(t *testing.T) {
			dir := t.TempDir()
			serve(t, dir, "--max-message", "20MiB")
			address := fmt.Sprintf(socket, dir)
			sub := program(t, "sub", "--address", address, "--policy", "block", "--raw", "-n", "3", "a")
			out := newDigest()
			sub.Stdout = out
			startReady(t, sub)
			publish := func(body []byte) (string, error) {
				pub := program(t, "pub", "--address", address, "a")
				pub.Stdin = bytes.NewReader(body)
				err := pub.Run()
				return fmt.Sprint(pub.Stderr), err
			}
			for _, body := range [][]byte{nil, big} {
				if text, err := publish(body); err != nil {
					t.Fatalf("%d bytes: %v: %s", len(body), err, text)
				}
			}
			text, err := publish(append(big, 'x'))
			if err == nil || !strings.Contains(text, fmt.Sprint(len(big))) {
				t.Errorf("a byte above the limit: %v: %q does not name the limit", err, text)
			}
			if text, err := publish([]byte("end")); err != nil {
				t.Fatalf("after the refusal: %v: %s", err, text)
			}
			if err := sub.Wait(); err != nil {
				t.Fatalf("sub: %v: %s", err, sub.Stderr)
			}
			if want := sha256.Sum256(append(big[:len(big):len(big)], "end"...)); out.sum() != want {
				t.Errorf("%d bytes arrived that are not those published", out.n)
			}
		})
	}
}
