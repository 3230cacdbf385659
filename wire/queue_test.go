package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
)

// queueSettings and queueInfo have every field set.
var (
	queueSettings = wire.QueueSettings{
		Level: "disk", Bind: []string{"a/+", "größe/#"}, MaxMessages: 1, MaxBytes: math.MaxInt64, WhenFull: wire.WhenFullDropOld,
		LeaseMS: 30_000, MaxTries: -1, DeadLetter: "dead", TTLMS: 1 << 40, DedupMS: -1, SyncMS: 128,
	}
	queueInfo = wire.QueueInfo{
		Name: "jobs", Settings: queueSettings, Owner: math.MaxUint32, Paused: true, Draining: true, Trouble: "no space",
		Ready: 1, Delayed: 2, Leased: 3, Dead: 4, Bytes: math.MaxInt64, Consumers: 5, OldestMS: 1 << 33, StoreUsed: 6, StoreFree: -1,
		Pushed: math.MaxUint64, Delivered: 1 << 63, Redelivered: 7, Acked: 8, Nacked: 9, Expired: 10, Dropped: 11,
		Duplicates: 12, Lost: 13,
	}
)

func settleFrame(s wire.Settle) hotFrame {
	fields := func(s *wire.Settle) []any {
		return []any{s.Sub, uint32(s.Verb), s.First, s.Last, uint64(s.Arg), string(s.Reason)}
	}
	return hotFrame{
		name: "SETTLE", typ: wire.TypeSettle,
		frame:  wire.AppendSettle(nil, &s),
		fields: fields(&s),
		decode: func(payload []byte) ([]any, error) {
			var d wire.Settle
			err := d.Decode(payload)
			return fields(&d), err
		},
	}
}

func TestSettleRefused(t *testing.T) {
	const head = "\x97\x16" // of a SETTLE
	var settle wire.Settle
	settled := func(p []byte) error { _, err := wire.DecodeSettled(p); return err }
	for name, tt := range map[string]struct {
		decode  func([]byte) error
		payload string
	}{
		"empty":                {settle.Decode, ""},
		"a field is missing":   {settle.Decode, head + "\x01\x01\x01\x01\x00"},
		"a field too many":     {settle.Decode, head + "\x01\x01\x01\x01\x00\xa0\x00"},
		"another array length": {settle.Decode, "\x96\x16\x01\x01\x01\x01\x00\xa0"},
		"another type":         {settle.Decode, "\x97\x17\x01\x01\x01\x01\x00\xa0"},
		"sub above 32 bits":    {settle.Decode, head + "\xcf\x00\x00\x00\x01\x00\x00\x00\x00\x01\x01\x01\x00\xa0"},
		"sub negative":         {settle.Decode, head + "\xff\x01\x01\x01\x00\xa0"},
		"verb above 8 bits":    {settle.Decode, head + "\x01\xcd\x01\x00\x01\x01\x00\xa0"},
		"verb a string":        {settle.Decode, head + "\x01\xa3ack\x01\x01\x00\xa0"},
		"first negative":       {settle.Decode, head + "\x01\x01\xd0\x80\x01\x00\xa0"},
		"last nil":             {settle.Decode, head + "\x01\x01\x01\xc0\x00\xa0"},
		"arg above 63 bits":    {settle.Decode, head + "\x01\x02\x01\x01\xcf\x80\x00\x00\x00\x00\x00\x00\x00\xa0"},
		"arg negative":         {settle.Decode, head + "\x01\x02\x01\x01\xff\xa0"},
		"arg a float":          {settle.Decode, head + "\x01\x02\x01\x01\xca\x00\x00\x00\x00\xa0"},
		"reason nil":           {settle.Decode, head + "\x01\x03\x01\x01\x00\xc0"},
		"reason bin":           {settle.Decode, head + "\x01\x03\x01\x01\x00\xc4\x01a"},
		"reason not UTF-8":     {settle.Decode, head + "\x01\x03\x01\x01\x00\xa2a\xff"},
		"reason cut":           {settle.Decode, head + "\x01\x03\x01\x01\x00\xa2a"},
		"reason of 4 GiB":      {settle.Decode, head + "\x01\x03\x01\x01\x00\xdb\xff\xff\xff\xffa"},
		"settled, no number":   {settled, "\x91\x17"},
		"settled, two numbers": {settled, "\x93\x17\x01\x01"},
		"settled, negative":    {settled, "\x92\x17\xff"},
		"settled, a string":    {settled, "\x92\x17\xa11"},
		"settled, a ping":      {settled, "\x92\x0d\x01"},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, tt.decode([]byte(tt.payload)), wire.CodeMalformed)
		})
	}
}

