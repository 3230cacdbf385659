package main

import "testing"

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int{
		"1":      1,
		"4096":   4096,
		"512B":   512,
		"64k":    64 << 10,
		"64K":    64 << 10,
		"64KiB":  64 << 10,
		"64kB":   64000,
		"20M":    20 << 20,
		"20MiB":  20 << 20,
		"20MB":   20e6,
		"1.5MiB": 3 << 19,
		"1G":     1 << 30,
	} {
		if got, err := parseSize(s); got != want || err != nil {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "-1", "k", "1x", "1Mi", "1kk", "NaN", "Inf", "0.1", "2G", "1e30", "1 k"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", s, got)
		}
	}
}

func TestBufferFlag(t *testing.T) {
	for s, want := range map[string]bufferFlag{
		"1000":      {messages: 1000},
		"8MiB":      {bytes: 8 << 20},
		"64B":       {bytes: 64},
		"1000,8MiB": {messages: 1000, bytes: 8 << 20},
		"8MiB,1000": {messages: 1000, bytes: 8 << 20},
	} {
		var got, again bufferFlag
		if err := got.Set(s); err != nil || got != want {
			t.Errorf("--buffer %s is %+v, %v; want %+v", s, got, err, want)
		}
		if err := again.Set(got.String()); err != nil || again != want {
			t.Errorf("--buffer %s shown as %q reads back as %+v, %v", s, &got, again, err)
		}
	}
	for _, s := range []string{"", "0", "-5", "many", "1000,", ",8MiB"} {
		if err := new(bufferFlag).Set(s); err == nil {
			t.Errorf("--buffer %q was taken", s)
		}
	}
}

func TestRoughSize(t *testing.T) {
	for n, want := range map[int64]string{
		0:                 "0 B",
		1023:              "1023 B",
		1 << 10:           "1 KiB",
		1100:              "1.1 KiB",
		102400 + 51:       "100 KiB",
		1<<20 - 1:         "1 MiB",
		5<<20 + 1:         "5 MiB",
		3 << 29:           "1.5 GiB",
		1 << 41:           "2 TiB",
		9000<<40 + 1<<39:  "9000 TiB",
		123_456_789:       "118 MiB",
		1<<30 - 1<<20 + 1: "1023 MiB",
	} {
		if got := roughSize(n); got != want {
			t.Errorf("roughSize(%d) = %q, want %q", n, got, want)
		}
	}
}
