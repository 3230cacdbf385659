package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
)

var sample = &client.Message{
	Seq:   7,
	Time:  time.Date(2026, 11, 26, 14, 0, 0, 5000, time.UTC),
	From:  client.Peer{UID: 1, GID: 2, PID: 3},
	Topic: "a/b",
	Body:  []byte("body"),
}

func TestParseFormat(t *testing.T) {
	for format, want := range map[string]string{
		"":                "",
		"plain":           "plain",
		"%t":              "a/b",
		"%b%b":            "bodybody",
		"<%t|%b>%n":       "<a/b|body>\n",
		"%s %u %g %p %h":  "7 1 2 3 {}",
		"%%t%0%n":         "%t\x00\n",
		`%t\t%b\n\\%b`:    "a/b\tbody\n\\body",
		"ünïcödé %t €":    "ünïcödé a/b €",
		"raw \n newline":  "raw \n newline",
		"%%%b%%":          "%body%",
		`\\n is not a \n`: "\\n is not a \n",
	} {
		f, err := parseFormat(format)
		if err != nil {
			t.Errorf("format %q: %v", format, err)
			continue
		}
		if got := string(f([]byte("before:"), sample)); got != "before:"+want {
			t.Errorf("format %q gives %q, want %q", format, got, want)
		}
	}
	for _, format := range []string{"%", `\`, "a%", "%x", "% t", "%1", `\q`, `\0`, "%é"} {
		if _, err := parseFormat(format); err == nil {
			t.Errorf("format %q was taken", format)
		}
	}
}

func TestJSONLine(t *testing.T) {
	const want = `{"topic":"a/b","seq":7,"time":"2026-11-26T14:00:00.000005Z","from":{"uid":1,"gid":2,"pid":3},"body":"body"}` + "\n"
	if got := string(jsonLine(nil, sample)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	for _, body := range []string{"", "\x00", "a\nb", `"\`, "\xff\x00", "\u2028<&>", strings.Repeat("x", 1<<16)} {
		m := *sample
		m.Body, m.Redelivered = []byte(body), true
		line := jsonLine(nil, &m)
		var got struct {
			Body        *string
			Body64      []byte
			Redelivered bool
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Errorf("body %q: %v", body, err)
			continue
		}
		back := string(got.Body64)
		if got.Body != nil {
			back = *got.Body
		}
		if back != body || !got.Redelivered || strings.Count(string(line), "\n") != 1 {
			t.Errorf("body %q became %s", body, line)
		}
	}
}

func TestGapLine(t *testing.T) {
	for want, gap := range map[string]client.Gap{
		`{"gap":{"first":2,"last":4,"count":3,"reason":"drop-old"}}`:           {First: 2, Last: 4, Count: 3, Reason: client.ReasonDropOld},
		`{"gap":{"first":null,"last":null,"count":null,"reason":"reconnect"}}`: {Reason: client.ReasonReconnect},
	} {
		if got := string(gapLine(nil, &gap)); got != want+"\n" {
			t.Errorf("got  %swant %s", got, want)
		}
	}
}

func TestGapSentence(t *testing.T) {
	for want, gap := range map[string]client.Gap{
		"1 message is missing here, seq 2: newer ones of the same topic came (latest)":                   {First: 2, Last: 2, Count: 1, Reason: client.ReasonLatest},
		"3 messages are missing here, seq 2 to 9: the broker stopped before it could deliver them":       {First: 2, Last: 9, Count: 3, Reason: client.ReasonShutdown},
		"messages may be missing here: the connection to the broker was lost and made again":             {Reason: client.ReasonReconnect},
		"messages may be missing here, seq 2 to 9: the connection to the broker was lost and made again": {First: 2, Last: 9, Reason: client.ReasonReconnect},
		"2 messages are missing here, seq 2 to 3: reason 99":                                             {First: 2, Last: 3, Count: 2, Reason: 99},
	} {
		if got := gapSentence(&gap); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func FuzzParseFormat(f *testing.F) {
	f.Add("%t %b%n")
	f.Add(`%`)
	f.Fuzz(func(t *testing.T, format string) {
		if print, err := parseFormat(format); err == nil {
			print(nil, sample)
		}
	})
}