// A negative argument has no form on the wire; the appender must not make one up.
func TestSettleNegativeArg(t *testing.T) {
	var got wire.Settle
	must(t, got.Decode(wantPayload(t, wire.AppendSettle(nil, &wire.Settle{Verb: wire.VerbNack, Arg: -1}))))
	if got.Arg != 0 {
		t.Errorf("it became %d", got.Arg)
	}
}

// The reason is a view: the broker copies only what it keeps.
func TestSettleReasonIsView(t *testing.T) {
	payload := wantPayload(t, wire.AppendSettle(nil, &wire.Settle{Verb: wire.VerbReject, Reason: []byte("why")}))
	var s wire.Settle
	must(t, s.Decode(payload))
	within(t, payload, s.Reason)
	if !bytes.Equal(s.Reason, []byte("why")) {
		t.Errorf("the reason is %q", s.Reason)
	}
}

// The numbers and names are for ever: these are tables of docs/PROTOCOL.md.
func TestVerbsAndLevels(t *testing.T) {
	for i, want := range []string{"verb 0", "ack", "nack", "reject", "extend", "verb 5"} {
		if got := wire.Verb(i).String(); got != want {
			t.Errorf("verb %d is called %q, want %q", i, got, want)
		}
	}
	for i, want := range []string{"none", "memory", "kernel", "disk-interval", "disk", "level 5"} {
		if got := wire.Level(i).String(); got != want {
			t.Errorf("level %d is called %q, want %q", i, got, want)
		}
	}
	for verb, want := range map[wire.Verb]wire.Verb{wire.VerbAck: 1, wire.VerbNack: 2, wire.VerbReject: 3, wire.VerbExtend: 4} {
		if verb != want {
			t.Errorf("%v is verb %d, want %d", verb, verb, want)
		}
	}
	for level, want := range map[wire.Level]wire.Level{wire.LevelNone: 0, wire.LevelMemory: 1, wire.LevelKernel: 2,
		wire.LevelDiskInterval: 3, wire.LevelDisk: 4} {
		if level != want {
			t.Errorf("%v is level %d, want %d", level, level, want)
		}
	}
	if wire.Verb(255).String() != "verb 255" || wire.Level(255).String() != "level 255" {
		t.Errorf("the last are called %v and %v", wire.Verb(255), wire.Level(255))
	}
}

func TestCheckQueueName(t *testing.T) {
	for _, name := range []string{
		"a", "Z", "0", "jobs", "a.b", "a_b", "a-b", "9-._", "a..", "mail.out-2_old", strings.Repeat("q", wire.MaxQueueName),
	} {
		if err := wire.CheckQueueName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if err := wire.CheckTopic(wire.QueueTopic + name); err != nil {
			t.Errorf("%q has no topic: %v", name, err)
		}
	}
	for name, why := range map[string]string{
		"":                                    "empty",
		strings.Repeat("q", 65):               "65 bytes",
		strings.Repeat("q", 1<<20):            "limit is 64",
		".a":                                  "begin with",
		"_a":                                  "begin with",
		"-a":                                  "begin with",
		"..":                                  "begin with",
		"@a":                                  "begin with",
		"größe":                               "only",
		"a b":                                 "only",
		"a/b":                                 "only",
		"../a":                                "begin with",
		"a+":                                  "only",
		"a#":                                  "only",
		"a\x00":                               "only",
		"a\n":                                 "only",
		"a\xff":                               "only",
		"a:b":                                 "only",
		"a@b":                                 "only",
		"a[b":                                 "only",
		"a`b":                                 "only",
		"a{b":                                 "only",
		"ä":                                   "begin with",
		strings.Repeat("q", 63) + "ä":         "65 bytes",
		strings.Repeat("q", 62) + "ä":         "only",
		strings.Repeat("q", 63) + "/" + "../": "bytes",
	} {
		err := wire.CheckQueueName(name)
		wantCode(t, err, wire.CodeBadOption)
		if err == nil || !strings.Contains(err.Error(), why) || len(err.Error()) > 250 {
			t.Errorf("%.40q: %v; want something with %q", name, err, why)
		}
	}
}

