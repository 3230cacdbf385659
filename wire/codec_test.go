package wire_test

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
	"github.com/vmihailenco/msgpack/v5"
)

// hotFrame is one frame three ways: as this package appends it, as the list of
// its fields after the type, and as the function that reads the fields back.
type hotFrame struct {
	name   string
	frame  []byte
	typ    wire.Type
	fields []any // uint32, uint64, int64, string, []byte, or msgpack.RawMessage
	wide   bool  // its numbers are written at full width, not in their smallest form
	decode func(payload []byte) ([]any, error)
}

func publishFrame(p wire.Publish) hotFrame {
	return hotFrame{
		name: "PUBLISH", typ: wire.TypePublish,
		frame:  wire.AppendPublish(nil, &p),
		fields: []any{string(p.Topic), raw(p.Headers), raw(p.Options), p.Body},
		decode: func(payload []byte) ([]any, error) {
			var d wire.Publish
			err := d.Decode(payload)
			return []any{string(d.Topic), raw(d.Headers), raw(d.Options), d.Body}, err
		},
	}
}

func messageFrame(m wire.Message) hotFrame {
	fields := func(m *wire.Message) []any {
		return []any{m.Seq, m.Time, m.UID, m.GID, m.PID, string(m.Topic), raw(m.Headers), raw(m.Info), m.Body}
	}
	return hotFrame{
		name: "MESSAGE", typ: wire.TypeMessage, wide: true,
		frame:  wire.AppendMessage(nil, &m),
		fields: fields(&m),
		decode: func(payload []byte) ([]any, error) {
			var d wire.Message
			err := d.Decode(payload)
			return fields(&d), err
		},
	}
}

// numberFrames returns every hot frame of numbers alone, each number being v or
// the largest that its field holds.
func numberFrames(v uint64) []hotFrame {
	v32 := uint32(min(v, math.MaxUint32))
	ack := wire.Ack{UpTo: v, Subscribers: v32, Queues: v32, Level: wire.Level(min(v, math.MaxUint8))}
	gap := wire.Gap{Sub: v32, First: v, Last: v, Count: v, Reason: wire.Reason(min(v, math.MaxUint8))}
	credit := wire.Credit{Sub: v32, Bytes: v}
	ping := func(payload []byte) ([]any, error) {
		token, err := wire.DecodePing(payload)
		return []any{token}, err
	}
	return []hotFrame{
		{name: "ACK", typ: wire.TypeAck, frame: wire.AppendAck(nil, ack),
			fields: []any{ack.UpTo, ack.Subscribers, ack.Queues, uint32(ack.Level)},
			decode: func(payload []byte) ([]any, error) {
				var d wire.Ack
				err := d.Decode(payload)
				return []any{d.UpTo, d.Subscribers, d.Queues, uint32(d.Level)}, err
			}},
		{name: "GAP", typ: wire.TypeGap, frame: wire.AppendGap(nil, gap),
			fields: []any{gap.Sub, gap.First, gap.Last, gap.Count, uint32(gap.Reason)},
			decode: func(payload []byte) ([]any, error) {
				var d wire.Gap
				err := d.Decode(payload)
				return []any{d.Sub, d.First, d.Last, d.Count, uint32(d.Reason)}, err
			}},
		{name: "CREDIT", typ: wire.TypeCredit, frame: wire.AppendCredit(nil, credit),
			fields: []any{credit.Sub, credit.Bytes},
			decode: func(payload []byte) ([]any, error) {
				var d wire.Credit
				err := d.Decode(payload)
				return []any{d.Sub, d.Bytes}, err
			}},
		{name: "TARGET", typ: wire.TypeTarget, frame: wire.AppendTarget(nil, v32), fields: []any{v32},
			decode: func(payload []byte) ([]any, error) {
				sub, err := wire.DecodeTarget(payload)
				return []any{sub}, err
			}},
		{name: "PING", typ: wire.TypePing, frame: wire.AppendPing(nil, v), fields: []any{v}, decode: ping},
		{name: "PONG", typ: wire.TypePong, frame: wire.AppendPong(nil, v), fields: []any{v}, decode: ping},
		{name: "SETTLED", typ: wire.TypeSettled, frame: wire.AppendSettled(nil, v), fields: []any{v},
			decode: func(payload []byte) ([]any, error) {
				upTo, err := wire.DecodeSettled(payload)
				return []any{upTo}, err
			}},
	}
}

