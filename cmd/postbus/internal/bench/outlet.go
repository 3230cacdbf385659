package bench

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// rawOutlet sends frames that were made beforehand; only tags and times are new.
type rawOutlet struct {
	*endpoint
	batch *batch
	sent  uint64
	acked uint64

	// takeVerdict handles one answer in the endpoint's buffer; false when no whole one
	// is there.
	takeVerdict func(*rawOutlet) (bool, error)
	level       wire.Level // that each push must have reached; LevelNone: none is looked at
}

func openRawOutlet(j *job) (outlet, error) {
	connect := dialBroker
	if j.Relay {
		connect = dialRelay
	}
	e, err := connect(j.Network, j.Path, j.Size)
	if err != nil {
		return nil, err
	}
	write := j.WriteSize
	if e.window > 0 {
		write = min(write, e.window/4)
	}
	return &rawOutlet{endpoint: e, batch: newBatch(j, write), takeVerdict: (*rawOutlet).takeAck, level: j.Level}, nil
}

func (o *rawOutlet) many() int { return o.batch.many }

// send sends the messages in one write where the batch has so many in a row.
func (o *rawOutlet) send(n int, first tag, at int64, step float64) error {
	for n > 0 {
		frames := o.batch.take(n, first, at, step)
		if err := o.put(frames); err != nil {
			return err
		}
		sent := len(frames) / o.batch.frame
		first += tag(sent)
		at += int64(float64(sent) * step)
		n -= sent
	}
	return nil
}

// put writes frames when the window has room for them.
func (o *rawOutlet) put(frames []byte) error {
	if o.window > 0 {
		if err := o.makeRoom(len(frames)); err != nil {
			return err
		}
	}
	o.sent += uint64(len(frames) / o.batch.frame)
	return o.write(frames)
}

// makeRoom reads verdicts until the window has room for n bytes. They are read
// here rather than beside, by a goroutine: one hand-over less, and the publisher
// looks only when half of the window is used.
func (o *rawOutlet) makeRoom(n int) error {
	for {
		open := int(o.sent-o.acked) * o.batch.frame
		switch {
		case open+n <= o.window/2:
			return nil
		case open+n <= o.window || open == 0:
			err := o.fill(unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) {
				return nil
			}
			if err != nil {
				return err
			}
			return o.takeVerdicts()
		}
		if err := o.fill(0); err != nil {
			return err
		}
		if err := o.takeVerdicts(); err != nil {
			return err
		}
	}
}

// takeVerdicts handles what was read.
func (o *rawOutlet) takeVerdicts() error {
	for {
		if more, err := o.takeVerdict(o); !more || err != nil {
			return err
		}
	}
}

// takeAck handles one frame of a broker.
func (o *rawOutlet) takeAck() (bool, error) {
	payload, err := o.buffered()
	if payload == nil || err != nil {
		return false, err
	}
	switch t, _ := wire.PeekType(payload); t {
	case wire.TypeAck:
	case wire.TypePong:
		return true, nil
	default:
		return false, unexpected(t, payload)
	}
	var ack wire.Ack
	if err := ack.Decode(payload); err != nil {
		return false, err
	}
	if o.level != wire.LevelNone && (ack.Level != o.level || ack.Queues != 1) {
		return false, fmt.Errorf("a push was acknowledged by %d queues at level %v, not by one at %v", ack.Queues, ack.Level, o.level)
	}
	o.acked = ack.UpTo
	return true, nil
}

// flush waits for the verdict on everything sent.
func (o *rawOutlet) flush() error {
	// A broker lets an ack wait for more of its kind, but not for longer than a PING.
	if o.level != wire.LevelNone && o.batch.tail == 0 && o.acked < o.sent {
		if err := o.write(wire.AppendPing(nil, 0)); err != nil {
			return err
		}
	}
	for o.window > 0 && o.acked < o.sent {
		if err := o.fill(0); err != nil {
			return err
		}
		if err := o.takeVerdicts(); err != nil {
			return err
		}
	}
	return nil
}

// batch is a ring of encoded frames, all of one length: PUBLISH for a broker; for
// a relay MESSAGE, just as a broker would deliver them.
type batch struct {
	frames []byte
	frame  int // bytes of one
	size   int // bytes of a body
	tail   int // bytes that a frame has behind its body
	many   int // most that are taken at once
	from   int // bytes
}

// newBatch makes a batch of which up to write bytes are taken at once.
func newBatch(j *job, write int) *batch {
	b := &batch{size: j.Size, tail: j.tail()}
	body := make([]byte, j.Size)
	b.frames = appendFrame(nil, j, j.Topics[0], body)
	b.frame = len(b.frames)
	b.many = max(1, write/b.frame)
	for i := 1; i < b.many || i < len(j.Topics); i++ {
		b.frames = appendFrame(b.frames, j, j.Topics[i%len(j.Topics)], body)
	}
	return b
}

// tail returns how many bytes a frame has behind its body.
func (j *job) tail() int {
	switch {
	case j.Server == Redis || j.Server == Beanstalkd:
		return len("\r\n")
	case j.OneAtATime:
		return len(wire.AppendPing(nil, 0))
	}
	return 0
}

func appendFrame(dst []byte, j *job, topic string, body []byte) []byte {
	switch j.Server {
	case Redis:
		return appendCommand(dst, "XADD", topic, "*", "b", string(body))
	case Beanstalkd:
		return fmt.Appendf(dst, "put 0 0 3600 %d\r\n%s\r\n", len(body), body)
	}
	if !j.Relay {
		dst = wire.AppendPublish(dst, &wire.Publish{Topic: []byte(topic), Body: body})
		if j.OneAtATime {
			dst = wire.AppendPing(dst, 0) // have the ack at once, as a client that waits for it does
		}
		return dst
	}
	return wire.AppendMessage(dst, &wire.Message{Seq: 1, Time: time.Now().UnixNano(), Topic: []byte(topic), Body: body})
}

// take returns at most n frames, and at least one, stamped with tags from first up
// and times step nanoseconds apart. They are valid until the ring comes round.
func (b *batch) take(n int, first tag, at int64, step float64) []byte {
	n = min(n, b.many, (len(b.frames)-b.from)/b.frame)
	frames := b.frames[b.from:][:n*b.frame]
	for k := range n {
		body := frames[(k+1)*b.frame-b.tail-b.size:]
		stampBody(body, first+tag(k), at+int64(float64(k)*step))
	}
	b.from += len(frames)
	if b.from == len(b.frames) {
		b.from = 0
	}
	return frames
}
