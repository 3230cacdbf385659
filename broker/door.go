package broker

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// open starts accepting at a listening socket, which is the loop's from now on.
func (l *loop) open(fd int, packet bool) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		unix.Close(fd)
		return fmt.Errorf("broker: watch the listening socket: %w", err)
	}
	l.doors[fd] = door{packet: packet}
	return nil
}

// shutDoor stops accepting at fd and closes it.
func (l *loop) shutDoor(fd int) {
	if _, ok := l.doors[fd]; ok {
		delete(l.doors, fd)
		unix.Close(fd)
	}
}

// openDoors accepts again after a want of descriptors.
func (l *loop) openDoors() {
	for fd, d := range l.doors {
		if d.shut {
			ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
			if unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &ev) == nil {
				l.doors[fd] = door{packet: d.packet}
			}
		}
	}
}

// acceptReady accepts what waits. It comes last in a turn, so that no event of the
// turn can be taken for one of a connection that got a closed one's descriptor.
func (l *loop) acceptReady() {
	for _, fd := range l.ready {
		if d, ok := l.doors[fd]; ok {
			l.accepting(fd, d)
		}
	}
	l.ready = l.ready[:0]
}

// acceptBatch bounds how many connections one turn takes in, so that a crowd at
// the door does not keep those inside waiting.
const acceptBatch = 64

func (l *loop) accepting(listener int, d door) {
	for range acceptBatch {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			l.join(fd, d.packet)
		case unix.EINTR, unix.ECONNABORTED:
			continue
		case unix.EAGAIN:
			return
		default: // EMFILE, ENFILE, ENOBUFS, ENOMEM (accept(2)): it may pass
			l.log.Error("cannot accept connections: trying again soon; raise the limit on open files (ulimit -n)", "error", err)
			ev := unix.EpollEvent{Fd: int32(listener)}
			_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, listener, &ev)
			l.doors[listener] = door{packet: d.packet, shut: true}
			l.knockAt = l.now.Add(knockAgain)
			return
		}
	}
}

// join takes in a connected socket, which is the loop's from now on.
func (l *loop) join(fd int, packet bool) {
	cred, err := lookUp(fd)
	if err != nil {
		l.log.Error("cannot tell who connects: the connection is closed", "error", err)
		unix.Close(fd)
		return
	}
	a := l.account[cred.UID]
	if a == nil {
		a = &account{}
		l.account[cred.UID] = a
	}
	p := &peer{
		fd: fd, cred: cred, account: a, packet: packet, maxPacket: wire.DefaultMaxPacket,
		joined: l.now,
	}
	for len(l.peers) <= fd {
		l.peers = append(l.peers, nil)
	}
	l.peers[fd] = p
	l.count++
	l.idleAt = time.Time{}
	a.connections++
	l.stats.Connected++
	l.watch(p)
	l.watchTime(l.opts.HelloTimeout)
	l.log.Debug("connected", "uid", cred.UID, "pid", cred.PID)
	switch {
	case l.count > l.opts.MaxConnections:
		l.end(p, wire.CodeLimit, fmt.Sprintf("the broker has %d connections, its limit: close some, or raise it", l.opts.MaxConnections))
	case a.connections > l.opts.MaxUserConnections:
		l.end(p, wire.CodeLimit, fmt.Sprintf("uid %d has %d connections, the limit for one user: close some, or raise it", cred.UID, l.opts.MaxUserConnections))
	case l.draining:
		l.end(p, wire.CodeShutdown, "the broker is stopping")
	}
}

// end queues GOODBYE for p, behind the verdicts that are due, and has it closed at
// the end of the turn.
func (l *loop) end(p *peer, code wire.Code, text string) {
	if p.ending || p.closed {
		return
	}
	if code != wire.CodeShutdown {
		l.stats.Ended++
		l.log.Warn("connection ended", "uid", p.cred.UID, "pid", p.cred.PID, "client", p.name, "reason", code, "detail", text)
	}
	l.endRun()
	for _, s := range p.subs {
		l.closeSub(s)
	}
	l.closeConsumers(p)
	p.active = nil
	l.forgetAwaits(p)
	l.sendVerdicts(p, true)
	p.out = wire.AppendCold(p.out, wire.TypeGoodbye, &wire.Goodbye{Code: code, Text: text, Seq: l.seq})
	p.ending = true
	l.touch(p)
	l.ended = append(l.ended, p)
	l.watch(p)
}

// closeEnded closes the connections that were ended. One whose socket is full is
// kept a moment, so that it can read why.
func (l *loop) closeEnded() {
	ended := l.ended
	l.ended = nil
	if len(ended) > 0 {
		l.deliver()
	}
	for _, p := range ended {
		if !p.stalled || p.broken {
			l.close(p, "ended")
			continue
		}
		p.lingering = true
		p.moved = l.now
		l.watchTime(lingerTime)
	}
}

// close gives back everything that p has.
func (l *loop) close(p *peer, why string) {
	if p.closed {
		return
	}
	l.endRun()
	for _, s := range p.subs {
		l.closeSub(s)
	}
	l.closeConsumers(p)
	l.unparkAll(p)
	p.closed = true
	l.goOn(p)
	l.forgetAwaits(p)
	p.forgetHolds()
	p.in, p.out, p.active, p.verdicts, p.judged, p.awaited, p.parkedBytes = nil, nil, nil, nil, 0, 0, 0
	p.recharge()
	p.account.connections--
	if p.account.connections == 0 {
		delete(l.account, p.cred.UID)
	}
	unix.Close(p.fd) // takes it out of epoll as well
	l.peers[p.fd] = nil
	l.count--
	if l.count == 0 && l.opts.IdleExit > 0 {
		l.idleAt = l.now.Add(l.opts.IdleExit)
	}
	l.log.Debug("disconnected", "uid", p.cred.UID, "pid", p.cred.PID, "client", p.name, "why", why)
}