// raw is an encoded map as the library keeps it, nil for none.
func raw(b []byte) msgpack.RawMessage {
	if len(b) == 0 {
		return nil
	}
	return b
}

// numbers lie at the edges of msgpack's integer forms, signed and unsigned.
var numbers = []uint64{
	0, 1, 127, 128, 255, 256, 1<<15 - 1, 1 << 15, 1<<16 - 1, 1 << 16,
	1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, math.MaxUint64,
}

// sizes lie at the edges of its string and binary forms.
var sizes = []int{0, 1, 31, 32, 255, 256, 65535, 65536}

// hotFrames returns every hot frame with numbers and sizes at every edge.
func hotFrames() []hotFrame {
	var all []hotFrame
	for _, v := range numbers {
		all = append(all, numberFrames(v)...)
		v32 := uint32(min(v, math.MaxUint32))
		all = append(all, messageFrame(wire.Message{
			Seq: v, Time: int64(v), UID: v32, GID: v32, PID: v32, Topic: []byte("a"), Body: []byte("b"),
		}), settleFrame(wire.Settle{
			Sub: v32, Verb: wire.Verb(min(v, math.MaxUint8)), First: v, Last: v, Arg: int64(min(v, math.MaxInt64)),
		}))
	}
	headers := wire.AppendHeaders(nil, map[string]string{"content-type": "text/plain"})
	options := wire.AppendOptions(nil, &wire.PublishOptions{RequireSub: true})
	info := wire.AppendOptions(nil, &wire.MessageInfo{Redelivered: true})
	for _, n := range sizes {
		text, body := []byte(strings.Repeat("t", n)), bytes.Repeat([]byte{0xff}, n)
		all = append(all,
			publishFrame(wire.Publish{Topic: text, Body: []byte{}}),
			publishFrame(wire.Publish{Topic: []byte("a/b"), Body: body, Headers: headers}),
			publishFrame(wire.Publish{Topic: text, Body: body, Headers: headers, Options: options}),
			settleFrame(wire.Settle{Sub: 1, Verb: wire.VerbReject, First: 2, Last: 3, Reason: text}),
			messageFrame(wire.Message{Topic: text, Body: []byte{}}),
			messageFrame(wire.Message{Topic: text, Body: body, Headers: headers, Info: info}),
		)
	}
	for _, when := range []int64{-1, -32, -33, -128, -129, math.MinInt16, math.MinInt32, math.MinInt64} {
		all = append(all, messageFrame(wire.Message{Time: when, Topic: []byte("a"), Body: []byte{}}))
	}
	for i := range all {
		all[i].name = fmt.Sprintf("%d %s", i, all[i].name)
	}
	return all
}

// What this package appends, the library reads, value by value.
func TestLibraryReadsHotFrames(t *testing.T) {
	for _, h := range hotFrames() {
		payload := wantPayload(t, h.frame)
		in := bytes.NewReader(payload)
		dec := msgpack.NewDecoder(in)
		if n, err := dec.DecodeArrayLen(); err != nil || n != 1+len(h.fields) {
			t.Fatalf("%s: an array of %d, %v; want %d", h.name, n, err, 1+len(h.fields))
		}
		if typ, err := dec.DecodeUint8(); err != nil || wire.Type(typ) != h.typ {
			t.Fatalf("%s: type %d, %v", h.name, typ, err)
		}
		for i, want := range h.fields {
			got := reflect.New(reflect.TypeOf(want))
			if err := dec.DecodeValue(got); err != nil {
				t.Fatalf("%s: field %d: %v", h.name, i, err)
			}
			if r, ok := got.Elem().Interface().(msgpack.RawMessage); ok && len(r) == 1 && r[0] == 0xc0 {
				got.Elem().SetZero() // the library keeps a raw nil as its byte
			}
			if !reflect.DeepEqual(got.Elem().Interface(), want) {
				t.Errorf("%s: field %d is %.200v, want %.200v", h.name, i, got.Elem(), want)
			}
		}
		if in.Len() != 0 {
			t.Errorf("%s: %d bytes left over", h.name, in.Len())
		}
	}
}

