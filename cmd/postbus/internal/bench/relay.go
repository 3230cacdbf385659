package bench

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// The sockets of a relay, in the order of job.Paths. What arrives on a connection to
// the first goes to every connection to the second; connections to the third are
// paired, and what one sends goes to the other.
const (
	relayIn = iota
	relayOut
	relayPair
	numRelaySockets
)

// bareRelay is the yardstick: it copies bytes, or packets, and knows nothing of what
// they are. It reads once, writes that once to each receiver, and reads no more
// while one of them has not taken it all.
type bareRelay struct {
	job   *job
	poll  int
	buf   []byte
	ports []*port // by file descriptor
	outs  []*port // connections to relayOut
	pair  *port   // the one that waits for its partner
	ready []*port // those that may have something to read
	owed  int     // receivers that have not taken all of buf
}

// port is a socket of the relay.
type port struct {
	fd     int
	kind   int    // relayIn and so on
	listen bool   // it accepts connections
	to     *port  // a pair's other
	hungUp bool   // the end of its input follows
	inList bool   // it is in ready
	rest   []byte // of buf, owed to it
}

// relay is the role "relay". It says that it is ready and then runs until it is
// ended.
func relay(j *job, c *control) (*result, error) {
	r := &bareRelay{job: j, buf: make([]byte, max(j.ReadSize, wire.DefaultMaxPacket+1))}
	if err := r.listen(); err != nil {
		return nil, err
	}
	if err := c.ready(); err != nil {
		return nil, err
	}
	return nil, r.run()
}

func (r *bareRelay) listen() error {
	var err error
	if r.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	kind := unix.SOCK_STREAM
	if r.job.Network == Packet {
		kind = unix.SOCK_SEQPACKET
	}
	for i, path := range r.job.Paths {
		fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		err = wire.WithShortPath(path, func(short string) error {
			return unix.Bind(fd, &unix.SockaddrUnix{Name: short})
		})
		if err == nil {
			err = unix.Listen(fd, unix.SOMAXCONN)
		}
		if err != nil {
			return fmt.Errorf("listen on %s: %w", path, err)
		}
		if err := r.add(&port{fd: fd, kind: i, listen: true}, unix.EPOLLIN); err != nil {
			return err
		}
	}
	return nil
}

// add puts a port under epoll.
func (r *bareRelay) add(p *port, events uint32) error {
	for len(r.ports) <= p.fd {
		r.ports = append(r.ports, nil)
	}
	r.ports[p.fd] = p
	event := unix.EpollEvent{Events: events, Fd: int32(p.fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(r.poll, unix.EPOLL_CTL_ADD, p.fd, &event))
}

// run is the loop: copy what is there while everybody keeps up, else wait.
func (r *bareRelay) run() error {
	events := make([]unix.EpollEvent, 256)
	for {
		for r.owed == 0 && len(r.ready) > 0 {
			if err := r.copyFrom(r.ready[0]); err != nil {
				return err
			}
		}
		n, err := unix.EpollWait(r.poll, events, -1)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("epoll_wait", err)
		}
		for i := range max(n, 0) {
			if err := r.handle(&events[i]); err != nil {
				return err
			}
		}
	}
}

// handle notes what an event says. Ports that are read are edge-triggered, so that
// no call is needed to leave them alone for a while.
func (r *bareRelay) handle(event *unix.EpollEvent) error {
	p := r.ports[event.Fd]
	if p == nil {
		return nil
	}
	if p.listen {
		return r.accept(p)
	}
	if event.Events&unix.EPOLLOUT != 0 && len(p.rest) > 0 {
		r.owed--
		rest := p.rest
		p.rest = nil
		if err := r.send(p, rest); err != nil {
			return err
		}
	}
	if event.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
		p.hungUp = true
	}
	if event.Events&unix.EPOLLIN != 0 && p.kind != relayOut && !p.inList {
		p.inList = true
		r.ready = append(r.ready, p)
	}
	return nil
}

// accept takes one connection; the listening sockets are level-triggered.
func (r *bareRelay) accept(l *port) error {
	fd, _, err := unix.Accept4(l.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err == unix.EAGAIN || err == unix.EINTR {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("accept", err)
	}
	p := &port{fd: fd, kind: l.kind}
	switch {
	case p.kind == relayOut:
		r.outs = append(r.outs, p)
	case p.kind == relayPair && r.pair == nil:
		r.pair = p
	case p.kind == relayPair:
		p.to, r.pair.to, r.pair = r.pair, p, nil
	}
	if err := r.add(p, unix.EPOLLET|r.interest(p)); err != nil {
		return err
	}
	// Any frame will do to say "accepted".
	_, err = unix.Write(fd, wire.AppendTarget(nil, 1))
	return os.NewSyscallError("write", err)
}

// interest is what a port is watched for. One that only receives is not watched for
// room: every read of its peer's would be an event.
func (r *bareRelay) interest(p *port) uint32 {
	if p.kind == relayOut {
		return 0
	}
	return unix.EPOLLIN | unix.EPOLLRDHUP
}

// copyFrom reads once and writes that to everyone it is for.
func (r *bareRelay) copyFrom(p *port) error {
	n, err := unix.Read(p.fd, r.buf)
	if err == unix.EINTR {
		return nil
	}
	r.ready = append(r.ready[:0], r.ready[1:]...)
	// A stream that gave less than was asked for is empty, and epoll tells when there
	// is more (epoll(7), edge-triggered); but not of an end that it has told before.
	if p.inList = n == len(r.buf) || n > 0 && (r.job.Network == Packet || p.hungUp); p.inList {
		r.ready = append(r.ready, p)
	}
	if err != nil && err != unix.EAGAIN {
		return os.NewSyscallError("read", err)
	}
	if n <= 0 {
		return nil
	}
	if p.to != nil {
		return r.send(p.to, r.buf[:n])
	}
	for _, out := range r.outs {
		if err := r.send(out, r.buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// send writes b to p; what p does not take is owed to it.
func (r *bareRelay) send(p *port, b []byte) error {
	n, err := unix.Write(p.fd, b)
	if n == len(b) {
		return nil
	}
	if err != nil && err != unix.EAGAIN && err != unix.EINTR {
		return os.NewSyscallError("write", err)
	}
	p.rest = b[max(n, 0):]
	r.owed++
	events := unix.EPOLLOUT | unix.EPOLLONESHOT | r.interest(p)
	if p.kind == relayPair {
		events = unix.EPOLLOUT | unix.EPOLLET | r.interest(p)
	}
	event := unix.EpollEvent{Events: events, Fd: int32(p.fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(r.poll, unix.EPOLL_CTL_MOD, p.fd, &event))
}
