package wire

import (
	"encoding/binary"
	"math"
)

// Publish is a PUBLISH frame: [3, topic, headers, options, body].
// Decoded fields are views into the payload and live as long as it does.
type Publish struct {
	Topic   []byte
	Headers []byte // a msgpack map of strings to strings, or nil for none
	Options []byte // a msgpack map (PublishOptions), or nil for none
	Body    []byte
}

// Message is a MESSAGE frame:
// [4, seq, time, uid, gid, pid, topic, headers, info, body].
// Decoded fields are views into the payload and live as long as it does.
type Message struct {
	Seq     uint64 // the broker's number for it, from 1 upwards
	Time    int64  // when the broker accepted it, nanoseconds since 1970 UTC
	UID     uint32 // the publisher's, from the kernel
	GID     uint32
	PID     uint32
	Topic   []byte
	Headers []byte // as in Publish
	Info    []byte // a msgpack map (MessageInfo), or nil for none
	Body    []byte
}

// Ack is an ACK frame: [5, upto, subscribers, queues, level]. Every publish after the
// previous ACK (or ERROR) and up to number UpTo was routed, and each of them was
// taken by that many subscriptions and queues; Level is the lowest of the queues'.
// Publishes count from 1 on each connection.
type Ack struct {
	UpTo        uint64
	Subscribers uint32
	Queues      uint32
	Level       Level
}

// Gap is a GAP frame: [12, sub, first, last, count, reason]. Count messages for
// subscription Sub, all with a seq from First to Last, were dropped at this place
// of its stream.
type Gap struct {
	Sub         uint32
	First, Last uint64
	Count       uint64
	Reason      Reason
}

// Credit is a CREDIT frame: [16, sub, bytes]. Subscription Sub may be sent that
// many bytes of MESSAGE frames, length prefixes included, beyond what it may already.
type Credit struct {
	Sub   uint32
	Bytes uint64
}

// msgpack's leading bytes that the fixed layouts use.
const (
	mNil   = 0xc0
	mBin8  = 0xc4
	mBin16 = 0xc5
	mBin32 = 0xc6
	mU8    = 0xcc
	mU16   = 0xcd
	mU32   = 0xce
	mU64   = 0xcf
	mI64   = 0xd3
	mStr8  = 0xd9
	mStr16 = 0xda
	mStr32 = 0xdb
)

// Offsets within a MESSAGE frame as AppendMessage writes it, length prefix
// included: a broker stamps seq into a frame it prepared.
const (
	messageSeqAt   = HeaderSize + 3
	messageFixed   = HeaderSize + 2 + 9 + 9 + 5 + 5 + 5
	messageTopicAt = messageFixed
)

// AppendPublish appends the whole frame, length prefix included.
func AppendPublish(dst []byte, p *Publish) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0x95, byte(TypePublish))
	dst = appendStr(dst, p.Topic)
	dst = appendRaw(dst, p.Headers)
	dst = appendRaw(dst, p.Options)
	dst = appendBin(dst, p.Body)
	return endFrame(dst, start)
}

// Decode reads a PUBLISH payload without copying. It checks the encoding, not
// whether the topic is one.
func (p *Publish) Decode(payload []byte) error {
	if len(payload) > 2 && payload[0] == 0x95 && payload[1] == byte(TypePublish) {
		var ok bool
		if p.Topic, p.Body, ok = plain(payload[2:]); ok {
			p.Headers, p.Options = nil, nil
			return nil
		}
	}
	r := reader{b: payload}
	r.head(5, TypePublish)
	p.Topic = r.str()
	p.Headers = r.rawMap()
	p.Options = r.rawMap()
	p.Body = r.bin()
	return r.end("PUBLISH")
}

