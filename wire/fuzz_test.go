package wire_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/postbus/postbus/wire"
)

// fuzzLimit is the message limit of the fuzzed connection, in bytes.
const fuzzLimit = 1 << 20

// FuzzDecode takes the input for a connection's bytes and, so that the fuzzer need
// not find a length prefix that fits, for one payload.
func FuzzDecode(f *testing.F) {
	for _, h := range numberFrames(300) {
		f.Add(h.frame)
	}
	f.Add(settleFrame(wire.Settle{Sub: 1, Verb: wire.VerbNack, First: 300, Last: 301, Arg: 1 << 40}).frame)
	f.Add(settleFrame(wire.Settle{Sub: 1, Verb: wire.VerbReject, First: 1, Last: 1, Reason: []byte("why")}).frame)
	f.Add(messageFrame(wire.Message{Seq: 1, Topic: []byte("a"), Info: wire.AppendOptions(nil, &longestInfo)}).frame)
	f.Add(publishFrame(wire.Publish{Topic: []byte("a"), Options: wire.AppendOptions(nil, &longestOptions)}).frame)
	for _, c := range coldFrames {
		f.Add(wire.AppendCold(nil, c.typ, c.body))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		checkPayload(t, data)
		for rest := data; ; {
			payload, size, err := wire.Split(rest, wire.FrameLimit(fuzzLimit))
			if err != nil {
				return
			}
			if n, frames := wire.CutAt(rest[:size], 1); n != size || frames != 1 {
				t.Fatalf("CutAt is %d, %d for a frame of %d bytes", n, frames, size)
			}
			checkPayload(t, payload)
			rest = rest[size:]
		}
	})
}

var zeroFrames = append(numberFrames(0), settleFrame(wire.Settle{}))

func checkPayload(t *testing.T, payload []byte) {
	before := bytes.Clone(payload)
	typ, typeErr := wire.PeekType(payload)
	decoded := checkPublish(t, payload) || checkMessage(t, payload) || checkSettle(t, payload)
	for _, h := range zeroFrames {
		decoded = checkNumberFrame(t, h, payload) || decoded
	}
	for _, c := range coldFrames {
		decoded = checkCold(t, typ, newBody(c.body), payload) || decoded
	}
	if decoded && typeErr != nil {
		t.Errorf("it can be decoded, and yet PeekType says %v", typeErr)
	}
	if !bytes.Equal(payload, before) {
		t.Error("a decoder wrote into the payload")
	}
}

func checkPublish(t *testing.T, payload []byte) bool {
	var p, again wire.Publish
	if p.Decode(payload) != nil {
		return false
	}
	wantNoAllocation(t, func() { must(t, p.Decode(payload)) })
	within(t, payload, p.Topic, p.Headers, p.Options, p.Body)
	checkHeaders(t, p.Headers)
	checkOptions(t, p.Options, &wire.PublishOptions{}, &wire.PublishOptions{})
	must(t, again.Decode(wantPayload(t, wire.AppendPublish(nil, &p))))
	if !reflect.DeepEqual(p, again) {
		t.Errorf("%+v became %+v", p, again)
	}
	return true
}

func checkMessage(t *testing.T, payload []byte) bool {
	var m, again wire.Message
	if m.Decode(payload) != nil {
		return false
	}
	wantNoAllocation(t, func() { must(t, m.Decode(payload)) })
	within(t, payload, m.Topic, m.Headers, m.Info, m.Body)
	checkHeaders(t, m.Headers)
	checkOptions(t, m.Info, &wire.MessageInfo{}, &wire.MessageInfo{})
	frame := wire.AppendMessage(nil, &m)
	must(t, again.Decode(wantPayload(t, frame)))
	if !reflect.DeepEqual(m, again) {
		t.Errorf("%+v became %+v", m, again)
	}
	if wire.FrameSeq(frame) != m.Seq || !bytes.Equal(wire.FrameTopic(frame), m.Topic) {
		t.Errorf("FrameSeq %d, FrameTopic %q of %+v", wire.FrameSeq(frame), wire.FrameTopic(frame), m)
	}
	return true
}

func checkSettle(t *testing.T, payload []byte) bool {
	var s, again wire.Settle
	if s.Decode(payload) != nil {
		return false
	}
	wantNoAllocation(t, func() { must(t, s.Decode(payload)) })
	within(t, payload, s.Reason)
	must(t, again.Decode(wantPayload(t, wire.AppendSettle(nil, &s))))
	if !reflect.DeepEqual(s, again) {
		t.Errorf("%+v became %+v", s, again)
	}
	return true
}

// checkNumberFrame decodes payload, encodes what came out, and decodes that.
func checkNumberFrame(t *testing.T, h hotFrame, payload []byte) bool {
	fields, err := h.decode(payload)
	if err != nil {
		return false
	}
	h.typ, _ = wire.PeekType(payload) // PING and PONG share a decoder
	h.fields = fields
	again, err := h.decode(encodeFrame(t, h, encodeCompact))
	if err != nil || !reflect.DeepEqual(fields, again) {
		t.Errorf("%s: %v became %v, %v", h.name, fields, again, err)
	}
	return true
}

