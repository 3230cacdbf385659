package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// Server is what holds a queue that is measured.
type Server string

// The servers. All but the first are yardsticks.
const (
	Postbus    Server = ""
	Redis      Server = "redis"      // a stream with a consumer group
	Beanstalkd Server = "beanstalkd" // the tube "default"
	MsgQ       Server = "msgq"       // System V message queues, by bare system calls
)

// queueName is the queue that is measured, in every server.
const queueName = "bench"

// adminPatience is how long a broker may take to make or remove a queue.
const adminPatience = 30 * time.Second

// holder is a server that runs, or stands ready, with an empty queue.
type holder struct {
	middle
	server Server
	child  *child
	msgIDs []int
	admin  *endpoint // a connection of the parent's to a broker
}

// startHolder starts what holds the queue, with all of its files in dir.
func (p *party) startHolder(o *Options, server Server, dir string) (*holder, error) {
	switch server {
	case Redis:
		return p.startRedis(o, dir)
	case Beanstalkd:
		return p.startBeanstalkd(o, dir)
	case MsgQ:
		ids, err := makeMsgQueues(o.inRound()+o.backlog, o.Size)
		return &holder{server: server, msgIDs: ids}, err
	}
	c, err := p.startRole("broker", "the broker", &job{Path: dir, Size: o.Size, State: filepath.Join(dir, "state")})
	if err != nil {
		return nil, err
	}
	h := &holder{child: c}
	h.path = brokerSocket(o.Network, wire.DirAddresses(dir))
	if h.pid, err = p.await(c, o.Network, h.path, o.Size); err != nil {
		return nil, err
	}
	if h.admin, err = dialBroker(o.Network, h.path, o.Size); err != nil {
		return nil, err
	}
	return h, cmp.Or(h.admin.waitAtMost(adminPatience), h.declare(o.Queue))
}

// close removes what would outlive the server.
func (h *holder) close() {
	removeMsgQueues(h.msgIDs)
	if h.admin == nil {
		return
	}
	_, _ = h.ask(&wire.Queue{Op: wire.OpDelete, Queue: queueName})
	h.admin.close()
}

// declare makes the queue in a broker.
func (h *holder) declare(level QueueLevel) error {
	settings := wire.QueueSettings{Level: string(level), MaxMessages: maxBacklog}
	if level == KernelQueue {
		settings.MaxMessages = 0
	} else {
		settings.MaxBytes = 1 << 40
	}
	if level == DiskIntervalQueue {
		settings.Level, settings.SyncMS = string(DiskQueue), 1000
	}
	_, err := h.ask(&wire.Queue{Op: wire.OpDeclare, Queue: queueName, Settings: &settings})
	return err
}

// ask asks a broker something of a queue and waits for the answer.
func (h *holder) ask(q *wire.Queue) (*wire.Queued, error) {
	if err := h.admin.write(wire.AppendCold(nil, wire.TypeQueue, q)); err != nil {
		return nil, err
	}
	var answer wire.Queued
	return &answer, h.admin.expect(wire.TypeQueued, &answer)
}

func (p *party) startRedis(o *Options, dir string) (*holder, error) {
	sync := "always"
	if o.Queue == MemoryQueue || o.Queue == DiskIntervalQueue {
		sync = "everysec"
	}
	path := filepath.Join(dir, "redis.sock")
	// No TCP port, no snapshots, and no rewriting of the log in the middle of a run.
	h, err := p.startServer(o, Redis, path, "redis-server", "--port", "0", "--unixsocket", path, "--unixsocketperm", "700",
		"--dir", dir, "--save", "", "--daemonize", "no", "--logfile", filepath.Join(dir, "redis.log"),
		"--appendonly", "yes", "--appendfsync", sync, "--auto-aof-rewrite-percentage", "0")
	if err != nil {
		return nil, err
	}
	return h, makeStream(&job{Path: path, Size: o.Size, Queue: queueName})
}

func (p *party) startBeanstalkd(o *Options, dir string) (*holder, error) {
	path := filepath.Join(dir, "beanstalkd.sock")
	args := []string{"-l", "unix:" + path}
	switch o.Queue {
	case DiskQueue:
		args = append(args, "-b", dir, "-f0")
	case DiskIntervalQueue:
		args = append(args, "-b", dir, "-f1000")
	}
	return p.startServer(o, Beanstalkd, path, "beanstalkd", args...)
}

// startServer starts a program and waits until it listens at path.
func (p *party) startServer(o *Options, server Server, path, program string, args ...string) (*holder, error) {
	file, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("%s is not installed, and is the yardstick (make bench-queues installs it): %w", program, err)
	}
	c, err := p.startProgram(program, file, nil, append([]string{program}, args...))
	if err != nil {
		return nil, err
	}
	for {
		e, err := dial(Stream, path, o.Size)
		if err == nil {
			e.close()
			h := &holder{server: server, child: c}
			h.path, h.pid = path, c.cmd.Process.Pid
			return h, nil
		}
		if err := p.pause(c, err); err != nil {
			return nil, err
		}
	}
}

// pause waits a moment for a server that does not listen yet, which is what err says.
func (p *party) pause(c *child, err error) error {
	const pause = 2 * time.Millisecond
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	select {
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	case <-c.gone:
		<-p.ctx.Done() // watch says why
		return context.Cause(p.ctx)
	case <-time.After(pause):
		return nil
	}
}

// await waits until a broker answers at path, and returns its process.
func (p *party) await(c *child, n Network, path string, size int) (int, error) {
	for {
		pid, err := probe(n, path, size)
		if err == nil {
			return pid, nil
		}
		if err := p.pause(c, err); err != nil {
			return 0, err
		}
	}
}
