package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// dial makes the first connection.
func (c *Client) dial(ctx context.Context) (*connection, error) {
	ctx, cancel := withDialTimeout(ctx)
	defer cancel()
	places, named, err := c.opts.places()
	if err != nil {
		return nil, err
	}
	failed := &searchError{}
	for _, p := range places {
		cn, err := c.try(ctx, p)
		if err == nil {
			c.place = p
			return cn, nil
		}
		var absent *searchError
		if !errors.As(err, &absent) {
			return nil, err
		}
		failed.attempts = append(failed.attempts, absent.attempts...)
	}
	switch {
	case named || ctx.Err() != nil:
		return nil, failed
	case !c.opts.Autostart || os.Getenv("POSTBUS_AUTOSTART") == "0":
		failed.remedy = "start one with postbus serve, or name another bus in POSTBUS_ADDRESS"
		return nil, failed
	}
	c.place = places[0]
	return c.autostart(ctx, failed)
}

// redial makes a further connection, to the same bus. Another may be a stranger's; and
// no broker is started, for the old one may be away to be replaced.
func (c *Client) redial(ctx context.Context) (cn *connection, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	cn, err = c.try(ctx, c.place)
	var absent *searchError
	if err == nil || errors.As(err, &absent) {
		return cn, true, err
	}
	fault := faultOf(err)
	return nil, fault != nil && retryable(fault.Code), err
}

// withDialTimeout gives ctx a deadline if it has none.
func withDialTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, dialTimeout)
}

// try looks for a broker at p. Its error is a *searchError when nobody answered, and
// another when somebody did who is not to be asked further.
func (c *Client) try(ctx context.Context, p place) (*connection, error) {
	failed := &searchError{}
	for _, address := range p.addresses {
		cn, err := c.connectPatiently(ctx, address, p.own)
		if err == nil {
			return cn, nil
		}
		var attempt *attemptError
		if !errors.As(err, &attempt) {
			return nil, err
		}
		failed.attempts = append(failed.attempts, attempt)
	}
	return nil, failed
}

// connectPatiently connects, and tries again as long as a broker is there that is only
// too busy, or about to be replaced. connect(2) of a nonblocking socket does not wait
// for room in the backlog but fails with EAGAIN, so that a deadline alone is no help.
func (c *Client) connectPatiently(ctx context.Context, address wire.Address, own bool) (*connection, error) {
	pause := newBackoff(retryMin, retryMax)
	for {
		cn, err := c.connect(ctx, address, own)
		var attempt *attemptError
		if !errors.As(err, &attempt) || !attempt.again || pause.wait(ctx) != nil {
			return cn, err
		}
	}
}

// connect connects once.
func (c *Client) connect(ctx context.Context, address wire.Address, own bool) (*connection, error) {
	conn, err := connectSocket(address)
	if err != nil {
		return nil, &attemptError{address: address, err: err, again: errors.Is(err, syscall.EAGAIN)}
	}
	if own {
		if err := checkServer(conn, address); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	cn, err := c.greet(ctx, conn, address.String())
	switch {
	case err == nil:
		return cn, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("connected, but no WELCOME came: %w", err)
		return nil, &attemptError{address: address, err: err}
	case errors.Is(err, ErrShutdown), isReset(err):
		// connect(2) succeeds before a broker accepts, and while one stops.
		return nil, &attemptError{address: address, err: err, again: true}
	}
	return nil, fmt.Errorf("%w (at %s)", err, address)
}

func isReset(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// connectSocket returns a connection, or the error of connect(2) alone: the name that
// net would put around it may be one through /proc.
func connectSocket(address wire.Address) (conn *net.UnixConn, err error) {
	err = wire.WithShortPath(address.Path, func(short string) (err error) {
		conn, err = net.DialUnix(address.Network, nil, &net.UnixAddr{Name: short, Net: address.Network})
		return err
	})
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return nil, os.NewSyscallError("connect", errno)
	}
	return conn, err
}

// checkServer refuses a server that is neither this user's nor root's. The user's bus
// may lie in /tmp, where anybody can be quicker to take the name.
func checkServer(conn *net.UnixConn, address wire.Address) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	// Not through File: its Fd would make the connection a blocking one.
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	if uid := os.Getuid(); !trusted(cred.Uid, uint32(uid)) {
		return fmt.Errorf("%w: %s should be your own bus, but is served by uid %d, not by you (uid %d) or root: "+
			"set XDG_RUNTIME_DIR to a directory of yours, or name a bus in POSTBUS_ADDRESS", ErrNotAllowed, address, cred.Uid, uid)
	}
	return nil
}

// trusted reports whether a server may serve the own bus of a user.
func trusted(server, user uint32) bool { return server == user || server == 0 }

// greet says HELLO on a connection and waits for the answer. It closes the connection
// if it fails.
func (c *Client) greet(ctx context.Context, conn *net.UnixConn, address string) (*connection, error) {
	cn := &connection{
		client:  c,
		conn:    conn,
		reader:  wire.NewReader(conn, true),
		address: address,
		inbox:   inbox{targets: make(map[uint32]receiver)},
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := cn.hello()
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return cn, nil
}

func (cn *connection) hello() error {
	hello := wire.Hello{
		Version:  wire.Version,
		Features: []string{wire.FeatureQueues},
		Client:   cn.client.opts.Name,
		Session:  cn.client.session[:],
		Restore:  cn.client.toRestore(),
	}
	frame := wire.AppendCold(nil, wire.TypeHello, &hello)
	// A broker that takes no more connections says so and closes without reading; what
	// it said is there also when the write failed.
	_ = wire.WriteFrames(cn.conn, frame, wire.DefaultMaxPacket)
	payload, err := cn.reader.Next()
	if err != nil {
		return err
	}
	t, err := wire.PeekType(payload)
	switch {
	case err != nil:
		return withSentinel(err)
	case t == wire.TypeGoodbye:
		var body wire.Goodbye
		if err := wire.DecodeCold(payload, &body); err != nil {
			return withSentinel(err)
		}
		return refusal(body.Code, body.Text)
	case t != wire.TypeWelcome:
		return withSentinel(broken("a frame of %s where WELCOME was due", t))
	}
	return cn.welcomed(payload)
}

// welcomed takes the broker's answer and the limits it sets.
func (cn *connection) welcomed(payload []byte) error {
	w := &cn.welcome
	if err := wire.DecodeCold(payload, w); err != nil {
		return withSentinel(err)
	}
	if w.Version != wire.Version {
		return refusal(wire.CodeVersion, fmt.Sprintf("the broker speaks version %d, this client %d", w.Version, wire.Version))
	}
	if w.MaxPacket <= 0 || w.MaxPacket > wire.DefaultMaxPacket || w.MaxMessage <= 0 || w.Window <= 0 {
		return withSentinel(broken("a WELCOME with max_packet %d, max_message %d, window %d", w.MaxPacket, w.MaxMessage, w.Window))
	}
	cn.reader.SetLimits(wire.FrameLimit(w.MaxMessage), w.MaxPacket)
	return nil
}

// toRestore returns how many subscriptions the client opens at once on a new connection.
func (c *Client) toRestore() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		if _, ok := s.(*Subscription); ok {
			n++
		}
	}
	return n
}
