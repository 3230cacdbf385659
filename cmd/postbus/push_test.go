package main

import (
	"errors"
	"testing"
	"time"
)

func TestParseMoment(t *testing.T) {
	for s, want := range map[string]time.Time{
		"2026-12-24T18:00:00Z":          time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC),
		"2026-12-24T18:00:00.25+01:00":  time.Date(2026, 12, 24, 17, 0, 0, 250e6, time.UTC),
		"0":                             time.Unix(0, 0),
		"@1000000000":                   time.Unix(1e9, 0),
		"1000000000.5":                  time.Unix(1e9, 500e6),
		"1000000000.123456789123456789": time.Unix(1e9, 123456789),
		"1000000000.":                   time.Unix(1e9, 0),
	} {
		if got, err := parseMoment(s); err != nil || !got.Equal(want) {
			t.Errorf("parseMoment(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "@", "tomorrow", "-1", "1.-5", "1.5s", "2026-12-24", "2026-12-24T18:00:00", "99999999999999"} {
		if got, err := parseMoment(s); err == nil {
			t.Errorf("parseMoment(%q) = %v, want an error", s, got)
		}
	}
}

func TestRefused(t *testing.T) {
	full := errors.New("queue full")
	lines, whole := &pushing{bodies: bodies{lines: true}}, &pushing{}
	for want, got := range map[string]error{
		"queue full":                                whole.refused(full, 1, 1, 1),
		"line 7 was refused: queue full":            lines.refused(full, 1, 7, 7),
		"1 of lines 7 to 9 was refused: queue full": lines.refused(full, 1, 7, 9),
		"2 lines were refused, the first of them between line 7 and 9: queue full":   lines.refused(full, 2, 7, 9),
		"2 pieces were refused, the first of them between piece 7 and 9: queue full": (&pushing{bodies: bodies{nul: true}}).refused(full, 2, 7, 9),
	} {
		if got.Error() != want || !errors.Is(got, full) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestPushCheck(t *testing.T) {
	for name, p := range map[string]*pushing{
		"no queue":     {},
		"bad queue":    {queue: "a/b"},
		"bad header":   {queue: "q", headers: []string{"x"}},
		"bad time":     {queue: "q", at: "noon"},
		"body and -0":  {queue: "q", bodies: bodies{body: []byte{}, nul: true}},
		"bad time-out": {queue: "q", timeout: -1},
	} {
		if err := p.check(); exitCode(err) != exitUsage {
			t.Errorf("%s: %v, want a usage error", name, err)
		}
	}
	p := &pushing{queue: "q", headers: []string{"a=b=c"}, at: "12"}
	if err := p.check(); err != nil || p.opts.Headers["a"] != "b=c" || !p.opts.At.Equal(time.Unix(12, 0)) {
		t.Errorf("%+v, %v", p.opts, err)
	}
}