// In the settings of a queue, and in what is told of it, numbers are held to their range
// as everywhere, and structs are maps.
func TestQueueNumbers(t *testing.T) {
	type m = map[string]any
	for _, tt := range []struct {
		value m // of the settings
		want  *wire.QueueSettings
	}{
		{m{}, &wire.QueueSettings{}},
		{m{"max_bytes": uint64(math.MaxInt64)}, &wire.QueueSettings{MaxBytes: math.MaxInt64}},
		{m{"max_bytes": int8(7)}, &wire.QueueSettings{MaxBytes: 7}},
		{m{"max_bytes": int64(math.MinInt64)}, &wire.QueueSettings{MaxBytes: math.MinInt64}}, // for the broker to refuse
		{m{"max_tries": -1, "new": m{"deep": -1.5}}, &wire.QueueSettings{MaxTries: -1}},
		{m{"bind": nil}, &wire.QueueSettings{}},
		{m{"bind": []string{"a", "b"}}, &wire.QueueSettings{Bind: []string{"a", "b"}}},
		{m{"max_bytes": uint64(math.MaxInt64) + 1}, nil},
		{m{"max_messages": uint64(math.MaxUint64)}, nil},
		{m{"lease_ms": uint64(math.MaxInt64) + 1}, nil},
		{m{"max_tries": uint64(math.MaxInt64) + 1}, nil},
		{m{"ttl_ms": uint64(math.MaxInt64) + 1}, nil},
		{m{"dedup_ms": uint64(math.MaxInt64) + 1}, nil},
		{m{"sync_ms": uint64(math.MaxInt64) + 1}, nil},
		{m{"lease_ms": 1.0}, nil},
		{m{"lease_ms": "1"}, nil},
		{m{"lease_ms": nil}, nil},
		{m{"level": 1}, nil},
		{m{"level": []byte("disk")}, nil},
		{m{"level": "\xff"}, nil},
		{m{"bind": "a"}, nil},
		{m{"bind": m{"a": "b"}}, nil},
		{m{"bind": []any{"a", 1}}, nil},
		{m{"bind": []any{"a", nil}}, nil},
		{m{"bind": []any{"a", "\xff"}}, nil},
	} {
		t.Run(fmt.Sprintf("%.60v", tt.value), func(t *testing.T) {
			var queue wire.Queue
			err := wire.DecodeCold(coldPayload(t, wire.TypeQueue, m{"settings": tt.value}), &queue)
			var queued wire.Queued
			infos := []m{{"name": "q"}, {"settings": tt.value}}
			err2 := wire.DecodeCold(coldPayload(t, wire.TypeQueued, m{"queues": infos}), &queued)
			if tt.want == nil {
				wantCode(t, err, wire.CodeMalformed)
				wantCode(t, err2, wire.CodeMalformed)
			} else if err != nil || !reflect.DeepEqual(queue.Settings, tt.want) {
				t.Errorf("got %+v, %v", queue.Settings, err)
			} else if err2 != nil || !reflect.DeepEqual(&queued.Queues[1].Settings, tt.want) {
				t.Errorf("of a list: got %+v, %v", queued.Queues, err2)
			}
		})
	}
}

