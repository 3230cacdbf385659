package wire_test

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
	"github.com/vmihailenco/msgpack/v5"
)

// coldFrames has a filled body for every cold frame type.
var coldFrames = []struct {
	typ  wire.Type
	body any // a pointer
}{
	{wire.TypeHello, &wire.Hello{
		Version: 1, Features: []string{"rings", "fds"}, MaxPacket: 65536, Client: "größe",
		Session: bytes.Repeat([]byte{0xff}, 16), Restore: 300}},
	{wire.TypeWelcome, &wire.Welcome{
		Version: 1, Features: []string{"rings"}, MaxPacket: 4096, MaxMessage: 64 << 20, Window: 1 << 30,
		Bus: "b1", Broker: "1.2.3", UID: 1000, GID: math.MaxUint32, PID: 4711}},
	{wire.TypeSubscribe, &wire.Subscribe{
		Sub: math.MaxUint32, Filters: []string{"a/+", "#"}, Policy: "block", Messages: 100, Bytes: 1 << 20,
		NoLocal: true, Credit: math.MaxUint64}},
	{wire.TypeSubscribed, &wire.Subscribed{Sub: 1, Seq: math.MaxUint64}},
	{wire.TypeUnsubscribe, &wire.Unsubscribe{Sub: 128, Drain: true}},
	{wire.TypeUnsubscribed, &wire.Unsubscribed{Sub: 1, Delivered: 1 << 40, Dropped: 3, Discarded: 4}},
	{wire.TypeError, &wire.ErrorBody{Code: wire.CodeBadTopic, Text: "no", Publish: 7, Sub: 8, Token: 9, Settle: 10,
		Lost: []uint64{1, math.MaxUint64}}},
	{wire.TypeGoodbye, &wire.Goodbye{Code: math.MaxUint16, Text: "stopped", Seq: 1 << 63}},
	{wire.TypeAwait, &wire.Await{Token: 5, Topic: "a", Subscribers: 2}},
	{wire.TypeAwaited, &wire.Awaited{Token: 5, Subscribers: 2}},
	{wire.TypeQueue, &wire.Queue{
		Token: math.MaxUint64, Op: wire.OpDeclare, Queue: "jobs", Settings: &queueSettings, Sub: math.MaxUint32,
		State: wire.StateDead, From: 1 << 63, Limit: 1000}},
	{wire.TypeQueued, &wire.Queued{
		Token: 1, Count: math.MaxInt64, Queues: []wire.QueueInfo{queueInfo, {Name: "b"}}, More: true, Next: 1 << 63}},
	{wire.TypeConsume, &wire.Consume{Sub: math.MaxUint32, Queue: "jobs", Prefetch: wire.MaxPrefetch, LeaseMS: 30_000}},
}

// newBody returns a pointer to an empty body of the same type.
func newBody(body any) any { return reflect.New(reflect.TypeOf(body).Elem()).Interface() }

func TestColdFrames(t *testing.T) {
	for _, c := range coldFrames {
		for _, body := range []any{c.body, newBody(c.body)} { // filled, and all zero
			payload := wantPayload(t, wire.AppendCold(nil, c.typ, body))
			if typ, err := wire.PeekType(payload); typ != c.typ || err != nil {
				t.Errorf("%v: PeekType is %v, %v", c.typ, typ, err)
			}
			got := newBody(body)
			if err := wire.DecodeCold(payload, got); err != nil {
				t.Errorf("%v: %v", c.typ, err)
			} else if !reflect.DeepEqual(got, body) {
				t.Errorf("%v: got %+v, want %+v", c.typ, got, body)
			}
		}
	}
}

// The document names each key; a field without a tag would have its Go name.
func TestColdKeys(t *testing.T) {
	for _, c := range coldFrames {
		wantKeys(t, reflect.TypeOf(c.body).Elem())
		if field := unset(reflect.ValueOf(c.body)); field != "" {
			t.Errorf("%v: field %s of the example is not set, so the round trip does not test it", c.typ, field)
		}
	}
}

// wantKeys checks the keys of a struct, and of those in it.
func wantKeys(t *testing.T, typ reflect.Type) {
	t.Helper()
	for i := range typ.NumField() {
		field := typ.Field(i)
		key, _, _ := strings.Cut(field.Tag.Get("msgpack"), ",")
		if key == "" || key != strings.ToLower(key) {
			t.Errorf("%v: field %s has key %q", typ, field.Name, key)
		}
		inner := field.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			wantKeys(t, inner)
		}
	}
}

