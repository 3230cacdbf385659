package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

func TestShortBody(t *testing.T) {
	long := strings.Repeat("ä", 40) // 80 bytes
	for body, want := range map[string]string{
		"":                      `""`,
		"plain":                 "plain",
		"ä €":                   "ä €",
		"two\nlines":            `"two\nlines"`,
		`a "word"`:              `"a \"word\""`,
		"\x1b[31m":              `"\x1b[31m"`,
		"\xff":                  `"\xff"`,
		long:                    strings.Repeat("ä", 30) + "…",
		"a" + long:              "a" + strings.Repeat("ä", 29) + "…",
		strings.Repeat("x", 60): strings.Repeat("x", 60),
	} {
		if got := shortBody([]byte(body)); got != want {
			t.Errorf("shortBody(%q) = %s, want %s", body, got, want)
		}
	}
}

func TestShortly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                        "0s",
		1234 * time.Microsecond:  "1ms",
		56789 * time.Microsecond: "56.8ms",
		12345 * time.Millisecond: "12.3s",
		1234 * time.Second:       "20m36s",
		-time.Hour:               "-1h0m0s",
		1234 * time.Minute:       "20h36m0s",
	} {
		if got := shortly(d); got != want {
			t.Errorf("shortly(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestProgressBar(t *testing.T) {
	for _, test := range []struct {
		done, total int64
		want        string
	}{
		{5, 0, ""},
		{0, 10, "[                        ]   0% "},
		{5, 10, "[############            ]  50% "},
		{10, 10, "[########################] 100% "},
		{11, 10, "[########################] 100% "},
		{-1, 10, "[                        ]   0% "},
	} {
		if got := progressBar(test.done, test.total); got != test.want {
			t.Errorf("%d of %d: %q, want %q", test.done, test.total, got, test.want)
		}
	}
	var p *progress // on what is no terminal
	p.show(1, "x")
	p.while(time.Nanosecond, func() { t.Error("it looked") })()
	p.end()
}

// Flags that are not given leave the default to the broker; a 0 that is given means
// none, which is a negative number on the wire.
func TestQueueSettings(t *testing.T) {
	for args, want := range map[string]client.QueueOptions{
		"":                        {},
		"--max-tries 0 --dedup 0": {MaxTries: -1, Dedup: -1},
		"--level disk --sync-interval 1s --max-bytes 3GiB --max-messages 5 --bind a/# --bind b --lease 1m --ttl 1h --dead-letter d --when-full block --max-tries 3 --dedup 5s": {
			Level: "disk", SyncInterval: time.Second, MaxBytes: 3 << 30, MaxMessages: 5, Bind: []string{"a/#", "b"}, Lease: time.Minute,
			TTL: time.Hour, DeadLetter: "d", WhenFull: "block", MaxTries: 3, Dedup: 5 * time.Second,
		},
	} {
		c := &creating{}
		cmd := newQueueCreate(&target{})
		cmd.ResetFlags()
		c.addSettings(cmd.Flags())
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if err := c.check(cmd.Flags()); err != nil {
			t.Errorf("%s: %v", args, err)
		}
		if got := c.opts; strings.Join(got.Bind, " ") != strings.Join(want.Bind, " ") {
			t.Errorf("%s: bound to %q", args, got.Bind)
		}
		c.opts.Bind, want.Bind = nil, nil
		if string(appendJSON(nil, c.opts)) != string(appendJSON(nil, want)) {
			t.Errorf("%s: %+v, want %+v", args, c.opts, want)
		}
	}
}

func TestQueueText(t *testing.T) {
	q := &client.QueueInfo{
		Name: "jobs", Owner: 1000, Paused: true, Draining: true, Trouble: "the disk is\nfull",
		Ready: 1, OldestMS: 1500, StoreUsed: 1 << 20, StoreFree: 4096,
		Settings: wire.QueueSettings{
			Level: "disk", SyncMS: 100, Bind: []string{"a", "b/#"}, MaxMessages: 10, MaxBytes: 5 << 30,
			WhenFull: "block", LeaseMS: 30000, MaxTries: -1, TTLMS: 60000, DedupMS: -1,
		},
	}
	text := queueText(q)
	for _, want := range []string{
		"state                     draining, paused, the disk is full\n", "level                     disk, synced every 100ms\n",
		"oldest                    1.5s\n", "store                     1 MiB used, 4 KiB free\n", "bind                      a b/#\n",
		"max bytes                 5 GiB\n", "max tries                 none\n", "ttl                       1m0s\n", "dedup                     none\n",
		"dead letter               set aside in this queue\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if got := string(appendJSON(nil, newJSONQueue(q).Settings)); got != `{"bind":["a","b/#"],"max_messages":10,"max_bytes":5368709120,"when_full":"block",`+
		`"lease_ms":30000,"max_tries":null,"dead_letter":null,"ttl_ms":60000,"dedup_ms":null,"sync_ms":100}` {
		t.Error(got)
	}
}

func TestStateOf(t *testing.T) {
	limits := wire.QueueSettings{MaxMessages: 3, MaxBytes: 1000}
	for want, q := range map[string]client.QueueInfo{
		"ok":                       {Settings: limits, Ready: 2, Bytes: 600},
		"full":                     {Settings: limits, Ready: 1, Dead: 1, Leased: 1, Bytes: 3},
		"paused, full":             {Settings: limits, Delayed: 2, Bytes: 700, Paused: true},
		"draining, full, no space": {Settings: limits, Ready: 1, Bytes: 2000, Draining: true, Trouble: "no\nspace"},
	} {
		if got := stateOf(&q); got != want {
			t.Errorf("%+v is %q, want %q", q, got, want)
		}
	}
	if got := cut("äbcdé", 5) + cut("äbcdéf", 5); got != "äbcdéäbcd…" {
		t.Error(got)
	}
}

// A queue that nobody can look into may have messages.
func TestCheckRemove(t *testing.T) {
	for text, q := range map[string]client.QueueInfo{
		"<nil>": {},
		"queue q has 3 messages, 1 of them dead letters: --force removes them too":                         client.QueueInfo{Ready: 1, Leased: 1, Dead: 1},
		"queue q is in trouble, so there may be messages in it: --force removes it all the same: a sector": {Trouble: "a\nsector"},
	} {
		q.Name = "q"
		if err := checkRemove(&q, false, true); fmt.Sprint(err) != text {
			t.Errorf("%v, want %s", err, text)
		}
		if err := checkRemove(&q, true, true); err != nil {
			t.Error(err)
		}
	}
}

// While nobody serves, what there is counts, and the user's before the system's.
func TestIdleState(t *testing.T) {
	there, gone := t.TempDir(), filepath.Join(t.TempDir(), "gone")
	for _, test := range []struct{ user, system, want string }{
		{there, there + "/", there},
		{there, gone, there},
		{gone, there, there},
		{gone, gone + "2", gone},
	} {
		if got := idleState(test.user, test.system); got != test.want {
			t.Errorf("%s and %s: %s, want %s", test.user, test.system, got, test.want)
		}
	}
}

// What an import keeps must be found again, whether or not a broker runs.
func TestOwnState(t *testing.T) {
	t.Setenv("POSTBUS_ADDRESS", "")
	t.Setenv("XDG_STATE_HOME", "/home/state")
	for _, test := range []struct{ state, address, want string }{
		{"", "", "/home/state/postbus"},
		{"/s", "/srv/bus", "/s"},
		{"", "unix:/srv/bus/stream.sock", "/srv/bus/state"},
	} {
		if got, err := (&stateFlag{dir: test.state}).ownPath(&target{address: test.address}); err != nil || got != test.want {
			t.Errorf("%+v: %s, %v", test, got, err)
		}
	}
}

func TestStateDir(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/5")
	t.Setenv("HOME", "/home/me")
	t.Setenv("XDG_STATE_HOME", "not/absolute")
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for bus, want := range map[string]string{
		"/run/postbus":         "/var/lib/postbus",
		"/run/postbus/":        "/var/lib/postbus",
		"/run/user/5/postbus":  "/home/me/.local/state/postbus",
		"/srv/bus":             "/srv/bus/state",
		"bus":                  filepath.Join(here, "bus/state"),
		"/run/user/6/postbus/": "/run/user/6/postbus/state",
	} {
		if got, err := stateDir(bus); err != nil || got != want {
			t.Errorf("state of %s: %s, %v; want %s", bus, got, err, want)
		}
	}
	t.Setenv("XDG_STATE_HOME", "/elsewhere")
	if got, err := userState(); err != nil || got != "/elsewhere/postbus" {
		t.Errorf("%s, %v", got, err)
	}
}

func TestCheckDisk(t *testing.T) {
	dir := t.TempDir()
	d, err := store.OpenDisk(dir, "jobs", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for seq := range uint64(100) {
		if _, err := d.Append([]store.Entry{{Kind: store.Message, Seq: seq + 1, Data: make([]byte, 1000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := checkQueue(dir, "jobs"); err == nil || !strings.HasSuffix(err.Error(), ": stop the broker first") {
		t.Errorf("while it is open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := checkQueue(dir, "jobs")
	if err != nil || len(found) != 1 || found[0].Messages != 100 || len(found[0].Damage) != 0 {
		t.Fatalf("%+v, %v", found, err)
	}
	path := filepath.Join(dir, "jobs.disk", "00000001.seg")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), 50000); err != nil {
		t.Fatal(err)
	}
	found, err = checkQueue(dir, "jobs")
	if err != nil || len(found) != 1 || len(found[0].Damage) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	damage := found[0].Damage[0]
	if damage.File != path || !damage.Lost || damage.Offset > 50000 || damage.Offset+damage.Length < 50006 {
		t.Errorf("%+v", damage)
	}
	if text := found[0].text(); !strings.HasPrefix(text, "jobs, level disk: damaged, 99 messages in ") || strings.Count(text, "\n") != 2 {
		t.Error(text)
	}
}

func TestCheckKernel(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "old.key")
	if err := os.WriteFile(path, []byte("nothing of a key file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := checkQueue(dir, "old")
	if err != nil || len(found) != 1 || len(found[0].Damage) != 1 || found[0].Damage[0].File != path || found[0].Damage[0].Length != 22 {
		t.Fatalf("%+v, %v", found, err)
	}
	names, err := storedQueues(dir)
	if err != nil || len(names) != 1 || names[0] != "old" {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := checkQueue(dir, "new"); exitCode(err) != exitNoQueue {
		t.Errorf("one that is not there: %v", err)
	}
}
