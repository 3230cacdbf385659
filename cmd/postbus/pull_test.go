package main

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
)

func TestParseOrder(t *testing.T) {
	for text, want := range map[string]order{
		"":                                {},
		" \t\n":                           {},
		"ack 7\n":                         {verb: "ack", seq: 7},
		"  ack   7  ":                     {verb: "ack", seq: 7},
		"nack 8":                          {verb: "nack", seq: 8},
		"nack 8 1m30s\n":                  {verb: "nack", seq: 8, time: 90 * time.Second},
		"reject 9":                        {verb: "reject", seq: 9},
		"reject 9  no  good\n":            {verb: "reject", seq: 9, reason: "no  good"},
		"extend 18446744073709551615 10s": {verb: "extend", seq: 1<<64 - 1, time: 10 * time.Second},
		"ack 7\r\n":                       {verb: "ack", seq: 7},
	} {
		if got, err := parseOrder(text); err != nil || got != want {
			t.Errorf("parseOrder(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"ack", "7", "ack x", "ack -1", "ack 7 8", "nack 7 soon", "nack 7 5", "extend 7 -1s", "Ack 7", "drop 7", "ack 18446744073709551616"} {
		if got, err := parseOrder(text); err == nil {
			t.Errorf("parseOrder(%q) = %+v, want an error", text, got)
		}
	}
}

func TestPullVerdict(t *testing.T) {
	written := &notWritten{err: errOutputClosed, n: 1, queue: "jobs"}
	for name, test := range map[string]struct {
		count, seen, again, failed int
		err                        error
		want                       int
	}{
		"enough":                        {count: 2, seen: 2, want: exitOK},
		"interrupted":                   {err: errInterrupted, want: exitOK},
		"interrupted too early":         {count: 2, seen: 1, err: errInterrupted, want: exitFailed},
		"nothing came":                  {err: errNothingCame, want: exitOK},
		"not enough came":               {count: 2, seen: 1, err: errNothingCame, want: exitTimeout},
		"nobody reads":                  {err: errOutputClosed, want: exitOK},
		"nobody reads all":              {count: 2, seen: 1, err: errOutputClosed, want: exitNotWritten},
		"not written":                   {err: written, want: exitNotWritten},
		"not written, of so many":       {count: 2, seen: 1, err: written, want: exitNotWritten},
		"standard input ended":          {err: errInputEnded, want: exitOK},
		"standard input ended too soon": {count: 1, err: errInputEnded, want: exitFailed},
		"lease lost":                    {count: 1, seen: 1, again: 1, want: exitFailed},
		"lease lost on the way":         {seen: 9, again: 1, err: errInterrupted, want: exitOK},
		"command failed":                {count: 1, seen: 1, failed: 1, want: exitFailed},
		"command failed on the way":     {seen: 9, failed: 1, err: errInterrupted, want: exitOK},
		"no such queue":                 {count: 1, err: fmt.Errorf("%w: x", client.ErrNotFound), want: exitNoQueue},
		"broker went":                   {err: client.ErrDisconnected, want: exitNoBroker},
	} {
		p := &puller{pullFlags: &pullFlags{count: test.count}, seen: test.seen, again: test.again, failed: test.failed}
		if err := p.verdict(test.err); exitCode(err) != test.want {
			t.Errorf("%s: %v is exit code %d, want %d", name, err, exitCode(err), test.want)
		}
	}
	if text := written.Error(); text != "standard output was closed: 1 message went back to queue jobs" {
		t.Error(text)
	}
}

// delivery is a sample with everything in it.
func delivery() *client.Delivery {
	return &client.Delivery{
		Message: client.Message{
			Seq: 7, Topic: "@queue/jobs", Body: []byte("a\nb"), Time: time.Unix(1e9, 5), From: client.Peer{UID: 1, GID: 2, PID: 3}, Redelivered: true,
		},
		Tries: 2, Key: "k", ID: "i", Priority: 9,
	}
}

func TestPrintDelivery(t *testing.T) {
	d := delivery()
	for format, want := range map[string]string{
		"%s %r %k %i %P %t|%b|%n": "7 2 k i 9 @queue/jobs|a\nb|\n",
		"%u %g %p %h%%":           "1 2 3 {}%",
	} {
		print, err := parseFormatOf("pull", format, deliveryVerbs)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(print(nil, d)); got != want {
			t.Errorf("%s prints %q, want %q", format, got, want)
		}
	}
	const begin = `{"queue":"jobs","topic":"@queue/jobs","seq":7,"time":"2001-09-09T01:46:40.000000005Z","from":{"uid":1,"gid":2,"pid":3},`
	print := jsonDeliveryLine("jobs")
	if got, want := string(print(nil, d)), begin+`"body":"a\nb","redelivered":true,"tries":2,"key":"k","id":"i","priority":9}`+"\n"; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	d.Body = []byte("\xff")
	d.State, d.Reason, d.Origin, d.Due = "dead", "rejected", "others", time.Unix(1e9, 0)
	if got, want := string(print(nil, d)), begin+`"body64":"/w==","redelivered":true,"tries":2,"key":"k","id":"i","priority":9,`+
		`"state":"dead","due":"2001-09-09T01:46:40Z","reason":"rejected","origin":"others"}`+"\n"; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestCommandEnv(t *testing.T) {
	d := delivery()
	d.Key = "a\x00b"
	got := commandEnv("jobs", d)
	for _, want := range []string{
		"POSTBUS_QUEUE=jobs", "POSTBUS_TOPIC=@queue/jobs", "POSTBUS_SEQ=7", "POSTBUS_TRIES=2", "POSTBUS_REDELIVERED=1", "POSTBUS_ID=i", "POSTBUS_PRIORITY=9",
		"POSTBUS_TIME=2001-09-09T01:46:40.000000005Z", "POSTBUS_UID=1", "POSTBUS_GID=2", "POSTBUS_PID=3",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not in %q", want, got)
		}
	}
	if len(got) != 11 {
		t.Errorf("%q: a key with a NUL byte cannot be there", got)
	}
}

func TestOrdinal(t *testing.T) {
	for n, want := range map[int]string{1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 10: "10th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 111: "111th", 122: "122nd"} {
		if got := ordinal(n); got != want {
			t.Errorf("ordinal(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestNewPuller(t *testing.T) {
	given := func(flags ...string) func(string) bool {
		return func(flag string) bool { return slices.Contains(flags, flag) }
	}
	auto := pullFlags{count: 1, ack: ackAuto, ready: readiness{fd: -1}}
	for name, change := range map[string]func(*pullFlags){
		"count":     func(f *pullFlags) { f.count = -1 },
		"prefetch":  func(f *pullFlags) { f.prefetch = 65536 },
		"time":      func(f *pullFlags) { f.lease = -1 },
		"ack":       func(f *pullFlags) { f.ack = "no" },
		"no format": func(f *pullFlags) { f.format = "%" },
	} {
		f := auto
		change(&f)
		if _, err := newPuller(&f, "q", nil, given("format")); !errors.Is(err, errUsage) {
			t.Errorf("%s: %v, want a usage error", name, err)
		}
	}
	f := auto
	f.follow = true
	p, err := newPuller(&f, "q", []string{"true"}, given())
	if err != nil || p.count != 0 {
		t.Errorf("--follow: %v, count %d", err, p.count)
	}
}