// The library would read an array as a struct, its fields in the order they have in Go.
func TestQueueRefused(t *testing.T) {
	array := []any{"disk", nil, 1, 1, "block", 1, 1, "dead", 1, 1, 1} // as many as there are
	if n := reflect.TypeFor[wire.QueueSettings]().NumField(); n != len(array) {
		t.Fatalf("the settings have %d fields", n)
	}
	type m = map[string]any
	for name, tt := range map[string]struct {
		typ  wire.Type
		body m
	}{
		"settings an array":         {wire.TypeQueue, m{"settings": array}},
		"settings an empty array":   {wire.TypeQueue, m{"settings": []any{}}},
		"settings a string":         {wire.TypeQueue, m{"settings": "disk"}},
		"settings of numbers":       {wire.TypeQueue, m{"settings": map[int]int{1: 1}}},
		"limit above 63 bits":       {wire.TypeQueue, m{"limit": uint64(1 << 63)}},
		"sub above 32 bits":         {wire.TypeQueue, m{"sub": 1 << 32}},
		"from negative":             {wire.TypeQueue, m{"from": -1}},
		"name not UTF-8":            {wire.TypeQueue, m{"queue": "\xff"}},
		"prefetch above 63 bits":    {wire.TypeConsume, m{"prefetch": uint64(1 << 63)}},
		"lease above 63 bits":       {wire.TypeConsume, m{"lease_ms": uint64(1 << 63)}},
		"queues a map":              {wire.TypeQueued, m{"queues": m{"name": "q"}}},
		"queues of nil":             {wire.TypeQueued, m{"queues": []any{nil}}},
		"queues of arrays":          {wire.TypeQueued, m{"queues": []any{array}}},
		"queues of empty maps":      {wire.TypeQueued, m{"queues": []m{{}}}},
		"info's settings an array":  {wire.TypeQueued, m{"queues": []m{{"settings": array}}}},
		"info's settings nil":       {wire.TypeQueued, m{"queues": []m{{"settings": nil}}}},
		"a counter negative":        {wire.TypeQueued, m{"queues": []m{{"pushed": -1}}}},
		"a figure above 63 bits":    {wire.TypeQueued, m{"queues": []m{{"bytes": uint64(1 << 63)}}}},
		"an owner above 32 bits":    {wire.TypeQueued, m{"queues": []m{{"owner": 1 << 32}}}},
		"count above 63 bits":       {wire.TypeQueued, m{"count": uint64(1 << 63)}},
		"the second of two is bad":  {wire.TypeQueued, m{"queues": []m{{"name": "q"}, {"bytes": "1"}}}},
		"a settle that is negative": {wire.TypeError, m{"settle": -1}},
		"lost a number":             {wire.TypeError, m{"lost": 1}},
		"lost bin":                  {wire.TypeError, m{"lost": []byte{1}}},
		"lost of strings":           {wire.TypeError, m{"lost": []string{"1"}}},
		"lost of nil":               {wire.TypeError, m{"lost": []any{1, nil}}},
		"lost with a negative":      {wire.TypeError, m{"lost": []int{1, -1}}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range coldFrames {
				if c.typ == tt.typ {
					wantCode(t, wire.DecodeCold(coldPayload(t, tt.typ, tt.body), newBody(c.body)), wire.CodeMalformed)
				}
			}
		})
	}
	var queue wire.Queue
	if err := wire.DecodeCold(coldPayload(t, wire.TypeQueue, m{"op": "info", "settings": nil}), &queue); err != nil || queue.Settings != nil {
		t.Errorf("without settings: %+v, %v", queue, err)
	}
}

// What is wrong is named, nested as it is.
func TestQueueErrorNamesIt(t *testing.T) {
	body := map[string]any{"settings": map[string]any{"lease_ms": "long"}}
	err := wire.DecodeCold(coldPayload(t, wire.TypeQueue, body), &wire.Queue{})
	var e *wire.Error
	if !errors.As(err, &e) || !strings.Contains(e.Text, "QUEUE") || !strings.Contains(e.Text, "settings") || !strings.Contains(e.Text, "lease_ms") {
		t.Errorf("it says %v", err)
	}
}