// unset names a field that is zero in v, or in the first struct that v has of a kind.
func unset(v reflect.Value) (field string) {
	switch v.Kind() {
	case reflect.Pointer:
		return unset(v.Elem())
	case reflect.Slice:
		return unset(v.Index(0))
	case reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			if v.Field(i).IsZero() {
				return name
			}
			if inner := unset(v.Field(i)); inner != "" {
				return name + "." + inner
			}
		}
	}
	return ""
}

func TestAppendColdKeepsWhatIsThere(t *testing.T) {
	ping := wire.AppendPing(nil, 1)
	all := wire.AppendCold(bytes.Clone(ping), wire.TypeGoodbye, &wire.Goodbye{})
	if !bytes.HasPrefix(all, ping) {
		t.Fatalf("the frame before it became %x", all)
	}
	wantPayload(t, all[len(ping):])
}

// coldPayload has the library encode [t, body].
func coldPayload(t testing.TB, typ wire.Type, body any) []byte {
	t.Helper()
	encoded, err := msgpack.Marshal(body)
	must(t, err)
	return append([]byte{0x92, byte(typ)}, encoded...)
}

func TestColdUnknownKeys(t *testing.T) {
	payload := coldPayload(t, wire.TypeSubscribed, map[string]any{
		"sub": 7, "seq": uint64(8), "": nil,
		"new":  map[string]any{"deep": []any{1, "two", 3.0, nil, true, []byte{4}}},
		"more": &msgpack.RawMessage{0xd4, 0x01, 0x00}, // an extension type
	})
	var got wire.Subscribed
	if err := wire.DecodeCold(payload, &got); err != nil || got != (wire.Subscribed{Sub: 7, Seq: 8}) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A key that is not there leaves its default.
func TestColdMissingKeys(t *testing.T) {
	got := wire.Hello{MaxPacket: 5}
	err := wire.DecodeCold([]byte("\x92\x01\x80"), &got)
	if err != nil || !reflect.DeepEqual(got, wire.Hello{MaxPacket: 5}) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// Numbers come in every form that holds them, and are refused when the field does
// not: the library alone would keep the lower bits.
func TestColdNumbers(t *testing.T) {
	for _, tt := range []struct {
		key   string
		value any
		want  *wire.Subscribe // nil: refused
	}{
		{"sub", uint64(7), &wire.Subscribe{Sub: 7}},
		{"sub", int64(7), &wire.Subscribe{Sub: 7}},
		{"sub", int8(7), &wire.Subscribe{Sub: 7}},
		{"sub", uint64(math.MaxUint32), &wire.Subscribe{Sub: math.MaxUint32}},
		{"sub", uint64(math.MaxUint32 + 1), nil},
		{"sub", int64(-1), nil},
		{"sub", int8(-1), nil},
		{"sub", "7", nil},
		{"sub", 7.0, nil},
		{"sub", nil, nil},
		{"credit", uint64(math.MaxUint64), &wire.Subscribe{Credit: math.MaxUint64}},
		{"credit", int64(-1), nil},
		{"messages", uint64(math.MaxInt), &wire.Subscribe{Messages: math.MaxInt}},
		{"messages", uint64(math.MaxInt + 1), nil},
		{"messages", int64(math.MinInt), &wire.Subscribe{Messages: math.MinInt}}, // for the broker to refuse
	} {
		t.Run(fmt.Sprintf("%s %T %v", tt.key, tt.value, tt.value), func(t *testing.T) {
			var got wire.Subscribe
			err := wire.DecodeCold(coldPayload(t, wire.TypeSubscribe, map[string]any{tt.key: tt.value}), &got)
			if tt.want == nil {
				wantCode(t, err, wire.CodeMalformed)
			} else if err != nil || !reflect.DeepEqual(&got, tt.want) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	var goodbye wire.Goodbye
	payload := coldPayload(t, wire.TypeGoodbye, map[string]any{"code": math.MaxUint16 + 1})
	wantCode(t, wire.DecodeCold(payload, &goodbye), wire.CodeMalformed)
}

// What a hostile peer may send instead of a small map is refused, and costs
// little memory.
func TestColdRefused(t *testing.T) {
	nested := func(depth int, open, inner string) string { return strings.Repeat(open, depth) + inner }
	for name, tt := range map[string]struct {
		payload string
		code    wire.Code
	}{
		"empty":                 {"", wire.CodeMalformed},
		"no body":               {"\x91\x07", wire.CodeMalformed},
		"three elements":        {"\x93\x07\x80\x80", wire.CodeMalformed},
		"body nil":              {"\x92\x07\xc0", wire.CodeMalformed},
		"body an array":         {"\x92\x07\x90", wire.CodeMalformed},
		"something behind":      {"\x92\x07\x80\x00", wire.CodeMalformed},
		"map cut":               {"\x92\x07\x81\xa3sub", wire.CodeMalformed},
		"key a number":          {"\x92\x07\x81\x01\x01", wire.CodeMalformed},
		"key nil":               {"\x92\x07\x81\xc0\x01", wire.CodeMalformed},
		"a value of 0xc1":       {"\x92\x07\x81\xa1x\xc1", wire.CodeMalformed},
		"filters a string":      {"\x92\x07\x81\xa7filters\xa1a", wire.CodeMalformed},
		"filters of maps":       {"\x92\x07\x81\xa7filters\x91\x80", wire.CodeMalformed},
		"map of 2^32-1":         {"\x92\x07\xdf\xff\xff\xff\xff", wire.CodeMalformed},
		"map of 2^16-1":         {"\x92\x07\xde\xff\xff", wire.CodeMalformed},
		"2^32-1 filters":        {"\x92\x07\x81\xa7filters\xdd\xff\xff\xff\xff\xa1a", wire.CodeMalformed},
		"2^32-1 unknown":        {"\x92\x07\x81\xa1x\xdd\xff\xff\xff\xff\x01", wire.CodeMalformed},
		"policy of 4 GiB":       {"\x92\x07\x81\xa6policy\xdb\xff\xff\xff\xffab", wire.CodeMalformed},
		"session of 4 GiB":      {"\x92\x07\x81\xa7session\xc6\xff\xff\xff\xffab", wire.CodeMalformed},
		"extension of 4 GiB":    {"\x92\x07\x81\xa1x\xc9\xff\xff\xff\xff\x01ab", wire.CodeMalformed},
		"nested 9 deep":         {"\x92\x07\x81\xa1x" + nested(8, "\x91", "\x00"), wire.CodeMalformed},
		"nested 60,000 deep":    {"\x92\x07\x81\xa1x" + nested(60_000, "\x91", "\x00"), wire.CodeMalformed},
		"maps 30,000 deep":      {"\x92\x07" + nested(30_000, "\x81\xa0", "\x00"), wire.CodeMalformed},
		"arrays that grow":      {"\x92\x07\x81\xa1x" + nested(7, "\xdd\x00\xff\xff\xff", "\x00"), wire.CodeMalformed},
		"above the frame limit": {"\x92\x07\x81\xa1x\xc5\xff\xff" + strings.Repeat("x", 1<<16-1), wire.CodeTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			got := allocated(func() { err = wire.DecodeCold([]byte(tt.payload), &wire.Subscribe{}) })
			wantCode(t, err, tt.code)
			if limit := coldAllocation(len(tt.payload)); got > limit {
				t.Errorf("%d bytes allocated for a payload of %d, want %d at most", got, len(tt.payload), limit)
			}
		})
	}
	deepest := "\x92\x07\x81\xa1x" + nested(7, "\x91", "\x00")
	if err := wire.DecodeCold([]byte(deepest), &wire.Subscribe{}); err != nil {
		t.Errorf("nested 8 deep, as PROTOCOL.md allows: %v", err)
	}
}

// coldAllocation is the most that decoding a cold payload of n bytes may allocate:
// a byte of it can be an empty string in a slice that the library grew step by step,
// eight of them a queue of which only the name is told.
func coldAllocation(n int) uint64 { return 64<<10 + 128*uint64(n) }

func TestDecodeOptions(t *testing.T) {
	options := wire.PublishOptions{RequireSub: true}
	must(t, wire.DecodeOptions(nil, &options))
	if options != (wire.PublishOptions{RequireSub: true}) {
		t.Errorf("nil changed them to %+v", options)
	}
	for _, want := range []wire.PublishOptions{{}, {RequireSub: true}, {Redelivered: true}, longestOptions, {
		ID: "größe", Key: "k", Priority: -1, DelayMS: -1, AtMS: math.MinInt64, TTLMS: 1, // for the broker to refuse
	}} {
		var got wire.PublishOptions
		if err := wire.DecodeOptions(wire.AppendOptions(nil, &want), &got); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	for _, want := range []wire.MessageInfo{{}, {Redelivered: true}, longestInfo} {
		var got wire.MessageInfo
		if err := wire.DecodeOptions(wire.AppendOptions(nil, &want), &got); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

// A value of another kind in the options of a publish is refused, and so is a number
// that is cut off when it is stored.
func TestDecodeOptionsRefused(t *testing.T) {
	for name, raw := range map[string]string{
		"a bool that is a string":  "\x81\xabredelivered\xa3yes",
		"key a number":             "\x81\x01\x01",
		"id a number":              "\x81\xa2id\x01",
		"id bin":                   "\x81\xa2id\xc4\x01a",
		"id nil":                   "\x81\xa2id\xc0",
		"id not UTF-8":             "\x81\xa2id\xa1\xff",
		"key not UTF-8":            "\x81\xa3key\xa2a\xff",
		"priority a string":        "\x81\xa8priority\xa11",
		"priority a float":         "\x81\xa8priority\xca\x00\x00\x00\x00",
		"priority nil":             "\x81\xa8priority\xc0",
		"priority above 63 bits":   "\x81\xa8priority\xcf\x80\x00\x00\x00\x00\x00\x00\x00",
		"delay_ms above 63 bits":   "\x81\xa8delay_ms\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
		"at_ms above 63 bits":      "\x81\xa5at_ms\xcf\x80\x00\x00\x00\x00\x00\x00\x01",
		"ttl_ms above, then again": "\x82\xa6ttl_ms\xcf\x80\x00\x00\x00\x00\x00\x00\x01\xa6ttl_ms\x01",
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, wire.DecodeOptions([]byte(raw), &wire.PublishOptions{}), wire.CodeMalformed)
		})
	}
	wantCode(t, wire.DecodeOptions([]byte("\x81\xa5tries\xcf\x80\x00\x00\x00\x00\x00\x00\x00"), &wire.MessageInfo{}), wire.CodeMalformed)
}

func TestHeaders(t *testing.T) {
	many := map[string]string{}
	for i := range 300 {
		many[fmt.Sprintf("key %d", i)] = strings.Repeat("v", i%40)
	}
	for name, want := range map[string]map[string]string{
		"one": {"a": "b"}, "empty strings": {"": ""}, "long": {"k": strings.Repeat("v", 16000)}, "many": many,
	} {
		raw := wire.AppendHeaders(nil, want)
		if got, err := wire.DecodeHeaders(raw); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: got %d headers, %v", name, len(got), err)
		}
		if n := testing.AllocsPerRun(10, func() { must(t, wire.CheckHeaders(raw)) }); n != 0 {
			t.Errorf("%s: CheckHeaders allocates %v times", name, n)
		}
	}
	if raw := wire.AppendHeaders(nil, map[string]string{}); raw != nil {
		t.Errorf("no headers are encoded as %x", raw)
	}
	must(t, wire.CheckHeaders(nil))
	if got, err := wire.DecodeHeaders(nil); got != nil || err != nil {
		t.Errorf("no headers are decoded as %v, %v", got, err)
	}
	if got, err := wire.DecodeHeaders([]byte{0x80}); len(got) != 0 || err != nil {
		t.Errorf("an empty map is decoded as %v, %v", got, err)
	}
}

func TestHeadersRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		raw  string
		code wire.Code
	}{
		"empty, not nil":  {"", wire.CodeMalformed},
		"string":          {"\xa1a", wire.CodeMalformed},
		"array":           {"\x92\xa1a\xa1b", wire.CodeMalformed},
		"key a number":    {"\x81\x01\xa1b", wire.CodeMalformed},
		"value a number":  {"\x81\xa1a\x01", wire.CodeMalformed},
		"value nil":       {"\x81\xa1a\xc0", wire.CodeMalformed},
		"value bin":       {"\x81\xa1a\xc4\x01b", wire.CodeMalformed},
		"value a map":     {"\x81\xa1a\x80", wire.CodeMalformed},
		"cut":             {"\x82\xa1a\xa1b", wire.CodeMalformed},
		"something after": {"\x81\xa1a\xa1b\x00", wire.CodeMalformed},
		"2^32-1 pairs":    {"\xdf\xff\xff\xff\xff\xa1a\xa1b", wire.CodeMalformed},
		"not UTF-8":       {"\x81\xa1a\xa1\xff", wire.CodeMalformed},
		"key not UTF-8":   {"\x81\xa1\xff\xa1b", wire.CodeMalformed},
		"large":           {"\x81\xa1a\xda\x3f\xfb" + strings.Repeat("v", 1<<14-5), wire.CodeTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, wire.CheckHeaders([]byte(tt.raw)), tt.code)
			_, err := wire.DecodeHeaders([]byte(tt.raw))
			wantCode(t, err, tt.code)
		})
	}
}