// What the library writes, whichever form of integers it uses, this package reads.
func TestWeReadLibraryHotFrames(t *testing.T) {
	for _, h := range hotFrames() {
		for _, form := range integerForms {
			payload := encodeFrame(t, h, form.encode)
			got, err := h.decode(payload)
			if err != nil {
				t.Errorf("%s, %s: %v\n%.64x", h.name, form.name, err, payload)
			} else if !reflect.DeepEqual(got, h.fields) {
				t.Errorf("%s, %s: got %.200v, want %.200v", h.name, form.name, got, h.fields)
			}
		}
	}
}

// One number in its smallest form among others at full width: a decoder that knows
// the layout of a MESSAGE must not take it for that.
func TestWeReadMixedForms(t *testing.T) {
	for _, h := range hotFrames() {
		for odd := range h.fields {
			at := -1
			payload := encodeFrame(t, h, func(enc *msgpack.Encoder, v any) error {
				if at++; at == odd {
					return encodeCompact(enc, v)
				}
				return encodeFull(enc, v)
			})
			if got, err := h.decode(payload); err != nil || !reflect.DeepEqual(got, h.fields) {
				t.Errorf("%s, number %d: got %.200v, %v; want %.200v", h.name, odd, got, err, h.fields)
			}
		}
	}
}

// The bytes are the library's, given the same choice of integer forms.
func TestHotFramesAreLibraryBytes(t *testing.T) {
	for _, h := range hotFrames() {
		encode := encodeCompact
		if h.wide {
			encode = encodeFull
		}
		if got, want := wantPayload(t, h.frame), encodeFrame(t, h, encode); !bytes.Equal(got, want) {
			t.Errorf("%s: appended\n%.64x, the library writes\n%.64x", h.name, got, want)
		}
	}
}

// wantPayload takes the length prefix off frame, which must be one whole frame.
func wantPayload(t testing.TB, frame []byte) []byte {
	t.Helper()
	payload, size, err := wire.Split(frame, wire.LargestMaxMessage)
	if err != nil || size != len(frame) {
		t.Fatalf("not one frame: %d of %d bytes, %v", size, len(frame), err)
	}
	return payload
}

// encodeFrame has the library write h; the type is always a fixint.
func encodeFrame(t testing.TB, h hotFrame, number func(*msgpack.Encoder, any) error) []byte {
	t.Helper()
	var out bytes.Buffer
	enc := msgpack.NewEncoder(&out)
	must(t, enc.EncodeArrayLen(1+len(h.fields)))
	must(t, enc.EncodeUint(uint64(h.typ)))
	for _, field := range h.fields {
		switch v := field.(type) {
		case string:
			must(t, enc.EncodeString(v))
		case []byte:
			must(t, enc.EncodeBytes(v))
		case msgpack.RawMessage:
			if v == nil {
				must(t, enc.EncodeNil())
			} else {
				must(t, enc.Encode(v))
			}
		default:
			must(t, number(enc, v))
		}
	}
	return out.Bytes()
}

// integerForms are the choices that an encoder has for integers.
var integerForms = []struct {
	name   string
	encode func(enc *msgpack.Encoder, v any) error
}{
	{"smallest", encodeCompact},
	{"full width", encodeFull},
	{"64 bits unsigned", encodeUnsigned64},
	{"64 bits signed", encodeSigned64},
	{"narrow unsigned, no fixint", encodeNarrowUnsigned},
	{"narrow signed, no fixint", encodeNarrowSigned},
}

func encodeCompact(enc *msgpack.Encoder, v any) error {
	if n, ok := v.(int64); ok {
		return enc.EncodeInt(n)
	}
	return enc.EncodeUint(reflect.ValueOf(v).Uint())
}

func encodeFull(enc *msgpack.Encoder, v any) error {
	switch v := v.(type) {
	case int64:
		return enc.EncodeInt64(v)
	case uint32:
		return enc.EncodeUint32(v)
	default:
		return enc.EncodeUint64(v.(uint64))
	}
}

func encodeUnsigned64(enc *msgpack.Encoder, v any) error {
	if n, ok := v.(int64); ok {
		if n < 0 {
			return enc.EncodeInt64(n)
		}
		return enc.EncodeUint64(uint64(n))
	}
	return enc.EncodeUint64(reflect.ValueOf(v).Uint())
}

func encodeSigned64(enc *msgpack.Encoder, v any) error {
	n, fits := signed(v)
	if !fits {
		return enc.EncodeUint64(v.(uint64))
	}
	return enc.EncodeInt64(n)
}

