package wire_test

import (
	"bytes"
	"testing"

	"github.com/postbus/postbus/wire"
	"github.com/vmihailenco/msgpack/v5"
)

// The benchmarks named Library do the same through msgpack's reflection, on
// structs with the layout of the hot frames, for the ratio.

type libraryPublish struct {
	Type    uint8
	Topic   string
	Headers msgpack.RawMessage
	Options msgpack.RawMessage
	Body    []byte
}

type libraryMessage struct {
	Type          uint8
	Seq           uint64
	Time          int64
	UID, GID, PID uint32
	Topic         string
	Headers       msgpack.RawMessage
	Info          msgpack.RawMessage
	Body          []byte
}

const benchTopic = "build/linux/amd64/done"

var (
	benchBody    = bytes.Repeat([]byte("x"), 128)
	benchPublish = wire.Publish{Topic: []byte(benchTopic), Body: benchBody}
	benchMessage = wire.Message{
		Seq: 1 << 40, Time: 1_767_225_600_000_000_000, UID: 1000, GID: 1000, PID: 4711,
		Topic: []byte(benchTopic), Body: benchBody,
	}
)

func BenchmarkAppendPublish(b *testing.B) {
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = wire.AppendPublish(buf[:0], &benchPublish)
	}
}

func BenchmarkAppendPublishLibrary(b *testing.B) {
	libraryEncode(b, &libraryPublish{Type: uint8(wire.TypePublish), Topic: benchTopic, Body: benchBody})
}

func BenchmarkPublishDecode(b *testing.B) {
	payload := wire.AppendPublish(nil, &benchPublish)[wire.HeaderSize:]
	var p wire.Publish
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Decode(payload); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPublishDecodeLibrary(b *testing.B) {
	libraryDecode(b, wire.AppendPublish(nil, &benchPublish)[wire.HeaderSize:], &libraryPublish{})
}

func BenchmarkAppendMessage(b *testing.B) {
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = wire.AppendMessage(buf[:0], &benchMessage)
	}
}

func BenchmarkAppendMessageLibrary(b *testing.B) {
	libraryEncode(b, &libraryMessage{
		Type: uint8(wire.TypeMessage), Seq: benchMessage.Seq, Time: benchMessage.Time,
		UID: benchMessage.UID, GID: benchMessage.GID, PID: benchMessage.PID, Topic: benchTopic, Body: benchBody,
	})
}

func BenchmarkMessageDecode(b *testing.B) {
	payload := wire.AppendMessage(nil, &benchMessage)[wire.HeaderSize:]
	var m wire.Message
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Decode(payload); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMessageDecodeLibrary(b *testing.B) {
	libraryDecode(b, wire.AppendMessage(nil, &benchMessage)[wire.HeaderSize:], &libraryMessage{})
}

func libraryEncode(b *testing.B, frame any) {
	var out bytes.Buffer
	enc := msgpack.NewEncoder(&out)
	enc.UseArrayEncodedStructs(true)
	b.ReportAllocs()
	for b.Loop() {
		out.Reset()
		if err := enc.Encode(frame); err != nil {
			b.Fatal(err)
		}
	}
}

func libraryDecode(b *testing.B, payload []byte, frame any) {
	in := bytes.NewReader(payload)
	dec := msgpack.NewDecoder(in)
	b.ReportAllocs()
	for b.Loop() {
		in.Reset(payload)
		dec.Reset(in)
		if err := dec.Decode(frame); err != nil {
			b.Fatal(err)
		}
	}
}
