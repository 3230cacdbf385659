package broker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// Broker is a running broker. Its methods may be called from any goroutine.
type Broker struct {
	loop *loop
	done chan struct{} // closed when the loop has ended

	mu    sync.Mutex // guards what follows
	posts []func(*loop)
	ended bool
	err   error // why the loop ended
}

// Stats is a snapshot of a broker's counters.
type Stats struct {
	Connections   int    // open now
	Subscriptions int    // open now
	Connected     uint64 // connections since the start
	Ended         uint64 // connections that the broker ended because of what the client did
	Published     uint64 // messages accepted
	Delivered     uint64 // messages given to subscribers' connections
	Dropped       uint64 // messages dropped: what all gaps told add up to
	Buffered      int    // bytes charged to all connections
	Seq           uint64 // the last given out
}

// New starts a broker that serves nobody yet. nil options are the defaults. The
// caller ends it with Shutdown or Close.
func New(opts *Options) (*Broker, error) {
	b, err := newBroker(opts)
	if err != nil {
		return nil, err
	}
	go b.run()
	return b, nil
}

// newBroker makes a broker whose loop nothing turns yet.
func newBroker(opts *Options) (*Broker, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	b := &Broker{done: make(chan struct{})}
	l := &loop{
		opts: o, log: o.Logger, bus: newBus(), posted: b.takePosts, doors: make(map[int]door), account: make(map[uint32]*account), queues: make(map[string]*workQueue), euid: uint32(os.Geteuid()),
		readBuf: make([]byte, readSize+2*wire.DefaultMaxPacket), frameLimit: wire.FrameLimit(o.MaxMessage), now: time.Now(),
		redelivered: wire.AppendOptions(nil, &wire.MessageInfo{Redelivered: true}),
	}
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("broker: epoll_create: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		unix.Close(l.epoll)
		return nil, fmt.Errorf("broker: eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.wake)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, l.wake, &ev); err != nil {
		unix.Close(l.epoll)
		unix.Close(l.wake)
		return nil, fmt.Errorf("broker: epoll_ctl: %w", err)
	}
	if o.IdleExit > 0 {
		l.idleAt = l.now.Add(o.IdleExit)
	}
	b.loop, l.broker = l, b
	l.stamp = l.now.UnixNano()
	if err := l.openQueues(); err != nil {
		unix.Close(l.epoll)
		unix.Close(l.wake)
		return nil, err
	}
	return b, nil
}

// busSize is the size of a bus's name, in bytes; it is written in hexadecimal.
const busSize = 8

// newBus makes the name of a run of seq numbers.
func newBus() string {
	var id [busSize]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	return hex.EncodeToString(id[:])
}

// run turns the loop until it ends and then gives back what it holds.
func (b *Broker) run() {
	l := b.loop
	for l.err == nil {
		if err := l.turnOnce(time.Now); err != nil {
			l.log.Error("the broker stops", "error", err)
			l.err = err
		}
	}
	l.wrapUp()
	b.mu.Lock()
	b.ended, b.err = true, l.err
	left := b.posts
	b.posts = nil
	b.mu.Unlock()
	l.stop()
	for _, do := range left {
		do(l) // so that nobody waits for an answer; whatever it opens it closes, for l.err is set
	}
	close(b.done)
}

// wrapUp ends the connections, and lets the queues finish what is under way.
func (l *loop) wrapUp() {
	for fd := range l.doors {
		l.shutDoor(fd)
	}
	for _, p := range l.peers {
		if p != nil {
			l.close(p, "the broker stops")
		}
	}
	l.finishQueues()
}

// stop gives back what the loop holds, after wrapUp.
func (l *loop) stop() {
	l.stopQueues()
	unix.Close(l.wake)
	unix.Close(l.epoll)
}

// post has the loop call do. It reports false when the loop has ended.
func (b *Broker) post(do func(*loop)) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return false
	}
	b.posts = append(b.posts, do)
	one := [8]byte{1}
	unix.Write(b.loop.wake, one[:]) // EAGAIN: the counter is full, the loop will wake all the same
	return true
}

func (b *Broker) takePosts() []func(*loop) {
	b.mu.Lock()
	defer b.mu.Unlock()
	posts := b.posts
	b.posts = nil
	return posts
}

