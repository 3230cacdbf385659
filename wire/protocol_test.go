package wire_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
	"github.com/vmihailenco/msgpack/v5"
)

// The conversation at the end of docs/PROTOCOL.md.
var exampleFrames = []struct {
	from string
	typ  wire.Type
	body any // a pointer to what a decoder gives; of the frames with one number, that
}{
	{"client", wire.TypeHello, &wire.Hello{Version: 1, Client: "example"}},
	{"broker", wire.TypeWelcome, &wire.Welcome{
		Version: 1, Features: []string{}, MaxPacket: 65536, MaxMessage: 1 << 20, Window: 2 << 20,
		Bus: "5f0c9a71", Broker: "0.1.0", UID: 1000, GID: 1000, PID: 4711}},
	{"client", wire.TypeSubscribe, &wire.Subscribe{Sub: 1, Filters: []string{"build/#"}}},
	{"broker", wire.TypeSubscribed, &wire.Subscribed{Sub: 1, Seq: 41}},
	{"client", wire.TypePublish, &wire.Publish{Topic: []byte("build/done"), Body: []byte("ok")}},
	{"client", wire.TypePing, uint64(1)},
	{"broker", wire.TypeAck, &wire.Ack{UpTo: 1, Subscribers: 1}},
	{"broker", wire.TypePong, uint64(1)},
	{"broker", wire.TypeTarget, uint32(1)},
	{"broker", wire.TypeMessage, &wire.Message{
		Seq: 42, Time: 1767225600_000000000, UID: 1000, GID: 1000, PID: 4711,
		Topic: []byte("build/done"), Body: []byte("ok")}},
	{"client", wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 1}},
	{"broker", wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: 1, Delivered: 1}},
	{"client", wire.TypeGoodbye, &wire.Goodbye{}},
}

// appendFrame appends the frame of a body as exampleFrames has it.
func appendFrame(dst []byte, typ wire.Type, body any) []byte {
	switch b := body.(type) {
	case *wire.Publish:
		return wire.AppendPublish(dst, b)
	case *wire.Message:
		return wire.AppendMessage(dst, b)
	case *wire.Ack:
		return wire.AppendAck(dst, *b)
	case uint32:
		return wire.AppendTarget(dst, b)
	case uint64:
		if typ == wire.TypePong {
			return wire.AppendPong(dst, b)
		}
		return wire.AppendPing(dst, b)
	}
	return wire.AppendCold(dst, typ, body)
}

// decodeFrame decodes a payload into a new value of the type that like has.
func decodeFrame(payload []byte, like any) (any, error) {
	switch like.(type) {
	case uint32:
		return wire.DecodeTarget(payload)
	case uint64:
		return wire.DecodePing(payload)
	}
	body := newBody(like)
	if hot, ok := body.(interface{ Decode([]byte) error }); ok {
		return body, hot.Decode(payload)
	}
	return body, wire.DecodeCold(payload, body)
}

// documentFrame is a line of the example, with those that go on with its bytes.
type documentFrame struct {
	from, name string
	frame      []byte
	fields     string // what the line says is in the frame
}

// The frames that the document shows are the conversation above, the bytes are
// what the encoders write and the decoders read, and the fields written beside
// them are what msgpack alone finds there.
func TestProtocolExample(t *testing.T) {
	document, err := os.ReadFile("../docs/PROTOCOL.md")
	must(t, err)
	block := exampleBlock(t, string(document))
	got := parseExample(t, block)
	if len(got) != len(exampleFrames) {
		t.Errorf("the document shows %d frames", len(got))
	}
	for i, want := range exampleFrames[:min(len(got), len(exampleFrames))] {
		line := got[i]
		if line.from != want.from || line.name != want.typ.String() {
			t.Errorf("frame %d is %s> %s, want %s> %v", i, line.from, line.name, want.from, want.typ)
			continue
		}
		payload := wantPayload(t, line.frame)
		body, err := decodeFrame(payload, want.body)
		if err != nil || !reflect.DeepEqual(body, want.body) {
			t.Errorf("%s: got %+v, %v; want %+v", line.name, body, err, want.body)
			continue
		}
		if again := appendFrame(nil, want.typ, body); !bytes.Equal(again, line.frame) {
			t.Errorf("%s: the document has\n%x, encoded again it is\n%x", line.name, line.frame, again)
		}
		if fields := describe(t, payload); line.fields != fields {
			t.Errorf("%s: the document says %s, in the bytes is %s", line.name, line.fields, fields)
		}
	}
	if want := writeExample(t); t.Failed() || block != want {
		t.Errorf("the block as it should be:\n%s", want)
	}
}

