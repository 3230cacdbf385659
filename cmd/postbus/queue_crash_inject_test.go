package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postbus/postbus/wire"
)

// Clients with ids, keys, priorities and delays at a queue whose broker is killed, and
// killed again while it opens the queue: after each life all that was acknowledged is
// there, nothing that was confirmed as gone is, in the state that was confirmed, and what
// had an id is there once.
func TestQueueCrashAccounts(t *testing.T) {
	for _, level := range []string{"kernel", "disk"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			s := newSiegeOfAccounts(t, level)
			for s.round = range crashRounds() {
				s.attack(func() *exec.Cmd { return s.start(nil) })
				for range s.rng.IntN(3) { // before it has opened the queue, or just after
					cmd := s.start(nil)
					s.killAt(cmd, 60)
				}
				s.look()
			}
			s.finish()
		})
	}
}

// The same, but the broker is killed at a certain call: between the msgsnd of the chunks of
// a message, before the write or the fdatasync of a record, in the middle of recovery.
func TestQueueCrashInjected(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if out, err := exec.Command(strace, "-o", os.DevNull, "-e", "inject=getpid:signal=SIGCONT", os.Args[0], "-test.list", "^$").CombinedOutput(); err != nil {
		t.Skipf("strace is not allowed to trace: %v: %s", err, out)
	}
	for level, calls := range map[string][]string{
		"kernel": {"msgsnd", "msgsnd", "msgrcv", "msgrcv", "msgget", "msgctl", "pwrite64", "write", "renameat"},
		"disk":   {"pwrite64", "pwrite64", "fdatasync", "fdatasync", "fallocate", "fsync", "renameat", "unlinkat", "write", "pread64"},
	} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			s := newSiegeOfAccounts(t, level)
			for s.round = range crashRounds() {
				killer := func(limit int) *exec.Cmd {
					call := calls[s.rng.IntN(len(calls))]
					return s.start([]string{strace, "-f", "-qq", "-o", os.DevNull, "-e", "trace=" + call,
						"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, 1+s.rng.IntN(limit))})
				}
				s.attack(func() *exec.Cmd { return killer(150) })
				for range s.rng.IntN(4) {
					s.killAt(killer(20), 300)
				}
				s.look()
			}
			s.finish()
		})
	}
}

// accounts is a queue whose broker is killed over and over, and its clients' account.
type accounts struct {
	*account
	t     *testing.T
	rng   *rand.Rand
	level string
	round int

	killed bool                 // the present broker was, by us
	live   map[*letter]logPlace // of a disk queue, see survey
	died   int                  // brokers that strace had killed
}

func newSiegeOfAccounts(t *testing.T, level string) *accounts {
	dir := busDir(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return &accounts{account: newAccount(t, dir, "q"), t: t, level: level, rng: rand.New(rand.NewPCG(seed, 0))}
}

// start starts a broker, below another program if one is given, and returns at once.
func (s *accounts) start(below []string) *exec.Cmd {
	cmd := program(s.t, "serve", "--dir", s.dir, "--log-level", "error")
	if below != nil {
		cmd.Args = append(append(below, "--", cmd.Path), cmd.Args[1:]...)
		cmd.Path = below[0]
	}
	s.t.Cleanup(func() { // strace alone would leave the broker behind
		if cmd.Process != nil && cmd.ProcessState == nil {
			s.kill(cmd)
		}
	})
	return cmd
}

// ready starts cmd and reports whether it came as far as to serve.
func (s *accounts) ready(cmd *exec.Cmd) bool {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	cmd.Args = append(cmd.Args, "--ready-fd", "3")
	runtime.LockOSThread() // Pdeathsig is the thread's that forks
	err = cmd.Start()
	runtime.UnlockOSThread()
	w.Close()
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = r.Read(make([]byte, 16))
	return err == nil
}

// attack has a broker serve clients until it dies, or is killed at any moment.
func (s *accounts) attack(start func() *exec.Cmd) {
	cmd := start()
	s.next()
	if !s.ready(cmd) {
		s.dead(cmd)
		return
	}
	if err := s.declare(s.settings()); err != nil {
		var wrong *wrongFrame
		if errors.As(err, &wrong) || strings.Contains(err.Error(), "is answered by") {
			s.t.Fatal(err)
		}
		s.dead(cmd)
		return
	}
	var all sync.WaitGroup
	for range 3 {
		seed := s.rng.Uint64()
		all.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for range 3 { // hands that leave in the middle of what they do, too
				if err := s.use(rng, 20+rng.IntN(60)); err != nil {
					s.t.Error(err)
				}
			}
		})
	}
	if s.rng.IntN(3) > 0 {
		s.killAt(cmd, 150)
	}
	all.Wait()
	s.dead(cmd)
}

