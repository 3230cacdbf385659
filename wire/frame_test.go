package wire_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
)

func TestSplit(t *testing.T) {
	for name, tt := range map[string]struct {
		buf     string
		payload string
		size    int // of the frame, or needed as far as it is known
		err     error
	}{
		"empty":                {"", "", 4, wire.ErrShort},
		"half a prefix":        {"\x02\x00", "", 4, wire.ErrShort},
		"prefix alone":         {"\x02\x00\x00\x00", "", 6, wire.ErrShort},
		"one byte missing":     {"\x02\x00\x00\x00a", "", 6, wire.ErrShort},
		"exact":                {"\x02\x00\x00\x00ab", "ab", 6, nil},
		"another frame behind": {"\x02\x00\x00\x00ab\x01\x00", "ab", 6, nil},
		"at the limit":         {"\x08\x00\x00\x00abcdefgh", "abcdefgh", 12, nil},
		"at the limit, short":  {"\x08\x00\x00\x00abc", "", 12, wire.ErrShort},
		"length 0":             {"\x00\x00\x00\x00abc", "", 0, &wire.Error{Code: wire.CodeMalformed}},
		"above the limit":      {"\x09\x00\x00\x00abcdefghi", "", 0, &wire.Error{Code: wire.CodeTooLarge}},
		"2 GiB announced":      {"\x00\x00\x00\x80", "", 0, &wire.Error{Code: wire.CodeTooLarge}},
		"4 GiB announced":      {"\xff\xff\xff\xff", "", 0, &wire.Error{Code: wire.CodeTooLarge}},
	} {
		t.Run(name, func(t *testing.T) {
			payload, size, err := wire.Split([]byte(tt.buf), 8)
			if string(payload) != tt.payload || size != tt.size || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %d, %v; want %q, %d, %v", payload, size, err, tt.payload, tt.size, tt.err)
			}
			if cap(payload) != len(payload) {
				t.Error("an append to the payload would overwrite the next frame")
			}
		})
	}
}

func TestCutAt(t *testing.T) {
	var buf []byte
	for range 3 {
		buf = wire.AppendPing(buf, 1) // 7 bytes each
	}
	for _, tt := range []struct{ limit, n, frames int }{
		{0, 7, 1}, {6, 7, 1}, {7, 7, 1}, {13, 7, 1}, {14, 14, 2}, {20, 14, 2}, {21, 21, 3}, {100, 21, 3},
	} {
		if n, frames := wire.CutAt(buf, tt.limit); n != tt.n || frames != tt.frames {
			t.Errorf("CutAt(limit %d) is %d, %d; want %d, %d", tt.limit, n, frames, tt.n, tt.frames)
		}
	}
	if n, frames := wire.CutAt(nil, 100); n != 0 || frames != 0 {
		t.Errorf("CutAt of nothing is %d, %d", n, frames)
	}
}

func TestPeekType(t *testing.T) {
	for name, tt := range map[string]struct {
		payload string
		want    wire.Type // 0: refused
	}{
		"publish":            {"\x95\x03\xa1a\xc0\xc0\xc4\x00", wire.TypePublish},
		"type alone":         {"\x91\x0d", wire.TypePing},
		"unknown type":       {"\x92\x7f\x80", 127},
		"15 elements":        {"\x9f\x01", wire.TypeHello},
		"empty":              {"", 0},
		"array without type": {"\x92", 0},
		"empty array":        {"\x90\x01", 0},
		"array 16":           {"\xdc\x00\x02\x01\x80", 0},
		"map":                {"\x82\x01\x80", 0},
		"type as uint 8":     {"\x92\xcc\x01\x80", 0},
		"negative type":      {"\x92\xff\x80", 0},
		"type a string":      {"\x92\xa1a", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := wire.PeekType([]byte(tt.payload))
			if got != tt.want {
				t.Errorf("got %v, %v; want %v", got, err, tt.want)
			}
			if tt.want == 0 {
				wantCode(t, err, wire.CodeMalformed)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// The options and info that take the most bytes. The broker puts a few words before a
// reason.
var (
	longestOptions = wire.PublishOptions{
		RequireSub: true, Redelivered: true, ID: strings.Repeat("i", wire.MaxID), Key: strings.Repeat("k", wire.MaxKey),
		Priority: math.MaxInt, DelayMS: math.MaxInt64, AtMS: math.MaxInt64, TTLMS: math.MaxInt64,
	}
	longestInfo = wire.MessageInfo{
		Redelivered: true, Tries: math.MaxInt, Key: strings.Repeat("k", wire.MaxKey), ID: strings.Repeat("i", wire.MaxID),
		Priority: math.MaxInt, Origin: strings.Repeat("q", wire.MaxQueueName),
		Reason: strings.Repeat("r", wire.MaxReason+100), State: wire.StateDelayed, DueMS: math.MaxInt64,
	}
)

func TestFrameLimit(t *testing.T) {
	for _, size := range []int{0, 1, wire.DefaultMaxMessage, wire.LargestMaxMessage} {
		frame := wire.AppendMessage(nil, &wire.Message{
			Topic:   bytes.Repeat([]byte("t"), wire.MaxTopic),
			Headers: bytes.Repeat([]byte{0}, wire.MaxHeaders),
			Info:    wire.AppendOptions(nil, &longestInfo),
			Body:    make([]byte, size),
		})
		if n, limit := len(frame)-wire.HeaderSize, wire.FrameLimit(size); n > limit {
			t.Errorf("the largest message with a body of %d bytes has %d, FrameLimit says %d", size, n, limit)
		}
		frame = wire.AppendPublish(frame[:0], &wire.Publish{
			Topic:   bytes.Repeat([]byte("t"), wire.MaxTopic),
			Headers: bytes.Repeat([]byte{0}, wire.MaxHeaders),
			Options: wire.AppendOptions(nil, &longestOptions),
			Body:    make([]byte, size),
		})
		if n, limit := len(frame)-wire.HeaderSize, wire.FrameLimit(size); n > limit {
			t.Errorf("the largest publish with a body of %d bytes has %d, FrameLimit says %d", size, n, limit)
		}
	}
}

func TestTypeNames(t *testing.T) {
	for typ := wire.TypeHello; typ < wire.NumTypes; typ++ {
		if name := typ.String(); strings.HasPrefix(name, "type") {
			t.Errorf("type %d is called %q", uint8(typ), name)
		}
	}
	for typ, want := range map[wire.Type]string{0: "type 0", wire.NumTypes: "type 24", wire.TypeAwaited: "AWAITED", wire.TypeQueue: "QUEUE",
		wire.TypeQueued: "QUEUED", wire.TypeConsume: "CONSUME", wire.TypeSettle: "SETTLE", wire.TypeSettled: "SETTLED"} {
		if got := typ.String(); got != want {
			t.Errorf("type %d is called %q, want %q", uint8(typ), got, want)
		}
	}
}

// The broker reads both off frames that it keeps in a buffer.
func TestFrameSeqAndTopic(t *testing.T) {
	for _, n := range []int{1, 31, 32, 255, 256, wire.MaxTopic} {
		topic := strings.Repeat("t", n)
		frame := wire.AppendMessage(nil, &wire.Message{Seq: 1<<40 + 7, Topic: []byte(topic), Body: []byte("b")})
		frame = wire.AppendPing(frame, 1)
		if got := wire.FrameSeq(frame); got != 1<<40+7 {
			t.Errorf("FrameSeq is %d", got)
		}
		if got := wire.FrameTopic(frame); string(got) != topic {
			t.Errorf("FrameTopic is %.40q, want %d bytes", got, n)
		}
	}
}