// AppendMessage appends the whole frame, length prefix included. The numbers are
// written at full width, so that every frame of a topic has the same layout.
func AppendMessage(dst []byte, m *Message) []byte {
	start := len(dst)
	dst = append(dst, messageTemplate[:]...)
	f := dst[start : start+messageFixed]
	binary.BigEndian.PutUint64(f[messageSeqAt:], m.Seq)
	binary.BigEndian.PutUint64(f[messageSeqAt+9:], uint64(m.Time))
	binary.BigEndian.PutUint32(f[messageSeqAt+18:], m.UID)
	binary.BigEndian.PutUint32(f[messageSeqAt+23:], m.GID)
	binary.BigEndian.PutUint32(f[messageSeqAt+28:], m.PID)
	dst = appendStr(dst, m.Topic)
	dst = appendRaw(dst, m.Headers)
	dst = appendRaw(dst, m.Info)
	dst = appendBin(dst, m.Body)
	return endFrame(dst, start)
}

// BodyOffset returns where the body's msgpack header begins in a MESSAGE frame that
// AppendMessage has written with this body.
func BodyOffset(frame, body []byte) int {
	n := len(frame) - len(body) - 2
	if len(body) > math.MaxUint8 {
		n--
	}
	if len(body) > math.MaxUint16 {
		n -= 2
	}
	return n
}

// messageTemplate is a MESSAGE frame up to its topic, the numbers left zero.
var messageTemplate = [messageFixed]byte{
	4: 0x9a, 5: byte(TypeMessage), 6: mU64, 15: mI64, 24: mU32, 29: mU32, 34: mU32,
}

// Decode reads a MESSAGE payload without copying.
func (m *Message) Decode(payload []byte) error {
	// The layout that AppendMessage writes, read at its fixed places.
	const n = messageFixed - HeaderSize
	if len(payload) > n && payload[0] == 0x9a && payload[1] == byte(TypeMessage) && payload[2] == mU64 &&
		payload[11] == mI64 && payload[20] == mU32 && payload[25] == mU32 && payload[30] == mU32 {
		m.Seq = binary.BigEndian.Uint64(payload[3:])
		m.Time = int64(binary.BigEndian.Uint64(payload[12:]))
		m.UID = binary.BigEndian.Uint32(payload[21:])
		m.GID = binary.BigEndian.Uint32(payload[26:])
		m.PID = binary.BigEndian.Uint32(payload[31:])
		var ok bool
		if m.Topic, m.Body, ok = plain(payload[n:]); ok {
			m.Headers, m.Info = nil, nil
			return nil
		}
		r := reader{b: payload[n:]}
		m.Topic = r.str()
		m.Headers = r.rawMap()
		m.Info = r.rawMap()
		m.Body = r.bin()
		return r.end("MESSAGE")
	}
	r := reader{b: payload}
	r.head(10, TypeMessage)
	m.Seq = r.uint()
	m.Time = r.int()
	m.UID = r.uint32()
	m.GID = r.uint32()
	m.PID = r.uint32()
	m.Topic = r.str()
	m.Headers = r.rawMap()
	m.Info = r.rawMap()
	m.Body = r.bin()
	return r.end("MESSAGE")
}

// FrameSeq returns the seq of the MESSAGE frame that begins at frame[0] (its
// length prefix), which AppendMessage must have written.
func FrameSeq(frame []byte) uint64 {
	return binary.BigEndian.Uint64(frame[messageSeqAt:])
}

// FrameTopic returns the topic of the MESSAGE frame that begins at frame[0],
// which AppendMessage must have written. The result is a view into frame.
func FrameTopic(frame []byte) []byte {
	r := reader{b: frame[messageTopicAt:]}
	return r.str()
}

// AppendAck appends the whole frame.
func AppendAck(dst []byte, a Ack) []byte {
	start := len(dst)
	dst = append(beginFrame(dst), 0x95, byte(TypeAck))
	dst = appendUint(dst, a.UpTo)
	dst = appendUint(dst, uint64(a.Subscribers))
	dst = appendUint(dst, uint64(a.Queues))
	dst = appendUint(dst, uint64(a.Level))
	return endFrame(dst, start)
}

