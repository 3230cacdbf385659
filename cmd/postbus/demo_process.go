package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// process is this program, running one of its commands as a user would.
type process struct {
	cmd    *exec.Cmd
	line   string // as a user would type it
	stdout bytes.Buffer
	stderr bytes.Buffer
	wait   func() error // waits for its end; any number of callers may
}

// troupe starts processes that speak to one bus. The end of its context kills them.
type troupe struct {
	self    string // this program
	bus     string // the bus directory
	members []*process
}

// start starts a process.
func (t *troupe) start(ctx context.Context, stdin io.Reader, args ...string) (*process, error) {
	return t.startWith(ctx, stdin, nil, args...)
}

func (t *troupe) startWith(ctx context.Context, stdin io.Reader, ready *os.File, args ...string) (*process, error) {
	p := &process{line: commandLine(args)}
	args = append([]string{args[0], "--address", t.bus}, args[1:]...)
	if ready != nil {
		args = append(args, "--ready-fd", "3")
	}
	p.cmd = exec.CommandContext(ctx, t.self, args...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, &p.stdout, &p.stderr
	if ready != nil {
		p.cmd.ExtraFiles = []*os.File{ready} // its descriptor 3
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %q: %w", p.line, err)
	}
	p.wait = sync.OnceValue(p.waitOnce)
	t.members = append(t.members, p)
	return p, nil
}

// dismiss ends all processes that have not ended, and returns when none is left.
func (t *troupe) dismiss() {
	for _, p := range t.members {
		p.cmd.Process.Kill() // an error says that it has ended
		p.wait()
	}
}

// subscribe starts a `postbus sub` and returns once it is subscribed.
func (t *troupe) subscribe(ctx context.Context, args ...string) (*process, error) {
	return t.startReady(ctx, append([]string{"sub"}, args...)...)
}

// publish runs a `postbus pub` to its end.
func (t *troupe) publish(ctx context.Context, stdin io.Reader, args ...string) (*process, error) {
	return t.run(ctx, stdin, append([]string{"pub"}, args...)...)
}

// serve starts a broker in a process of its own, and returns once it serves the bus.
func (t *troupe) serve(ctx context.Context) (*process, error) {
	return t.startReady(ctx, "serve", "--dir", t.bus, "--log-level", "error")
}

// run runs a command to its end.
func (t *troupe) run(ctx context.Context, stdin io.Reader, args ...string) (*process, error) {
	p, err := t.start(ctx, stdin, args...)
	if err != nil {
		return nil, err
	}
	return p, p.wait()
}

// startReady starts a process and returns once it says that it is ready.
func (t *troupe) startReady(ctx context.Context, args ...string) (*process, error) {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	p, err := t.startWith(ctx, nil, theirs, args...)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	if line, _ := io.ReadAll(ready); string(line) != readyLine {
		return nil, errors.Join(fmt.Errorf("%q ended before it was ready", p.line), p.wait())
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) waitOnce() error {
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("%q: %w: %s", p.line, err, bytes.TrimSpace(p.stderr.Bytes()))
	}
	return nil
}

// finish tells a subscriber to print what is still due to it, and waits for its end.
func (p *process) finish() error {
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	return p.wait()
}

// stop stops p as Ctrl-Z does, and returns once it stands still.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return os.NewSyscallError("waitid", err)
		}
	}
}

// resume lets p go on.
func (p *process) resume() error { return p.cmd.Process.Signal(unix.SIGCONT) }

// commandLine writes arguments as one would type them.
func commandLine(args []string) string {
	words := []string{"postbus"}
	for _, arg := range args {
		if arg == "" || strings.ContainsAny(arg, " #%*'\"\\") {
			arg = "'" + arg + "'"
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}
