package wire_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
	"github.com/vmihailenco/msgpack/v5"
)

// The maps of the push in the conversation, and of its delivery.
var (
	exampleOptions = wire.AppendOptions(nil, &wire.PublishOptions{ID: "job-7", Priority: 5})
	exampleInfo    = wire.AppendOptions(nil, &wire.MessageInfo{ID: "job-7", Priority: 5})
)

// The conversation at the end of docs/PROTOCOL.md.
var exampleFrames = []struct {
	from string
	typ  wire.Type
	body any // a pointer to what a decoder gives; of the frames with one number, that
}{
	{"client", wire.TypeHello, &wire.Hello{Version: 1, Features: []string{wire.FeatureQueues}, Client: "example"}},
	{"broker", wire.TypeWelcome, &wire.Welcome{
		Version: 1, Features: []string{wire.FeatureQueues}, MaxPacket: 65536, MaxMessage: 1 << 20, Window: 2 << 20,
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
	{"client", wire.TypeQueue, &wire.Queue{
		Token: 2, Op: wire.OpDeclare, Queue: "jobs", Settings: &wire.QueueSettings{Level: "disk", MaxTries: 3}}},
	{"broker", wire.TypeQueued, &wire.Queued{Token: 2, Queues: []wire.QueueInfo{{
		Name: "jobs", Owner: 1000, StoreFree: -1, Settings: wire.QueueSettings{
			Level: "disk", MaxMessages: 1_000_000, MaxBytes: 1 << 30, WhenFull: wire.WhenFullReject,
			LeaseMS: 30_000, MaxTries: 3, DedupMS: 120_000}}}}},
	{"client", wire.TypePublish, &wire.Publish{
		Topic: []byte("@queue/jobs"), Options: exampleOptions, Body: []byte("resize")}},
	{"client", wire.TypePing, uint64(3)},
	{"broker", wire.TypePong, uint64(3)},
	{"broker", wire.TypeAck, &wire.Ack{UpTo: 2, Queues: 1, Level: wire.LevelDisk}},
	{"client", wire.TypeConsume, &wire.Consume{Sub: 2, Queue: "jobs", Prefetch: 10}},
	{"broker", wire.TypeSubscribed, &wire.Subscribed{Sub: 2, Seq: 43}},
	{"broker", wire.TypeTarget, uint32(2)},
	{"broker", wire.TypeMessage, &wire.Message{
		Seq: 1, Time: 1767225601_000000000, UID: 1000, GID: 1000, PID: 4711,
		Topic: []byte("@queue/jobs"), Info: exampleInfo, Body: []byte("resize")}},
	{"client", wire.TypeSettle, &wire.Settle{Sub: 2, Verb: wire.VerbAck, First: 1, Last: 1, Reason: []byte{}}},
	{"broker", wire.TypeSettled, uint64(1)},
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
	case *wire.Settle:
		return wire.AppendSettle(dst, b)
	case uint32:
		return wire.AppendTarget(dst, b)
	case uint64:
		switch typ {
		case wire.TypePong:
			return wire.AppendPong(dst, b)
		case wire.TypeSettled:
			return wire.AppendSettled(dst, b)
		}
		return wire.AppendPing(dst, b)
	}
	return wire.AppendCold(dst, typ, body)
}

// decodeFrame decodes a payload into a new value of the type that like has.
func decodeFrame(payload []byte, typ wire.Type, like any) (any, error) {
	switch typ {
	case wire.TypeTarget:
		return wire.DecodeTarget(payload)
	case wire.TypePing, wire.TypePong:
		return wire.DecodePing(payload)
	case wire.TypeSettled:
		return wire.DecodeSettled(payload)
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
		body, err := decodeFrame(payload, want.typ, want.body)
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

// Each number that the document gives a name has it here, and each that has one here is
// in the document.
func TestProtocolTables(t *testing.T) {
	document, err := os.ReadFile("../docs/PROTOCOL.md")
	must(t, err)
	for _, table := range []struct {
		head  string
		first int
		name  func(n int) string
	}{
		{"| no | frame | from | body |", 1, func(n int) string { return wire.Type(n).String() }},
		{"| reason | | |", 1, func(n int) string { return wire.Reason(n).String() }},
		{"| code | name | when |", 1, func(n int) string { return wire.Code(n).String() }},
		{"| no | level | |", 0, func(n int) string { return wire.Level(n).String() }},
		{"| no | verb | |", 1, func(n int) string { return wire.Verb(n).String() }},
	} {
		_, rows, found := strings.Cut(string(document), "\n"+table.head+"\n")
		rows, _, _ = strings.Cut(rows, "\n\n")
		n := table.first
		for row := range strings.Lines(rows) {
			cells := strings.Split(row, "|")
			if strings.HasPrefix(row, "| ---") {
				continue
			}
			if got, want := strings.TrimSpace(cells[1]), strconv.Itoa(n); got != want {
				t.Errorf("under %q: number %s, want %s", table.head, got, want)
			}
			if got, want := strings.TrimSpace(cells[2]), table.name(n); got != want {
				t.Errorf("under %q: %d is %q, want %q", table.head, n, got, want)
			}
			n++
		}
		// The reason "reconnect" is a client library's own; what has no name is "code 22".
		if next := table.name(n); !found || !strings.Contains(next, " ") && next != "reconnect" {
			t.Errorf("under %q: it ends before %d, %q", table.head, n, next)
		}
	}
}

// Every key of a map is in the document.
func TestProtocolKeys(t *testing.T) {
	document, err := os.ReadFile("../docs/PROTOCOL.md")
	must(t, err)
	words := make(map[string]bool)
	for _, word := range regexp.MustCompile(`[a-z_]+`).FindAllString(string(document), -1) {
		words[word] = true
	}
	bodies := []any{&wire.PublishOptions{}, &wire.MessageInfo{}, &wire.QueueSettings{}, &wire.QueueInfo{}}
	for _, c := range coldFrames {
		bodies = append(bodies, c.body)
	}
	for _, body := range bodies {
		typ := reflect.TypeOf(body).Elem()
		for i := range typ.NumField() {
			if key, _, _ := strings.Cut(typ.Field(i).Tag.Get("msgpack"), ","); !words[key] {
				t.Errorf("%v: key %q is not in the document", typ, key)
			}
		}
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
