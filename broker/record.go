package broker

import (
	"encoding/binary"
	"errors"

	"github.com/postbus/postbus/broker/internal/queue"
	"github.com/postbus/postbus/wire"
)

// record is a message as a queue's store keeps it. What most messages do not have
// takes no room:
//
//	flags u8
//	priority u8, due, expires i64, key, id, origin, reason str, tries uvarint, topic str   each if its flag is set
//	time i64, uid, gid, pid u32   big-endian
//	headers str, body the rest
//
// where str is a uvarint length and the bytes. A push to the queue by its name has no
// topic here.
type record struct {
	queue.Message
	uid, gid, pid uint32
	topic         []byte // nil: the queue's own
	headers       []byte
	body          []byte
	again         bool // its publisher had sent it before, and did not know whether it arrived

	// Of a dead letter that was moved here.
	origin, reason string
	tries          uint32
}

// The flags. They stand in files and never change.
const (
	hasPriority = 1 << iota
	hasDue
	hasExpires
	hasKey
	hasID
	hasOrigin // origin, reason and tries
	hasTopic
)

// isAgain in the byte of the priority says that the publisher had sent it before.
const isAgain = 1 << 7

// errBadRecord is what decode returns.
var errBadRecord = errors.New("broker: not a queue's record of this version")

// append appends the record to dst.
func (r *record) append(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, 0)
	var flags byte
	if r.Priority != 0 || r.again {
		flags |= hasPriority
		priority := r.Priority
		if r.again {
			priority |= isAgain
		}
		dst = append(dst, priority)
	}
	if r.Due != 0 {
		flags |= hasDue
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.Due))
	}
	if r.Expires != 0 {
		flags |= hasExpires
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.Expires))
	}
	if r.Key != "" {
		flags |= hasKey
		dst = appendField(dst, r.Key)
	}
	if r.ID != "" {
		flags |= hasID
		dst = appendField(dst, r.ID)
	}
	if r.origin != "" {
		flags |= hasOrigin
		dst = binary.AppendUvarint(appendField(appendField(dst, r.origin), r.reason), uint64(r.tries))
	}
	if r.topic != nil {
		flags |= hasTopic
		dst = appendField(dst, r.topic)
	}
	dst[at] = flags
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Time))
	dst = binary.BigEndian.AppendUint32(dst, r.uid)
	dst = binary.BigEndian.AppendUint32(dst, r.gid)
	dst = binary.BigEndian.AppendUint32(dst, r.pid)
	dst = appendField(dst, r.headers)
	return append(dst, r.body...)
}

func appendField[T string | []byte](dst []byte, s T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// decode reads a record; topic, headers and body are views into data.
func (r *record) decode(data []byte) error {
	*r = record{}
	f := fields{b: data}
	flags := f.byte()
	if flags >= 1<<7 {
		return errBadRecord // of a later version
	}
	if flags&hasPriority != 0 {
		priority := f.byte()
		r.Priority, r.again = priority&^isAgain, priority&isAgain != 0
	}
	if flags&hasDue != 0 {
		r.Due = int64(f.uint64())
	}
	if flags&hasExpires != 0 {
		r.Expires = int64(f.uint64())
	}
	if flags&hasKey != 0 {
		r.Key = string(f.bytes())
	}
	if flags&hasID != 0 {
		r.ID = string(f.bytes())
	}
	if flags&hasOrigin != 0 {
		r.origin, r.reason, r.tries = string(f.bytes()), string(f.bytes()), uint32(f.uvarint())
	}
	if flags&hasTopic != 0 {
		r.topic = f.bytes()
	}
	r.Time = int64(f.uint64())
	r.uid, r.gid, r.pid = f.uint32(), f.uint32(), f.uint32()
	if h := f.bytes(); len(h) > 0 {
		r.headers = h
	}
	r.body = f.b
	r.Size = len(data)
	if f.bad || r.Priority > wire.MaxPriority {
		return errBadRecord
	}
	return nil
}

// fields reads a record; once it has met its end everything is zero and bad is set.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if n < 0 || n > len(f.b) {
		f.b, f.bad = nil, true
		return nil
	}
	t := f.b[:n:n]
	f.b = f.b[n:]
	return t
}

func (f *fields) byte() byte {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *fields) uint32() uint32 {
	if b := f.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (f *fields) uint64() uint64 {
	if b := f.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (f *fields) uvarint() uint64 {
	v, n := binary.Uvarint(f.b)
	f.take(n)
	if n <= 0 {
		f.bad = true
		return 0
	}
	return v
}

func (f *fields) bytes() []byte {
	n := f.uvarint()
	if n > uint64(len(f.b)) {
		f.b, f.bad = nil, true
		return nil
	}
	return f.take(int(n))
}

// appendMessage appends the record as a MESSAGE frame with the message's number; topic is
// that of the queue, and info what is to be told beside what the record has, nil for
// nothing at all.
func (r *record) appendMessage(dst []byte, seq uint64, topic []byte, info *wire.MessageInfo) []byte {
	m := wire.Message{
		Seq: seq, Time: r.Time, UID: r.uid, GID: r.gid, PID: r.pid,
		Topic: r.topic, Headers: r.headers, Body: r.body,
	}
	if m.Topic == nil {
		m.Topic = topic
	}
	if info != nil {
		info.Key, info.ID, info.Priority = r.Key, r.ID, int(r.Priority)
		if r.origin != "" && info.Reason == "" {
			info.Origin, info.Reason = r.origin, r.reason
		}
		m.Info = wire.AppendOptions(nil, info)
	}
	return wire.AppendMessage(dst, &m)
}