// Serve accepts connections on l, SOCK_SEQPACKET or SOCK_STREAM, until the broker
// ends, and takes l over: it is closed when Serve returns, and its file is left
// to the caller. The error is never nil: ErrClosed after Shutdown or Close,
// ErrIdle after Options.IdleExit. Several listeners can be served at once.
func (b *Broker) Serve(l *net.UnixListener) error {
	l.SetUnlinkOnClose(false) // by name it would take a successor's file too
	defer l.Close()
	fd, err := dupListener(l)
	if err != nil {
		return err
	}
	packet := l.Addr().Network() == "unixpacket"
	opened := make(chan error, 1)
	if !b.post(func(lp *loop) {
		if lp.err != nil || lp.draining {
			unix.Close(fd)
			opened <- nil // the end of the loop says why
			return
		}
		opened <- lp.open(fd, packet)
	}) {
		unix.Close(fd)
		return b.why()
	}
	if err := <-opened; err != nil {
		return err
	}
	<-b.done
	return b.why()
}

// dupListener returns a descriptor of l's socket that the garbage collector does
// not know. The kernel refuses descriptors sent by clients where it can
// (SO_PASSRIGHTS, Linux 6.16); elsewhere read(2) discards them.
func dupListener(l *net.UnixListener) (int, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("broker: listener: %w", err)
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(s uintptr) {
		fd, dupErr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 3)
		_ = unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0)
	})
	if err == nil {
		err = dupErr
	}
	if err != nil {
		return -1, fmt.Errorf("broker: listener: %w", err)
	}
	return fd, nil
}

// ServeDir serves the sockets of d until the broker ends, as Serve does, and goes
// on with the numbers of the broker that was there before, if that stopped in
// order. It closes d before it returns.
func (b *Broker) ServeDir(d *Dir) error {
	restartPath := filepath.Join(d.path, wire.RestartFile)
	before := readRestart(restartPath)
	taken := before != nil && b.post(func(l *loop) { l.take(before) })
	errs := make(chan error, len(d.listeners))
	for _, l := range d.listeners {
		go func() { errs <- b.Serve(l) }()
	}
	err := <-errs
	for range len(d.listeners) - 1 {
		b.Close() // one that cannot be served ends the others; else it has ended
		<-errs
	}
	leave := b.loop.restart // the loop has ended: it is nobody's
	if before != nil && !taken {
		leave = before
	}
	if r := leave; r != nil {
		if werr := r.write(restartPath); werr != nil {
			b.loop.log.Error("cannot leave the restart file: clients will be told that they may have missed messages", "error", werr)
		}
	}
	d.Close()
	return err
}

// Connect returns a connection to the broker that needs no socket file, for a
// program and its own broker: one end of a SOCK_STREAM socketpair. The caller
// closes it.
func (b *Broker) Connect() (*net.UnixConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("broker: socketpair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "postbus")
	conn, err := net.FileConn(f) // has a duplicate of its own
	f.Close()
	if err != nil {
		unix.Close(fds[1])
		return nil, fmt.Errorf("broker: socketpair: %w", err)
	}
	if !b.post(func(l *loop) {
		if l.err != nil {
			unix.Close(fds[1])
			return
		}
		l.join(fds[1], false)
	}) {
		unix.Close(fds[1])
		conn.Close()
		return nil, b.why()
	}
	return conn.(*net.UnixConn), nil
}

// Stats returns the counters as they are between two turns of the loop; after its
// end, zeros.
func (b *Broker) Stats() Stats {
	got := make(chan Stats, 1)
	if !b.post(func(l *loop) { got <- l.snapshot() }) {
		return Stats{}
	}
	return <-got
}

func (l *loop) snapshot() Stats {
	s := l.stats
	s.Connections, s.Seq = l.count, l.seq
	for _, a := range l.account {
		s.Buffered += a.buffered
	}
	return s
}

// Peers returns who is connected now, in no order; after the broker's end, nobody.
func (b *Broker) Peers() []Peer {
	got := make(chan []Peer, 1)
	if !b.post(func(l *loop) { got <- l.whoIsThere() }) {
		return nil
	}
	return <-got
}

func (l *loop) whoIsThere() []Peer {
	var all []Peer
	for _, p := range l.peers {
		if p != nil {
			who := p.cred
			who.Client, who.Subscriptions = p.name, len(p.subs)
			all = append(all, who)
		}
	}
	return all
}

// Shutdown ends the broker in order: it takes no more publishes, delivers what is
// buffered within Options.DrainTimeout, acknowledges what was routed and tells
// the clients. It waits for the end; when ctx is done first it cuts as Close does
// and returns the context's error.
func (b *Broker) Shutdown(ctx context.Context) error {
	b.post((*loop).startDrain)
	select {
	case <-b.done:
		return nil
	case <-ctx.Done():
		b.Close()
		return ctx.Err()
	}
}

// Close ends the broker at once: what is buffered is lost, and clients are not
// told more than that the connection ends. It may be called at any time, also
// again, and returns when the broker has ended.
func (b *Broker) Close() error {
	b.post(func(l *loop) { l.err = ErrClosed })
	<-b.done
	return nil
}

// why returns what ended the loop.
func (b *Broker) why() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