func checkCold(t *testing.T, typ wire.Type, body any, payload []byte) bool {
	if len(payload) == 0 || payload[0] != 0x92 {
		return false
	}
	var err error
	wantColdAllocation(t, len(payload), func() { err = wire.DecodeCold(payload, body) })
	if err != nil {
		return false
	}
	frame := wire.AppendCold(nil, typ, body)
	if len(frame)-wire.HeaderSize > wire.MaxCold {
		return true // only with the keys that were left out of payload
	}
	again := newBody(body)
	must(t, wire.DecodeCold(wantPayload(t, frame), again))
	if frame2 := wire.AppendCold(nil, typ, again); !bytes.Equal(frame, frame2) {
		t.Errorf("%+v became %+v", body, again)
	}
	return true
}

func checkOptions(t *testing.T, raw []byte, options, again any) {
	var err error
	wantColdAllocation(t, len(raw), func() { err = wire.DecodeOptions(raw, options) })
	if err != nil {
		return
	}
	must(t, wire.DecodeOptions(wire.AppendOptions(nil, options), again))
	if !reflect.DeepEqual(options, again) {
		t.Errorf("%+v became %+v", options, again)
	}
}

func checkHeaders(t *testing.T, raw []byte) {
	var headers map[string]string
	var err error
	wantColdAllocation(t, len(raw), func() { headers, err = wire.DecodeHeaders(raw) })
	if checked := wire.CheckHeaders(raw); (checked == nil) != (err == nil) {
		t.Errorf("CheckHeaders says %v, DecodeHeaders %v", checked, err)
	}
	if err != nil {
		return
	}
	again, err := wire.DecodeHeaders(wire.AppendHeaders(nil, headers))
	if err != nil || len(again) != len(headers) {
		t.Errorf("%v became %v, %v", headers, again, err)
	}
	for k, v := range headers {
		if again[k] != v {
			t.Errorf("%v became %v", headers, again)
		}
	}
}

// within checks that each view lies in payload: nothing was copied, and an append
// to a view would not write into what follows it.
func within(t *testing.T, payload []byte, views ...[]byte) {
	t.Helper()
	from := uintptr(unsafe.Pointer(unsafe.SliceData(payload)))
	to := from + uintptr(len(payload))
	for i, view := range views {
		if view == nil {
			continue
		}
		at := uintptr(unsafe.Pointer(unsafe.SliceData(view)))
		if at < from || at+uintptr(len(view)) > to || cap(view) != len(view) {
			t.Errorf("field %d, of %d bytes, is not a view into the payload", i, len(view))
		}
	}
}

// wantNoAllocation checks that a no-copy decoder is one. Other goroutines of the
// process may allocate a little meanwhile.
func wantNoAllocation(t *testing.T, decode func()) {
	t.Helper()
	if got := allocated(decode); got > 64<<10 {
		t.Errorf("%d bytes allocated by a decoder that copies nothing", got)
	}
}

// wantColdAllocation checks that decode, given n bytes, allocates in proportion.
func wantColdAllocation(t *testing.T, n int, decode func()) {
	t.Helper()
	if n < 12 { // no room for a key and a long length, and measuring stops the world
		decode()
	} else if got := allocated(decode); got > coldAllocation(n) {
		t.Errorf("%d bytes allocated to decode %d, want %d at most", got, n, coldAllocation(n))
	}
}

// The bound of coldAllocation holds for what makes the library allocate most.
func TestColdAllocation(t *testing.T) {
	for name, payload := range map[string]string{
		"empty filters": "\x92\x07\x81\xa7filters\xdd\x00\x00\xff\x00" + strings.Repeat("\xa0", 0xff00),
		"short filters": "\x92\x07\x81\xa7filters\xdd\x00\x00\x7f\x00" + strings.Repeat("\xa1a", 0x7f00),
		"unknown keys":  "\x92\x07\xdf\x00\x00\x7f\x00" + strings.Repeat("\xa0\xc0", 0x7f00),
		"unknown array": "\x92\x07\x81\xa1x\xdd\x00\x00\xff\x00" + strings.Repeat("\xc0", 0xff00),
		"unknown maps":  "\x92\x07\x81\xa1x\xdd\x00\x00\xff\x00" + strings.Repeat("\x80", 0xff00),
		"filters again": "\x92\x07\xdf\x00\x00\x10\x00" + strings.Repeat("\xa7filters\x91\xa0", 0x1000),
		"short queues":  "\x92\x14\x81\xa6queues\xdd\x00\x00\x1f\x00" + strings.Repeat("\x81\xa4name\xa1q", 0x1f00),
		"queues again":  "\x92\x14\xde\x07\x00" + strings.Repeat("\xa6queues\x92\x81\xa4name\xa1q\x81\xa4name\xa1q", 0x700),
		"a long string": "\x92\x07\x81\xa6policy\xdb\x00\x00\xff\x00" + strings.Repeat("p", 0xff00),
	} {
		var err error
		body := any(&wire.Subscribe{})
		if payload[1] == byte(wire.TypeQueued) {
			body = &wire.Queued{}
		}
		got := allocated(func() { err = wire.DecodeCold([]byte(payload), body) })
		if limit := coldAllocation(len(payload)); err != nil || got > limit {
			t.Errorf("%s: %v, %d bytes allocated for %d, want %d at most", name, err, got, len(payload), limit)
		}
	}
}