// exampleBlock returns the code block of the document's last section.
func exampleBlock(t *testing.T, document string) string {
	t.Helper()
	_, section, _ := strings.Cut(document, "\n## An example, byte by byte\n")
	_, block, _ := strings.Cut(section, "\n```\n")
	block, _, found := strings.Cut(block, "```")
	if !found {
		t.Fatal("docs/PROTOCOL.md has no example with a code block")
	}
	return block
}

// parseExample reads lines such as "client> HELLO hex # fields"; one that begins
// with a space goes on with the frame before.
func parseExample(t *testing.T, block string) []documentFrame {
	t.Helper()
	var frames []documentFrame
	for line := range strings.Lines(block) {
		text, fields, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "# ")
		if from, rest, ok := strings.Cut(text, "> "); ok {
			name, digits, _ := strings.Cut(rest, " ")
			frames = append(frames, documentFrame{from: from, name: name})
			text = digits
		}
		if len(frames) == 0 {
			t.Fatalf("the example begins with %q", line)
		}
		last := &frames[len(frames)-1]
		octets, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		last.frame = append(last.frame, octets...)
		last.fields = strings.TrimSpace(last.fields + " " + fields)
	}
	return frames
}

// writeExample returns the block for exampleFrames.
func writeExample(t *testing.T) string {
	const perLine = 24 // bytes
	var out strings.Builder
	for _, f := range exampleFrames {
		frame := appendFrame(nil, f.typ, f.body)
		payload := frame[wire.HeaderSize:]
		fields := wrap(describe(t, payload), 76)
		fmt.Fprintf(&out, "%s> %-12v # %s\n", f.from, f.typ, strings.Join(fields, "\n    # "))
		fmt.Fprintf(&out, "    % x\n", frame[:wire.HeaderSize])
		for part := range slices.Chunk(payload, perLine) {
			fmt.Fprintf(&out, "    % x\n", part)
		}
	}
	return out.String()
}

// wrap cuts text at commas into lines of about width bytes.
func wrap(text string, width int) []string {
	var lines []string
	for len(text) > width {
		at := strings.LastIndex(text[:width], ", ") + 1
		lines = append(lines, text[:at])
		text = text[at+1:]
	}
	return append(lines, text)
}

// describe says what is in a payload, in the document's notation.
func describe(t *testing.T, payload []byte) string {
	t.Helper()
	dec := msgpack.NewDecoder(bytes.NewReader(payload))
	dec.SetMapDecoder(func(dec *msgpack.Decoder) (any, error) {
		n, err := dec.DecodeMapLen()
		pairs := make([]string, 0, max(n, 0))
		for ; n > 0 && err == nil; n-- {
			var key string
			var value any
			if key, err = dec.DecodeString(); err == nil {
				value, err = dec.DecodeInterface()
			}
			pairs = append(pairs, key+" "+notation(value))
		}
		return mapNotation("{" + strings.Join(pairs, ", ") + "}"), err
	})
	value, err := dec.DecodeInterface()
	must(t, err)
	return notation(value)
}

// mapNotation is a map already written down, in the order of its keys.
type mapNotation string

func notation(value any) string {
	switch v := value.(type) {
	case nil:
		return "nil"
	case mapNotation:
		return string(v)
	case string:
		return fmt.Sprintf("%q", v)
	case []byte:
		return fmt.Sprintf("bin %q", v)
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = notation(v[i])
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	return fmt.Sprint(value)
}