func (s *accounts) settings() *wire.QueueSettings {
	return &wire.QueueSettings{Level: s.level, MaxTries: -1, MaxMessages: 400, DedupMS: time.Hour.Milliseconds()}
}

// killAt kills a broker within so many milliseconds, which is started if it is not yet.
func (s *accounts) killAt(cmd *exec.Cmd, within int) {
	if cmd.Process == nil {
		s.next()
		runtime.LockOSThread()
		err := cmd.Start()
		runtime.UnlockOSThread()
		if err != nil {
			s.t.Fatal(err)
		}
		defer s.dead(cmd)
	}
	anyMoment(time.Duration(within) * time.Millisecond)
	s.killed = s.kill(cmd)
}

// kill kills the broker; strace, which may be its parent, ends with it. It reports whether
// there was one.
func (s *accounts) kill(cmd *exec.Cmd) bool {
	if !strings.HasSuffix(cmd.Path, "strace") {
		return cmd.Process.Kill() == nil
	}
	found := false
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", cmd.Process.Pid))
	for _, path := range children {
		text, _ := os.ReadFile(path)
		for _, pid := range strings.Fields(string(text)) {
			var n int
			if _, err := fmt.Sscan(pid, &n); err == nil {
				found = syscall.Kill(n, syscall.SIGKILL) == nil
			}
		}
	}
	return found
}

// dead waits until the broker is.
func (s *accounts) dead(cmd *exec.Cmd) {
	if !s.kill(cmd) && !s.killed {
		s.died++
	}
	s.killed = false
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	var err error
	for waits := true; waits; {
		select {
		case err = <-ended:
			waits = false
		case <-time.After(10 * time.Millisecond): // strace may have had no child yet
			s.kill(cmd)
		}
	}
	var exit *exec.ExitError
	late := strings.Contains(fmt.Sprint(cmd.Stderr), "Unexpected wait status") // strace had not begun with it
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL && !late {
		s.t.Fatalf("the broker ended with %v: %s", err, cmd.Stderr)
	}
}

// look opens the queue without hindrance and compares it with the account.
func (s *accounts) look() {
	cmd := s.start(nil)
	s.next()
	if !s.ready(cmd) {
		s.t.Fatalf("round %d: the broker does not start: %s", s.round, cmd.Stderr)
	}
	if err := s.declare(s.settings()); err != nil {
		s.t.Fatalf("round %d: %v", s.round, err)
	}
	switch s.rng.IntN(8) {
	case 0:
		s.check(wire.StateDead)
	case 1:
		s.check("", wire.StateDead)
	default:
		s.check()
	}
	if s.t.Failed() {
		s.t.Fatalf("in round %d", s.round)
	}
	if s.rng.IntN(2) == 0 {
		cmd.Process.Kill()
		cmd.Wait()
		return
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		s.t.Fatalf("round %d: %v: %s", s.round, err, cmd.Stderr)
	}
}

func (s *accounts) finish() {
	s.t.Logf("%d messages, %d kept, %d acked, %d deliveries again, %d lives, %d of them ended by strace",
		len(s.order), s.kept, s.acked, s.again, s.life, s.died)
}