func encodeNarrowUnsigned(enc *msgpack.Encoder, v any) error {
	if n, ok := v.(int64); ok && n < 0 {
		return encodeNarrowSigned(enc, v)
	}
	n, fits := signed(v)
	switch {
	case !fits:
		return enc.EncodeUint64(v.(uint64))
	case n <= math.MaxUint8:
		return enc.EncodeUint8(uint8(n))
	case n <= math.MaxUint16:
		return enc.EncodeUint16(uint16(n))
	case n <= math.MaxUint32:
		return enc.EncodeUint32(uint32(n))
	}
	return enc.EncodeUint64(uint64(n))
}

func encodeNarrowSigned(enc *msgpack.Encoder, v any) error {
	n, fits := signed(v)
	switch {
	case !fits:
		return enc.EncodeUint64(v.(uint64))
	case n == int64(int8(n)):
		return enc.EncodeInt8(int8(n))
	case n == int64(int16(n)):
		return enc.EncodeInt16(int16(n))
	case n == int64(int32(n)):
		return enc.EncodeInt32(int32(n))
	}
	return enc.EncodeInt64(n)
}

// signed returns v as an int64 and whether it fits.
func signed(v any) (n int64, fits bool) {
	if n, ok := v.(int64); ok {
		return n, true
	}
	u := reflect.ValueOf(v).Uint()
	return int64(u), u <= math.MaxInt64
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHotFramesRefused(t *testing.T) {
	const head = "\x95\x05" // of an ACK
	var (
		publish wire.Publish
		message wire.Message
		ack     wire.Ack
		gap     wire.Gap
		credit  wire.Credit
	)
	target := func(p []byte) error { _, err := wire.DecodeTarget(p); return err }
	ping := func(p []byte) error { _, err := wire.DecodePing(p); return err }
	for name, tt := range map[string]struct {
		decode  func([]byte) error
		payload string
	}{
		"empty":                   {ack.Decode, ""},
		"a field is missing":      {ack.Decode, head + "\x01\x02\x03"},
		"a field too many":        {ack.Decode, head + "\x01\x02\x03\x04\x05"},
		"without level":           {ack.Decode, "\x94\x05\x01\x02\x03"},
		"another array length":    {ack.Decode, "\x96\x05\x01\x02\x03\x04"},
		"array 16":                {ack.Decode, "\xdc\x00\x05\x05\x01\x02\x03\x04"},
		"another type":            {ack.Decode, "\x95\x06\x01\x02\x03\x04"},
		"the type as uint 8":      {ack.Decode, "\x95\xcc\x05\x01\x02\x03\x04"},
		"negative fixint":         {ack.Decode, head + "\xff\x02\x03\x04"},
		"negative int 8":          {ack.Decode, head + "\xd0\x80\x02\x03\x04"},
		"negative int 64":         {ack.Decode, head + "\xd3\xff\xff\xff\xff\xff\xff\xff\xff\x02\x03\x04"},
		"number cut":              {ack.Decode, head + "\xcf\x00\x00"},
		"above 32 bits":           {ack.Decode, head + "\x01\xcf\x00\x00\x00\x01\x00\x00\x00\x00\x03\x04"},
		"a float":                 {ack.Decode, head + "\xca\x00\x00\x00\x00\x02\x03\x04"},
		"nil number":              {ack.Decode, head + "\xc0\x02\x03\x04"},
		"level above 8 bits":      {ack.Decode, head + "\x01\x02\x03\xcd\x01\x00"},
		"reason above 8 bits":     {gap.Decode, "\x96\x0c\x01\x01\x01\x01\xcd\x01\x00"},
		"credit without bytes":    {credit.Decode, "\x93\x10\x01"},
		"target above 32 bits":    {target, "\x92\x0b\xcf\x00\x00\x00\x01\x00\x00\x00\x00"},
		"ping of another type":    {ping, "\x92\x0c\x01"},
		"body as str":             {publish.Decode, "\x95\x03\xa1a\xc0\xc0\xa1b"},
		"body nil":                {publish.Decode, "\x95\x03\xa1a\xc0\xc0\xc0"},
		"topic as bin":            {publish.Decode, "\x95\x03\xc4\x01a\xc0\xc0\xc4\x00"},
		"headers an array":        {publish.Decode, "\x95\x03\xa1a\x90\xc0\xc4\x00"},
		"body longer than frame":  {publish.Decode, "\x95\x03\xa1a\xc0\xc0\xc4\x02b"},
		"body of 4 GiB announced": {publish.Decode, "\x95\x03\xa1a\xc0\xc0\xc6\xff\xff\xff\xffb"},
		"topic of 4 GiB":          {publish.Decode, "\x95\x03\xdb\xff\xff\xff\xffa\xc0\xc0\xc4\x00"},
		"time above 63 bits": {message.Decode,
			"\x9a\x04\x01\xcf\x80\x00\x00\x00\x00\x00\x00\x00\x01\x01\x01\xa1a\xc0\xc0\xc4\x00"},
		"full width, time above 63 bits": {message.Decode, wideMessage("\xcf\x80", "\xcf\x80", "\xce\x80")},
		"full width, negative uid":       {message.Decode, wideMessage("\xcf\x80", "\xd3\x80", "\xd2\x80")},
		"full width, negative seq":       {message.Decode, wideMessage("\xd3\x80", "\xd3\x80", "\xce\x80")},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, tt.decode([]byte(tt.payload)), wire.CodeMalformed)
		})
	}
}

