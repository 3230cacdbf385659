package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
)

// All files of GOROOT/src/net, one a message, through a queue that has no room for all of
// them, to four consumers, while the broker is killed five times: the consumers write the
// same files.
func TestQueueSpool(t *testing.T) {
	if !full() {
		t.Skip("POSTBUS_FULL=1 asks for it")
	}
	for level, opts := range map[string]client.QueueOptions{
		"kernel": {Level: "kernel", WhenFull: "block"},
		"disk":   {Level: "disk", WhenFull: "block", MaxBytes: 2 << 20},
	} {
		t.Run(level, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			s := newSpool(ctx, t)
			if _, err := s.queue.Declare(ctx, &opts); err != nil {
				t.Fatal(err)
			}
			pushed := make(chan error, 1)
			go func() { pushed <- s.push(ctx) }()
			s.awaitFull(ctx, pushed)
			for n := range spoolConsumers {
				s.consume(n)
			}
			s.killOften(ctx)
			if err := <-pushed; err != nil {
				t.Fatalf("push: %v", err)
			}
			s.finish(ctx)
			s.compare()
		})
	}
}

const (
	spoolConsumers = 4
	spoolKills     = 5
)

// spool is files on their way through a queue.
type spool struct {
	t        *testing.T
	dir, out string // the bus, and where consumers write
	source   string
	files    []string // below source
	broker   *exec.Cmd
	queue    *client.Queue
	client   *client.Client
	full     *client.Subscription
	written  chan struct{} // one for each file that is new in out

	consumers []*exec.Cmd
	workers   sync.WaitGroup

	mu     sync.Mutex
	first  map[string]int // by file: deliveries that were not marked
	marked map[string]int // deliveries that were
}

func newSpool(ctx context.Context, t *testing.T) *spool {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	s := &spool{
		t: t, dir: busDir(t), out: t.TempDir(), source: filepath.Join(strings.TrimSpace(string(goroot)), "src", "net"),
		first: make(map[string]int), marked: make(map[string]int),
	}
	s.files = filesOf(t, s.source)
	s.written = make(chan struct{}, len(s.files))
	s.broker = serve(t, s.dir)
	s.client, err = client.Dial(ctx, &client.Options{Address: s.dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.client.Close() })
	s.queue = s.client.Queue("spool")
	if s.full, err = s.client.Subscribe(ctx, "@sys/queue/spool/full", nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// filesOf returns the names of the files below dir.
func filesOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// push pushes all files; what is not answered when the broker dies is sent again.
func (s *spool) push(ctx context.Context) error {
	for _, name := range s.files {
		body, err := os.ReadFile(filepath.Join(s.source, name))
		if err != nil {
			return err
		}
		err = s.queue.PushAsync(ctx, body, &client.PushOptions{ID: name, Headers: map[string]string{"path": name}})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return s.client.Flush(ctx)
}

// awaitFull waits until the queue takes no more, so that pushes wait when the broker dies.
func (s *spool) awaitFull(ctx context.Context, pushed chan error) {
	told := make(chan error, 1)
	go func() {
		_, err := s.full.Next(ctx)
		told <- err
	}()
	select {
	case err := <-told:
		if err != nil {
			s.t.Fatal(err)
		}
	case err := <-pushed: // this kernel has room for all
		s.t.Log("the queue was never full")
		pushed <- err
	}
}

// consume starts a consumer, a process that lives through all restarts of the broker.
func (s *spool) consume(n int) {
	cmd := program(s.t, "pull", "--address", s.dir, "--follow", "--ack", "manual", "--prefetch", "4", "--json", "spool")
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	startReady(s.t, cmd)
	s.consumers = append(s.consumers, cmd)
	s.workers.Go(func() {
		if err := s.work(in, out); err != nil {
			s.t.Errorf("consumer %d: %v", n, err)
		}
	})
}

// work writes the files that a consumer prints, and acknowledges each.
func (s *spool) work(acks io.Writer, messages io.Reader) error {
	for r := bufio.NewReader(messages); ; {
		line, err := r.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %q: %w", line, err)
		}
		var d jsonDelivery
		if err := json.Unmarshal(line, &d); err != nil {
			return err
		}
		if err := s.write(&d); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(acks, "ack %d\n", d.Seq); err != nil {
			return err
		}
	}
}

func (s *spool) write(d *jsonDelivery) error {
	name := d.Headers["path"]
	if !filepath.IsLocal(name) || d.ID != name {
		return fmt.Errorf("message %d, id %q, path %q, is none that was pushed", d.Seq, d.ID, name)
	}
	body, err := bodyOf(d)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.out, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path, body, 0o600); err != nil {
		return err
	}
	if s.first[name]+s.marked[name] == 0 {
		s.written <- struct{}{}
	}
	if d.Redelivered {
		s.marked[name]++
	} else {
		s.first[name]++
	}
	return nil
}

// bodyOf returns the body of a message as --json prints it.
func bodyOf(d *jsonDelivery) ([]byte, error) {
	switch {
	case d.Body != nil:
		return []byte(*d.Body), nil
	case d.Body64 != nil:
		return base64.StdEncoding.DecodeString(*d.Body64)
	}
	return nil, errors.New("a message without a body")
}

// killOften kills the broker after every sixth part of the files, starts it again, and
// returns when all files are written.
func (s *spool) killOften(ctx context.Context) {
	kills := 0
	for n := 1; n <= len(s.files); n++ {
		select {
		case <-s.written:
		case <-ctx.Done():
			s.t.Fatalf("%d of %d files were written, %d kills: %v", n-1, len(s.files), kills, context.Cause(ctx))
		}
		if kills < spoolKills && n >= (kills+1)*len(s.files)/(spoolKills+1) {
			kills++
			s.broker.Process.Kill()
			s.broker.Wait()
			s.broker = serve(s.t, s.dir)
		}
	}
}

// finish waits until the queue is empty, and ends the consumers.
func (s *spool) finish(ctx context.Context) {
	if err := s.queue.Drain(ctx); err != nil {
		s.t.Fatalf("drain: %v", err)
	}
	info, err := s.queue.Info(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	if info.Ready+info.Delayed+info.Leased+info.Dead+info.Bytes != 0 || info.Lost != 0 {
		s.t.Errorf("the queue is not empty: %+v", info)
	}
	for _, cmd := range s.consumers {
		cmd.Process.Signal(syscall.SIGTERM)
	}
	s.workers.Wait() // before Wait, which closes what they read
	for n, cmd := range s.consumers {
		if err := cmd.Wait(); err != nil {
			s.t.Errorf("consumer %d: %v: %s", n, err, cmd.Stderr)
		}
	}
}

// compare compares what was written with what there is, and how often it came.
func (s *spool) compare() {
	want, got := sums(s.t, s.source), sums(s.t, s.out)
	if !maps.Equal(want, got) {
		s.t.Errorf("%d files were written, not the %d that were pushed", len(got), len(want))
	}
	again, twice := 0, 0
	for name := range want {
		n := s.first[name] + s.marked[name]
		again += n - 1
		if n > 1 {
			twice++
		}
		if s.first[name] > 1 {
			s.t.Errorf("%s came %d times without being marked as redelivered", name, s.first[name])
		}
	}
	s.t.Logf("%d files; %d came more than once, marked: %d deliveries too many", len(want), twice, again)
}

// sums returns the SHA-256 sums of the files below dir.
func sums(t *testing.T, dir string) map[string][sha256.Size]byte {
	t.Helper()
	all := make(map[string][sha256.Size]byte)
	for _, name := range filesOf(t, dir) {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = sha256.Sum256(text)
	}
	return all
}