// Decode reads an ACK payload.
func (a *Ack) Decode(payload []byte) error {
	r := reader{b: payload}
	r.head(5, TypeAck)
	a.UpTo = r.uint()
	a.Subscribers = r.uint32()
	a.Queues = r.uint32()
	level := r.uint32()
	if level > math.MaxUint8 {
		r.bad = true
	}
	a.Level = Level(level)
	return r.end("ACK")
}

// AppendTarget appends a TARGET frame, [11, sub]: the MESSAGE frames that follow
// are for subscription sub.
func AppendTarget(dst []byte, sub uint32) []byte {
	return appendOne(dst, TypeTarget, uint64(sub))
}

// DecodeTarget reads a TARGET payload.
func DecodeTarget(payload []byte) (sub uint32, err error) {
	r := reader{b: payload}
	r.head(2, TypeTarget)
	sub = r.uint32()
	return sub, r.end("TARGET")
}

// AppendPing appends a PING frame, [13, token]; the token comes back in a PONG.
func AppendPing(dst []byte, token uint64) []byte { return appendOne(dst, TypePing, token) }

// AppendPong appends a PONG frame, [14, token].
func AppendPong(dst []byte, token uint64) []byte { return appendOne(dst, TypePong, token) }

// DecodePing reads the token of a PING or PONG payload.
func DecodePing(payload []byte) (token uint64, err error) {
	r := reader{b: payload}
	t := TypePing
	if len(payload) > 1 && Type(payload[1]) == TypePong {
		t = TypePong
	}
	r.head(2, t)
	token = r.uint()
	return token, r.end(t.String())
}

func appendOne(dst []byte, t Type, v uint64) []byte {
	start := len(dst)
	dst = append(beginFrame(dst), 0x92, byte(t))
	dst = appendUint(dst, v)
	return endFrame(dst, start)
}

// AppendGap appends the whole frame.
func AppendGap(dst []byte, g Gap) []byte {
	start := len(dst)
	dst = append(beginFrame(dst), 0x96, byte(TypeGap))
	dst = appendUint(dst, uint64(g.Sub))
	dst = appendUint(dst, g.First)
	dst = appendUint(dst, g.Last)
	dst = appendUint(dst, g.Count)
	dst = appendUint(dst, uint64(g.Reason))
	return endFrame(dst, start)
}

// Decode reads a GAP payload.
func (g *Gap) Decode(payload []byte) error {
	r := reader{b: payload}
	r.head(6, TypeGap)
	g.Sub = r.uint32()
	g.First = r.uint()
	g.Last = r.uint()
	g.Count = r.uint()
	reason := r.uint32()
	if reason > math.MaxUint8 {
		r.bad = true
	}
	g.Reason = Reason(reason)
	return r.end("GAP")
}

// AppendCredit appends the whole frame.
func AppendCredit(dst []byte, c Credit) []byte {
	start := len(dst)
	dst = append(beginFrame(dst), 0x93, byte(TypeCredit))
	dst = appendUint(dst, uint64(c.Sub))
	dst = appendUint(dst, c.Bytes)
	return endFrame(dst, start)
}

// Decode reads a CREDIT payload.
func (c *Credit) Decode(payload []byte) error {
	r := reader{b: payload}
	r.head(3, TypeCredit)
	c.Sub = r.uint32()
	c.Bytes = r.uint()
	return r.end("CREDIT")
}

// appendUint writes v in its smallest form.
func appendUint(dst []byte, v uint64) []byte {
	switch {
	case v < 0x80:
		return append(dst, byte(v))
	case v <= math.MaxUint8:
		return append(dst, mU8, byte(v))
	case v <= math.MaxUint16:
		return append(dst, mU16, byte(v>>8), byte(v))
	case v <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, mU32), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(dst, mU64), v)
}

func appendStr(dst, s []byte) []byte {
	switch n := len(s); {
	case n < 32:
		dst = append(dst, 0xa0|byte(n))
	case n <= math.MaxUint8:
		dst = append(dst, mStr8, byte(n))
	case n <= math.MaxUint16:
		dst = append(dst, mStr16, byte(n>>8), byte(n))
	default:
		dst = binary.BigEndian.AppendUint32(append(dst, mStr32), uint32(n))
	}
	return append(dst, s...)
}

