package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// Reader takes frames off a connection of either type. It is for one goroutine.
//
// The framing is the same on both types: packet boundaries mean nothing, a frame
// above the packet size simply goes on in the next packets.
type Reader struct {
	conn      io.Reader
	packet    bool // SOCK_SEQPACKET
	keep      bool
	limit     int // largest payload
	maxPacket int
	buf       []byte
	from, to  int // the unread part of buf
	reset     error
}

// readChunk is how much a Reader asks the kernel for at a time, in bytes, and the
// size of the buffers whose parts it hands out.
const readChunk = 256 << 10

// NewReader returns a Reader on conn with the limits that hold before WELCOME.
// With keep, the payloads that Next returns stay valid for ever (each buffer is
// left to the garbage collector); without, only until the next call.
func NewReader(conn *net.UnixConn, keep bool) *Reader {
	return &Reader{
		conn: conn, packet: IsPacket(conn), keep: keep,
		limit: MaxCold, maxPacket: DefaultMaxPacket,
	}
}

// SetLimits sets the largest payload and, on SOCK_SEQPACKET, the largest packet,
// in bytes.
func (r *Reader) SetLimits(frame, packet int) { r.limit, r.maxPacket = frame, packet }

// IsPacket reports whether conn is SOCK_SEQPACKET.
func IsPacket(conn *net.UnixConn) bool {
	return conn.LocalAddr().Network() == "unixpacket"
}

// Buffered reports whether a whole frame is there already, so that Next will not
// wait.
func (r *Reader) Buffered() bool {
	_, _, err := Split(r.buf[r.from:r.to], r.limit)
	return err == nil
}

// Next returns the payload of the next frame and waits for it. At the end of the
// connection it returns io.EOF, or io.ErrUnexpectedEOF inside a frame, or the
// error of the connection; of a peer that breaks the framing, an *Error.
func (r *Reader) Next() ([]byte, error) {
	for {
		payload, size, err := Split(r.buf[r.from:r.to], r.limit)
		if err == nil {
			r.from += size
			return payload, nil
		}
		if err != ErrShort {
			return nil, err
		}
		if err := r.fill(size); err != nil {
			return nil, err
		}
	}
}

// fill reads once. need is the size of the frame at r.from, as far as it is known.
func (r *Reader) fill(need int) error {
	r.makeRoom(need)
	for {
		n, err := r.conn.Read(r.buf[r.to:])
		if r.packet && n > r.maxPacket {
			// read(2) drops what does not fit without a word (recv(2), MSG_TRUNC);
			// makeRoom leaves room for more than the largest packet allowed, so
			// what is within the limit is whole.
			return &Error{Code: CodeTooLarge, Text: fmt.Sprintf(
				"a packet of more than %d bytes, the limit of this connection", r.maxPacket)}
		}
		if n > 0 {
			r.to += n
			return nil
		}
		switch {
		case err == nil: // a zero-length read of nothing: not seen on sockets
			continue
		case r.packet && r.reset == nil && errors.Is(err, syscall.ECONNRESET):
			// On SOCK_SEQPACKET the reset of a peer that closed with unread input
			// comes before the packets it had sent; they are still there.
			r.reset = err
			continue
		case errors.Is(err, io.EOF):
			// The end, or a zero-length packet, which this protocol does not have.
			if r.reset != nil {
				return r.reset
			}
			if r.from < r.to {
				return io.ErrUnexpectedEOF
			}
			return io.EOF
		}
		return err
	}
}

// makeRoom sees to it that at least a packet fits behind r.to. A frame that is
// longer than what there is gets a buffer that doubles with what has arrived, so
// that an announced length alone takes no memory.
func (r *Reader) makeRoom(need int) {
	have := r.to - r.from
	if have == 0 && !r.keep {
		r.from, r.to = 0, 0
	}
	room := r.maxPacket + 1
	if len(r.buf)-r.to >= room && (r.keep || r.from == 0 || need <= len(r.buf)-r.from) {
		return
	}
	size := readChunk
	if need > size/2 {
		size = min(need, 2*have) + 2*room
		size = max(size, readChunk)
	}
	if !r.keep && len(r.buf) >= size && r.from > 0 {
		copy(r.buf, r.buf[r.from:r.to])
		r.from, r.to = 0, have
		if len(r.buf)-r.to >= room {
			return
		}
	}
	buf := make([]byte, size)
	copy(buf, r.buf[r.from:r.to])
	r.buf, r.from, r.to = buf, 0, have
}

// WriteFrames writes whole frames and waits until they are out. On SOCK_SEQPACKET
// it packs as many into each packet as maxPacket allows and spreads a frame above
// it over packets of its own. After an error the connection is out of step and of
// no use. It does not keep buf. Only one goroutine may write to a connection.
func WriteFrames(conn *net.UnixConn, buf []byte, maxPacket int) error {
	if !IsPacket(conn) {
		_, err := conn.Write(buf)
		return err
	}
	for len(buf) > 0 {
		n, _ := CutAt(buf, maxPacket)
		for frame := buf[:n]; len(frame) > 0; {
			m, err := conn.Write(frame[:min(len(frame), maxPacket)])
			if err != nil {
				return err
			}
			frame = frame[m:]
		}
		buf = buf[n:]
	}
	return nil
}
