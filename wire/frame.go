package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Type is a frame's type: the first element of its array.
type Type uint8

// The frame types. Their numbers are for ever; new ones are only added.
const (
	TypeHello        Type = 1  // client: who I am and what I can do
	TypeWelcome      Type = 2  // broker: the answer, with limits
	TypePublish      Type = 3  // client: one message to a topic (hot)
	TypeMessage      Type = 4  // broker: one message (hot)
	TypeAck          Type = 5  // broker: publishes routed so far (hot)
	TypeError        Type = 6  // broker: one publish or command was refused
	TypeSubscribe    Type = 7  // client: open a subscription
	TypeSubscribed   Type = 8  // broker: it is open
	TypeUnsubscribe  Type = 9  // client: close a subscription
	TypeUnsubscribed Type = 10 // broker: it is closed, with its counters
	TypeTarget       Type = 11 // broker: which subscription the next messages are for (hot)
	TypeGap          Type = 12 // broker: messages were dropped here
	TypePing         Type = 13 // client: acknowledge and answer now
	TypePong         Type = 14 // broker: the answer
	TypeGoodbye      Type = 15 // either: this connection ends in order
	TypeCredit       Type = 16 // client: a subscription may be sent more (hot)
	TypeAwait        Type = 17 // client: tell me when a topic has subscribers
	TypeAwaited      Type = 18 // broker: it has
	TypeQueue        Type = 19 // client: declare a queue, look at it, change it
	TypeQueued       Type = 20 // broker: done, with what was asked for
	TypeConsume      Type = 21 // client: deliver a queue's messages
	TypeSettle       Type = 22 // client: what became of delivered messages (hot)
	TypeSettled      Type = 23 // broker: settles kept so far (hot)

	// NumTypes is one more than the largest type: the size of a handler table.
	NumTypes = 24
)

var typeNames = [NumTypes]string{
	"", "HELLO", "WELCOME", "PUBLISH", "MESSAGE", "ACK", "ERROR", "SUBSCRIBE", "SUBSCRIBED",
	"UNSUBSCRIBE", "UNSUBSCRIBED", "TARGET", "GAP", "PING", "PONG", "GOODBYE", "CREDIT", "AWAIT", "AWAITED",
	"QUEUE", "QUEUED", "CONSUME", "SETTLE", "SETTLED",
}

// String returns the name PROTOCOL.md uses, such as "PUBLISH".
func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Sizes, in bytes.
const (
	// HeaderSize is the length prefix before every frame's payload.
	HeaderSize = 4

	// DefaultMaxPacket is the largest SOCK_SEQPACKET packet either side sends.
	// Well under 85,696 bytes the kernel takes it from order-3 pages; above,
	// one contiguous block is needed and a send can fail with ENOBUFS.
	DefaultMaxPacket = 64 << 10

	// DefaultMaxMessage bounds a message's body unless the broker is set otherwise.
	DefaultMaxMessage = 1 << 20

	// LargestMaxMessage is the highest limit a broker can be set to.
	LargestMaxMessage = 64 << 20

	// MaxHeaders bounds the encoded headers of one message.
	MaxHeaders = 16 << 10

	// MaxCold bounds the payload of every frame but PUBLISH and MESSAGE.
	MaxCold = 64 << 10

	// FrameOverhead is what a PUBLISH or MESSAGE payload may have beyond its
	// body: topic, headers, options and fixed fields.
	FrameOverhead = 20 << 10
)

// ErrShort says that the buffer ends before the frame does.
var ErrShort = errors.New("wire: frame not complete")

// FrameLimit returns the largest payload, in bytes, on a connection whose
// message limit is maxMessage.
func FrameLimit(maxMessage int) int {
	return max(maxMessage+FrameOverhead, MaxCold)
}

// Split returns the payload of the first frame in buf and how many bytes of buf
// the whole frame takes. It copies nothing. It returns ErrShort, with the number
// of bytes needed as far as it is known, when buf ends before the frame, and a
// *Error when the announced length is zero or above limit bytes.
func Split(buf []byte, limit int) (payload []byte, size int, err error) {
	if len(buf) < HeaderSize {
		return nil, HeaderSize, ErrShort
	}
	n := int64(binary.LittleEndian.Uint32(buf)) // an int may have 32 bits
	if n == 0 || n > int64(limit) {
		return nil, 0, lengthError(n, limit)
	}
	size = HeaderSize + int(n)
	if len(buf) < size {
		return nil, size, ErrShort
	}
	return buf[HeaderSize:size:size], size, nil
}

func lengthError(n int64, limit int) error {
	if n == 0 {
		return &Error{Code: CodeMalformed, Text: "a frame of length 0: a frame has at least its type"}
	}
	return &Error{Code: CodeTooLarge, Text: fmt.Sprintf(
		"a frame of %d bytes is above this connection's limit of %d: send less, or raise the broker's message limit", n, limit)}
}

// PeekType returns the type of the frame with this payload. The payload is an
// array of at most 15 elements whose first is the type as a positive fixint,
// as the msgpack specification encodes both in their smallest form; anything
// else is an error.
func PeekType(payload []byte) (Type, error) {
	if len(payload) < 2 || payload[0]&0xf0 != 0x90 || payload[0] == 0x90 || payload[1] > 0x7f {
		return 0, malformed("frame", "it does not begin with a short array and a type below 128")
	}
	return Type(payload[1]), nil
}

// CutAt returns the length of the longest run of whole frames at the start of
// buf that is at most limit bytes, and at least one frame; and how many frames
// that is. buf must begin with whole frames that Split would accept.
func CutAt(buf []byte, limit int) (n, frames int) {
	for n < len(buf) {
		size := HeaderSize + int(binary.LittleEndian.Uint32(buf[n:]))
		if frames > 0 && n+size > limit {
			break
		}
		n += size
		frames++
	}
	return n, frames
}

// beginFrame appends room for a length prefix; endFrame fills it in.
func beginFrame(dst []byte) []byte { return append(dst, 0, 0, 0, 0) }

func endFrame(dst []byte, start int) []byte {
	binary.LittleEndian.PutUint32(dst[start:], uint32(len(dst)-start-HeaderSize))
	return dst
}