func appendBin(dst, b []byte) []byte {
	switch n := len(b); {
	case n <= math.MaxUint8:
		dst = append(dst, mBin8, byte(n))
	case n <= math.MaxUint16:
		dst = append(dst, mBin16, byte(n>>8), byte(n))
	default:
		dst = binary.BigEndian.AppendUint32(append(dst, mBin32), uint32(n))
	}
	return append(dst, b...)
}

// plain reads the end of most PUBLISH and MESSAGE frames: a topic below 256 bytes,
// two nils, a body below 64 KiB. What is otherwise, or wrong, is not ok, and for
// the reader to read.
func plain(b []byte) (topic, body []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	at, n := 1, int(b[0]&0x1f)
	if b[0] == mStr8 {
		at, n = 2, int(b[1])
	} else if b[0]&0xe0 != 0xa0 {
		return nil, nil, false
	}
	end := at + n
	if len(b) < end+2 || b[end] != mNil || b[end+1] != mNil {
		return nil, nil, false
	}
	body, ok = plainBody(b[end+2:])
	return b[at:end:end], body, ok
}

// plainBody reads a body below 64 KiB that takes all of b.
func plainBody(b []byte) (body []byte, ok bool) {
	if len(b) < 2 {
		return nil, false
	}
	from, size := 2, int(b[1])
	if b[0] == mBin16 && len(b) > 2 {
		from, size = 3, int(b[1])<<8|int(b[2])
	} else if b[0] != mBin8 {
		return nil, false
	}
	return b[from:], len(b)-from == size
}

// PublishHead returns the part of a PUBLISH payload before its body, and the topic,
// if it is a plain one: no headers, no options, a short topic. Else ok is false.
func PublishHead(payload []byte) (head, topic []byte, ok bool) {
	if len(payload) < 3 || payload[0] != 0x95 || payload[1] != byte(TypePublish) {
		return nil, nil, false
	}
	topic, body, ok := plain(payload[2:])
	if !ok {
		return nil, nil, false
	}
	n := len(payload) - len(body) - 2
	if payload[n-1] != mNil { // bin16
		n--
	}
	return payload[:n], topic, true
}

// Restamp turns the PUBLISH frames at the start of src that begin with head, and
// have a body below 64 KiB, into MESSAGE frames that begin with like, and appends
// those to dst: seq is the first one's, each next has one more. It goes on until
// more than limit bytes are appended or a frame is otherwise, or not whole. It
// returns how many bytes of src and how many frames that were.
//
// head is what PublishHead returned, like the beginning of a MESSAGE frame up to its
// body, frame[:BodyOffset(frame, body)].
func Restamp(dst, src, head, like []byte, seq uint64, limit int) (_ []byte, n, frames int) {
	stop := len(dst) + limit
	for len(dst) < stop {
		frame := src[n:]
		if len(frame) < HeaderSize+len(head)+2 || string(frame[HeaderSize:HeaderSize+len(head)]) != string(head) {
			break
		}
		size := uint64(binary.LittleEndian.Uint32(frame)) + HeaderSize
		if size > uint64(len(frame)) || size < uint64(HeaderSize+len(head)) {
			break
		}
		body := frame[HeaderSize+len(head) : size] // with its msgpack header: that is the same in both frames
		if _, ok := plainBody(body); !ok {
			break
		}
		at := len(dst)
		dst = append(append(dst, like...), body...)
		binary.LittleEndian.PutUint32(dst[at:], uint32(len(like)+len(body)-HeaderSize))
		binary.BigEndian.PutUint64(dst[at+messageSeqAt:], seq)
		seq++
		n += int(size)
		frames++
	}
	return dst, n, frames
}

// appendRaw writes an already encoded map, or nil.
func appendRaw(dst, raw []byte) []byte {
	if len(raw) == 0 {
		return append(dst, mNil)
	}
	return append(dst, raw...)
}