// wideMessage is a MESSAGE payload whose numbers are of full width, with the form
// and first byte of its seq, its time and its uid.
func wideMessage(seq, time, uid string) string {
	const zeros = "\x00\x00\x00\x00\x00\x00\x00\x00"
	return "\x9a\x04" + seq + zeros[:7] + time + zeros[:7] + uid + zeros[:3] +
		"\xce" + zeros[:4] + "\xce" + zeros[:4] + "\xa1a\xc0\xc0\xc4\x00"
}

func TestWideMessageTemplate(t *testing.T) {
	var m wire.Message
	if err := m.Decode([]byte(wideMessage("\xcf\x80", "\xd3\x80", "\xce\x80"))); err != nil || m.UID != 1<<31 || m.Time != math.MinInt64 {
		t.Errorf("the template of refused messages is itself refused: %+v, %v", m, err)
	}
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	var all, want []byte
	for _, h := range numberFrames(1 << 20) {
		want = append(want, h.frame...)
	}
	all = wire.AppendAck(all, wire.Ack{UpTo: 1 << 20, Subscribers: 1 << 20, Queues: 1 << 20, Level: 255})
	all = wire.AppendGap(all, wire.Gap{Sub: 1 << 20, First: 1 << 20, Last: 1 << 20, Count: 1 << 20, Reason: 255})
	all = wire.AppendCredit(all, wire.Credit{Sub: 1 << 20, Bytes: 1 << 20})
	all = wire.AppendTarget(all, 1<<20)
	all = wire.AppendPing(all, 1<<20)
	all = wire.AppendPong(all, 1<<20)
	all = wire.AppendSettled(all, 1<<20)
	if !bytes.Equal(all, want) {
		t.Errorf("appended one after the other:\n%x\nwant\n%x", all, want)
	}
}

// A publish, a delivery and what settles it must not allocate in the steady state.
func TestHotFramesDoNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 4096)
	var (
		publish wire.Publish
		message wire.Message
		settle  wire.Settle
		ack     wire.Ack
	)
	s := wire.Settle{Sub: 1, Verb: wire.VerbReject, First: 1 << 40, Last: 1 << 41, Arg: 1, Reason: []byte("why")}
	p := wire.Publish{Topic: []byte("a/b"), Body: make([]byte, 128)}
	m := wire.Message{Topic: []byte("a/b"), Body: make([]byte, 128)}
	allocs := testing.AllocsPerRun(100, func() {
		frame := wire.AppendPublish(buf, &p)
		must(t, publish.Decode(frame[wire.HeaderSize:]))
		frame = wire.AppendMessage(buf, &m)
		must(t, message.Decode(frame[wire.HeaderSize:]))
		frame = wire.AppendSettle(buf, &s)
		must(t, settle.Decode(frame[wire.HeaderSize:]))
		frame = wire.AppendAck(buf, wire.Ack{UpTo: 1 << 40, Queues: 1, Level: wire.LevelDisk})
		must(t, ack.Decode(frame[wire.HeaderSize:]))
		at := len(frame)
		frame = wire.AppendSettled(frame, 1<<40)
		_, err := wire.DecodeSettled(frame[at+wire.HeaderSize:])
		must(t, err)
		frame = wire.AppendTarget(frame, 1)
		_, n := wire.CutAt(frame, 1<<10)
		if n != 3 {
			t.Fatal("not three frames")
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
