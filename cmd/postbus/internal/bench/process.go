package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// party is the processes of one run. The first of them to fail ends the waiting
// for all.
type party struct {
	ctx      context.Context
	fail     context.CancelCauseFunc
	children []*child
}

// newParty returns a party whose waits end with ctx, at the latest after limit.
func newParty(ctx context.Context, limit time.Duration) *party {
	ctx, fail := context.WithCancelCause(ctx)
	p := &party{ctx: ctx, fail: fail}
	timer := time.AfterFunc(limit, func() {
		fail(fmt.Errorf("the run was not over after %v and was given up", limit))
	})
	context.AfterFunc(ctx, func() { timer.Stop() })
	return p
}

// child is one process.
type child struct {
	name    string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stderr  tail
	reports chan report   // closed at its end
	gone    chan struct{} // closed when it has been waited for
}

// start starts this program with args. With a job it is a role of bench and must
// report; without, it just runs.
func (p *party) start(name string, j *job, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// The name it was called by, for programs that look at it to know what they are.
	return p.startProgram(name, self, j, append([]string{os.Args[0]}, args...))
}

// startProgram is start for any program; args has its name first.
func (p *party) startProgram(name, path string, j *job, args []string) (*child, error) {
	c := &child{name: name, reports: make(chan report, 4), gone: make(chan struct{})}
	c.cmd = &exec.Cmd{Path: path, Args: args, Stderr: &c.stderr}
	var err error
	// Should this process be killed, its children go with it. A terminal's SIGINT is
	// for this process alone, which then ends them.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.children = append(p.children, c)
	go p.watch(c, stdout)
	if j == nil {
		return c, nil
	}
	line, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	return c, c.tell(string(line))
}

// startRole starts this program as a role of bench.
func (p *party) startRole(role, name string, j *job) (*child, error) {
	return p.start(name, j, "bench", role)
}

// afterthought is how long a child's error waits for a better one: when the broker
// dies, its clients tell so before it is known that it did.
const afterthought = 200 * time.Millisecond

// watch passes a child's reports on and, when it ends of itself before it was
// done, ends the run.
func (p *party) watch(c *child, stdout io.Reader) {
	done := false
	for in := json.NewDecoder(stdout); ; {
		var r report
		if in.Decode(&r) != nil {
			break
		}
		if r.Error != "" {
			err := fmt.Errorf("%s: %s", c.name, r.Error)
			time.AfterFunc(afterthought, func() { p.fail(err) })
		}
		done = r.Result != nil && !r.More || r.Error != ""
		c.reports <- r
	}
	_, _ = io.Copy(io.Discard, stdout)
	err := c.cmd.Wait()
	close(c.gone)
	close(c.reports)
	if !done {
		p.fail(c.died(err))
	}
}

// died says how a child ended that should not have.
func (c *child) died(err error) error {
	how := "exit status 0"
	if err != nil {
		how = err.Error()
	}
	if text := c.stderr.String(); text != "" {
		how += ": " + text
	}
	return fmt.Errorf("%s ended too early: %s", c.name, how)
}

// tell writes a line to a child. One that is gone is reported by watch.
func (c *child) tell(line string) error {
	_, err := io.WriteString(c.stdin, line+"\n")
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// tellAll writes a line to each.
func tellAll(children []*child, line string) error {
	for _, c := range children {
		if err := c.tell(line); err != nil {
			return err
		}
	}
	return nil
}

// hear waits for one report of each child, in order.
func (p *party) hear(children ...*child) ([]*result, error) {
	results := make([]*result, 0, len(children))
	for _, c := range children {
		select {
		case r, ok := <-c.reports:
			if !ok || r.Error != "" {
				<-p.ctx.Done() // watch says why
				return nil, context.Cause(p.ctx)
			}
			results = append(results, r.Result)
		case <-p.ctx.Done():
			return nil, context.Cause(p.ctx)
		}
	}
	return results, nil
}

// leaveTime is how long a child that was asked to end may take before it is killed.
const leaveTime = 3 * time.Second

// end ends every child and waits for it.
func (p *party) end() {
	p.fail(context.Canceled)
	var wait sync.WaitGroup
	for _, c := range p.children {
		wait.Go(c.end)
	}
	wait.Wait()
}

// end asks the child to end and kills it when it does not.
func (c *child) end() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.gone:
	case <-time.After(leaveTime):
		_ = c.cmd.Process.Kill()
		<-c.gone
	}
	_ = c.stdin.Close()
}

// tail keeps the end of what a child writes to stderr, for an error's text.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

// maxTail is how much of it, in bytes.
const maxTail = 2000

// Write keeps b's end.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if extra := len(t.buf) - maxTail; extra > 0 {
		t.buf = append(t.buf[:0], t.buf[extra:]...)
	}
	return len(b), nil
}

// String returns what was kept, on one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.Split(string(bytes.TrimSpace(t.buf)), "\n"), " | ")
}
