package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// endpoint is one end of a connection to a broker or a relay: a blocking socket and
// a buffer of what was read. It does as little as a client can, and the same
// whatever is at the other end.
type endpoint struct {
	fd        int
	packet    bool
	maxPacket int // bytes in one packet
	window    int // bytes of publishes without a verdict; 0: no limit, a relay gives none
	limit     int // bytes of a payload

	buf      []byte // where reads go; a process with many endpoints has one for all
	from, to int    // the unread part of buf
	rest     []byte // the unread part while another endpoint has buf
}

// readBuffer is how much an endpoint reads at once, in bytes.
const readBuffer = 256 << 10

// dial connects to the socket at path. connect(2) on a blocking socket waits where
// the backlog is full.
func dial(network Network, path string, size int) (*endpoint, error) {
	kind := unix.SOCK_STREAM
	if network == Packet {
		kind = unix.SOCK_SEQPACKET
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = wire.WithShortPath(path, func(short string) error {
		return retry(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: short}) })
	})
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return &endpoint{
		fd: fd, packet: network == Packet,
		maxPacket: wire.DefaultMaxPacket,
		limit:     wire.FrameLimit(size),
		buf:       make([]byte, readBuffer+2*(wire.FrameLimit(size)+wire.DefaultMaxPacket)),
	}, nil
}

// dialBroker connects to a broker and greets it.
func dialBroker(network Network, path string, size int) (*endpoint, error) {
	e, err := dial(network, path, size)
	if err != nil {
		return nil, err
	}
	if err := e.greet(size); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *endpoint) greet(size int) error {
	hello := wire.Hello{Version: wire.Version, Client: "postbus bench"}
	if err := e.write(wire.AppendCold(nil, wire.TypeHello, &hello)); err != nil {
		return err
	}
	var welcome wire.Welcome
	if err := e.expect(wire.TypeWelcome, &welcome); err != nil {
		return err
	}
	e.maxPacket, e.window = welcome.MaxPacket, welcome.Window
	if size > welcome.MaxMessage {
		return sizeError(size, welcome.MaxMessage)
	}
	return nil
}

func sizeError(size, limit int) error {
	return &wire.Error{Code: wire.CodeTooLarge, Text: fmt.Sprintf(
		"messages of %d bytes are above this broker's limit of %d: choose a smaller size, or start the broker with a higher limit", size, limit)}
}

// subscribe opens subscription 1 and waits for the broker to confirm it.
func (e *endpoint) subscribe(filter string, policy wire.Policy) error {
	sub := wire.Subscribe{Sub: 1, Filters: []string{filter}, Policy: policy.String()}
	if err := e.write(wire.AppendCold(nil, wire.TypeSubscribe, &sub)); err != nil {
		return err
	}
	return e.expect(wire.TypeSubscribed, &wire.Subscribed{})
}

// dialRelay connects to a relay's socket and waits for its greeting, without which
// the relay may not know of this connection yet.
func dialRelay(network Network, path string, size int) (*endpoint, error) {
	e, err := dial(network, path, size)
	if err != nil {
		return nil, err
	}
	if _, err := e.next(); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// expect waits for a cold frame of type t and decodes its body.
func (e *endpoint) expect(t wire.Type, body any) error {
	payload, err := e.next()
	if err != nil {
		return err
	}
	got, err := wire.PeekType(payload)
	if err != nil {
		return err
	}
	if got != t {
		return unexpected(got, payload)
	}
	return wire.DecodeCold(payload, body)
}

// unexpected makes an error of a frame that should not have come; the broker's own
// words where it has some.
func unexpected(t wire.Type, payload []byte) error {
	switch t {
	case wire.TypeGoodbye:
		var g wire.Goodbye
		if err := wire.DecodeCold(payload, &g); err == nil {
			return &wire.Error{Code: g.Code, Text: "the broker ended the connection: " + g.Text}
		}
	case wire.TypeError:
		var e wire.ErrorBody
		if err := wire.DecodeCold(payload, &e); err == nil {
			return &wire.Error{Code: e.Code, Text: "the broker refused: " + e.Text}
		}
	}
	return fmt.Errorf("the broker sent a frame %v that was not expected", t)
}

// next returns the payload of the next frame and waits for it. It is valid until
// the next call.
func (e *endpoint) next() ([]byte, error) {
	for {
		payload, err := e.buffered()
		if payload != nil || err != nil {
			return payload, err
		}
		if err := e.fill(0); err != nil {
			return nil, err
		}
	}
}

// buffered returns the payload of the next frame if it is there, else nil.
func (e *endpoint) buffered() ([]byte, error) {
	b := e.buf[e.from:e.to]
	if len(b) < wire.HeaderSize {
		return nil, nil
	}
	n := int(binary.LittleEndian.Uint32(b))
	if len(b)-wire.HeaderSize >= n && n > 0 {
		e.from += wire.HeaderSize + n
		return b[wire.HeaderSize : wire.HeaderSize+n], nil
	}
	if n == 0 || n > e.limit {
		_, _, err := wire.Split(b, e.limit)
		return nil, err
	}
	return nil, nil
}

// fill reads once, with the flags of recv(2). It returns io.EOF at the end.
func (e *endpoint) fill(flags int) error {
	if e.from > 0 {
		e.to = copy(e.buf, e.buf[e.from:e.to])
		e.from = 0
	}
	for reset := false; ; {
		n, err := e.recv(e.buf[e.to:min(e.to+readBuffer, len(e.buf))], flags)
		switch {
		case n > 0:
			e.to += n
			return nil
		case err == unix.EINTR:
		case err == unix.ECONNRESET && e.packet && !reset:
			reset = true // SOCK_SEQPACKET tells the reset before the packets still queued
		case err == nil:
			return io.EOF
		default:
			return os.NewSyscallError("read", err)
		}
	}
}

func (e *endpoint) recv(b []byte, flags int) (int, error) {
	if flags == 0 {
		return unix.Read(e.fd, b)
	}
	n, _, err := unix.Recvfrom(e.fd, b, flags)
	return n, err
}

// share makes e read into buf from now on, which others use too: between resume and
// suspend it belongs to e.
func (e *endpoint) share(buf []byte) {
	e.suspend()
	e.buf = buf
}

func (e *endpoint) resume() { e.from, e.to = 0, copy(e.buf, e.rest) }

func (e *endpoint) suspend() {
	e.rest = append(e.rest[:0], e.buf[e.from:e.to]...)
	e.from, e.to = 0, 0
}

// write writes whole frames, in packets where the socket has them, and waits until
// they are out.
func (e *endpoint) write(b []byte) error {
	for len(b) > 0 {
		n := len(b)
		if e.packet {
			n, _ = wire.CutAt(b, e.maxPacket)
		}
		if err := e.writeAll(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// writeAll writes one packet, or one frame that is longer than a packet, or on
// SOCK_STREAM anything.
func (e *endpoint) writeAll(b []byte) error {
	for len(b) > 0 {
		part := b
		if e.packet {
			part = b[:min(len(b), e.maxPacket)]
		}
		n, err := unix.Write(e.fd, part)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("write", err)
		}
		b = b[max(n, 0):]
	}
	return nil
}

// cut makes a read that waits, now or later, return io.EOF.
func (e *endpoint) cut() { _ = unix.Shutdown(e.fd, unix.SHUT_RD) }

func (e *endpoint) close() { unix.Close(e.fd) }

// retry calls f again while a signal interrupts it.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
