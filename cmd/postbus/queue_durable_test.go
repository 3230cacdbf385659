package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// strace(1) sees every system call of the broker: no ACK of a push to a disk queue and no
// SETTLED of an ack is written to a socket before an fdatasync has returned that began
// when the record of it was written. With --sync-interval they are, and that is seen.
func TestQueueDurable(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if out, err := exec.Command(strace, "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		t.Skipf("strace is not allowed to trace: %v: %s", err, out)
	}
	t.Run("sync first", func(t *testing.T) {
		w := traceWork(t, strace, 0)
		for i, v := range w.violations {
			if i == 20 {
				break
			}
			t.Error(v)
		}
		if w.kept != durableMessages || w.settled != durableMessages {
			t.Errorf("%d pushes and %d acks were durable in time, want %d each", w.kept, w.settled, durableMessages)
		}
		t.Logf("%d pushes and %d acks by %d fdatasyncs", w.kept, w.settled, w.syncs)
		mustDependOnSyncs(t, w.calls)
	})
	t.Run("sync interval", func(t *testing.T) {
		w := traceWork(t, strace, time.Minute)
		if w.kept > 0 || w.settled > 0 || len(w.violations) != 2*durableMessages {
			t.Errorf("nothing was synced, but %d pushes and %d acks pass, %d do not", w.kept, w.settled, len(w.violations))
		}
	})
}

// mustDependOnSyncs has the proof fail when a sync is not there, or all began too early or
// ended too late.
func mustDependOnSyncs(t *testing.T, calls []call) {
	t.Helper()
	for name, change := range map[string]func(*call){
		"began too early": func(c *call) { c.begin = -1 },
		"ended too late":  func(c *call) { c.end = math.MaxInt },
	} {
		changed := slices.Clone(calls)
		for i := range changed {
			if c := &changed[i]; c.name == "fdatasync" && c.isSegment() {
				change(c)
			}
		}
		w, err := prove(changed)
		if err != nil {
			t.Fatal(err)
		}
		if len(w.violations) != 2*durableMessages {
			t.Errorf("every fdatasync %s: %d violations, want %d", name, len(w.violations), 2*durableMessages)
		}
	}
	for i := range calls {
		if calls[i].name != "fdatasync" || !calls[i].isSegment() {
			continue
		}
		w, err := prove(slices.Delete(slices.Clone(calls), i, i+1))
		if err != nil {
			t.Fatal(err)
		}
		if len(w.violations) > 0 {
			return
		}
	}
	t.Error("the proof needs none of the fdatasyncs")
}

// What each of two clients pushes: one waits for every receipt, one for all together.
const (
	durableSingle    = 25
	durablePipelined = 200
	durableMessages  = durableSingle + durablePipelined
)

// traceWork has two clients push to a disk queue and consume from it, one at a time and
// many at a time, and returns what the trace of the broker proves.
func traceWork(t *testing.T, strace string, interval time.Duration) *durability {
	dir, trace := busDir(t), filepath.Join(t.TempDir(), "trace")
	cmd := program(t, "serve", "--dir", dir, "--log-level", "off")
	cmd.Args = append([]string{strace, "-f", "-ttt", "-y", "-xx", "-s", strconv.Itoa(traceBytes), "-o", trace,
		"-e", "trace=" + strings.Join(tracedCalls, ","), "--", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = strace
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // else it lasts a second longer under -race
	startReady(t, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var queues [2]*client.Queue
	for i, address := range []string{"unixpacket:" + filepath.Join(dir, wire.PacketSocket), "unix:" + filepath.Join(dir, wire.StreamSocket)} {
		c, err := client.Dial(ctx, &client.Options{Address: address})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		queues[i] = c.Queue("durable")
	}
	if _, err := queues[0].Declare(ctx, &client.QueueOptions{Level: "disk", SyncInterval: interval}); err != nil {
		t.Fatal(err)
	}
	want := client.LevelDisk
	if interval > 0 {
		want = client.LevelDiskInterval
	}
	var work sync.WaitGroup
	for i, q := range queues {
		work.Go(func() {
			if err := pushAndTake(ctx, q, i == 0, want); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	work.Wait()
	pid, err := brokerPID(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("strace: %v: %s", err, cmd.Stderr)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	calls, err := parseTrace(string(text))
	if err != nil {
		t.Fatal(err)
	}
	w, err := prove(calls)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// pushAndTake pushes and then takes as many; single waits for each answer.
func pushAndTake(ctx context.Context, q *client.Queue, single bool, want client.Level) error {
	count, name := durablePipelined, "pipelined"
	if single {
		count, name = durableSingle, "single"
	}
	for n := range count {
		body := fmt.Appendf(nil, "<durable %s %d>", name, n)
		if !single {
			if err := q.PushAsync(ctx, body, nil); err != nil {
				return err
			}
			continue
		}
		r, err := q.Push(ctx, body, nil)
		if err != nil {
			return err
		}
		if r.Level != want {
			return fmt.Errorf("a receipt of level %v, want %v", r.Level, want)
		}
	}
	c, err := q.Consume(ctx, &client.ConsumeOptions{Prefetch: 16})
	if err != nil {
		return err
	}
	for range count {
		d, err := c.Next(ctx)
		if err != nil {
			return err
		}
		if single {
			err = d.AckWait(ctx)
		} else {
			err = d.Ack()
		}
		if err != nil {
			return err
		}
	}
	if err := c.Flush(ctx); err != nil {
		return err
	}
	return c.Close()
}

// tracedCalls are the calls by which the broker reads, writes and syncs, and those by
// which it could: prove fails when one of them turns up on a socket or a segment.
var tracedCalls = []string{"read", "write", "pwrite64", "fdatasync", "fsync",
	"writev", "pwritev", "pwritev2", "sendto", "sendmsg", "sendmmsg", "io_uring_enter"}

// traceBytes is how much of a buffer strace writes down: more than any here has.
const traceBytes = 128 << 10

// A call is a system call. From begin to end, its places in the trace, it was under way:
// strace stops a thread at both, so what is caused by the end of a call stands behind it.
type call struct {
	name       string
	fd         string // number and file
	data       []byte
	result     int
	begin, end int
	at         string // time of its begin
}

var (
	traceLine  = regexp.MustCompile(`^(\d+) +(\d+\.\d+) (.*)$`)
	resumed    = regexp.MustCompile(`^<\.\.\. \w+ resumed>(.*)$`)
	tracedCall = regexp.MustCompile(`^(\w+)\((\d+)<([^>]*)>(?:, "([^"]*)"(\.\.\.)?)?.*\) += (-?\d+|\?)`)
)

// parseTrace reads what strace -f -ttt -y -xx has written.
func parseTrace(text string) (calls []call, err error) {
	type half struct {
		text, at string
		begin    int
	}
	open := make(map[string]half) // by thread
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		part := traceLine.FindStringSubmatch(line)
		if part == nil {
			return nil, fmt.Errorf("trace line %d: %.200s", i+1, line)
		}
		thread, h := part[1], half{part[3], part[2], i}
		if begun, ok := strings.CutSuffix(h.text, " <unfinished ...>"); ok {
			h.text = begun
			open[thread] = h
			continue
		}
		if rest := resumed.FindStringSubmatch(h.text); rest != nil {
			h = open[thread]
			h.text += rest[1]
		}
		m := tracedCall.FindStringSubmatch(h.text)
		if m == nil {
			continue // a signal, an exit, a call that failed
		}
		c := call{name: m[1], fd: m[2] + ":" + string(unhex(m[3])), data: unhex(m[4]), begin: h.begin, end: i, at: h.at}
		if c.result, err = strconv.Atoi(m[6]); err != nil || c.result < 0 {
			continue
		}
		if m[5] != "" && c.isSocket() {
			return nil, fmt.Errorf("trace line %d is cut off: %.200s", i+1, line)
		}
		calls = append(calls, c)
	}
	return calls, nil
}

// unhex reads text of strace -xx.
func unhex(s string) []byte {
	b := make([]byte, 0, len(s)/4)
	for ; len(s) >= 4 && s[:2] == `\x`; s = s[4:] {
		n, _ := strconv.ParseUint(s[2:4], 16, 8)
		b = append(b, byte(n))
	}
	return b
}

func (c *call) isSocket() bool  { return strings.Contains(c.fd, ":socket:") }
func (c *call) isSegment() bool { return strings.HasSuffix(c.fd, ".seg") }

// durability is what a trace proves.
type durability struct {
	calls                []call
	kept, settled, syncs int      // pushes, acks and fdatasyncs in order
	violations           []string // answers that were too early

	bodies  map[string]*call // the write of a message's record, by body
	removed map[uint64]*call // the write of the record that removes a message, by its number
	syncsOf map[string][]*call
	conns   map[string]*tracedConn // by socket
}

// tracedConn is a connection as the broker saw it.
type tracedConn struct {
	in, out         []byte        // what is not a whole frame yet
	pushes          []string      // bodies, in order of their numbers
	acks            []wire.Settle // in order of their numbers
	kept, confirmed int           // how many have an answer
}

// prove compares the answers in a trace with the syncs before them.
func prove(calls []call) (*durability, error) {
	w := &durability{
		calls:  calls,
		bodies: make(map[string]*call), removed: make(map[uint64]*call),
		syncsOf: make(map[string][]*call), conns: make(map[string]*tracedConn),
	}
	for i := range calls {
		switch c := &calls[i]; {
		case c.isSegment() && c.name == "fdatasync":
			w.syncsOf[c.fd] = append(w.syncsOf[c.fd], c)
			w.syncs++
		case c.isSegment() && c.name == "pwrite64":
			w.records(c)
		case c.isSegment(), c.name != "read" && c.name != "write" && c.isSocket(), c.name == "io_uring_enter":
			return nil, fmt.Errorf("%s of %s at %s: this test does not know what that does", c.name, c.fd, c.at)
		}
	}
	for i := range calls {
		c := &calls[i]
		if !c.isSocket() {
			continue
		}
		conn := w.conns[c.fd]
		if conn == nil {
			conn = &tracedConn{}
			w.conns[c.fd] = conn
		}
		data := c.data[:min(c.result, len(c.data))]
		var err error
		if c.name == "read" {
			err = frames(&conn.in, data, conn.asked)
		} else {
			err = frames(&conn.out, data, func(f []byte) error { return w.answered(c, conn, f) })
		}
		if err != nil {
			return nil, fmt.Errorf("%s of %s at %s: %w", c.name, c.fd, c.at, err)
		}
	}
	return w, nil
}

// records takes note of the records in a write to a segment: see store/disk_record.go.
func (w *durability) records(c *call) {
	const header, message, remove, removeMany = 24, 1, 0x11, 0x12
	for b := c.data; len(b) >= header; {
		n := int(binary.LittleEndian.Uint32(b[4:]))
		seq, kind := binary.LittleEndian.Uint64(b[8:]), b[20]
		if kind == 0 || header+n > len(b) {
			return // a header of a segment, or zeros
		}
		data := b[header : header+n]
		switch kind {
		case message:
			if from := bytes.Index(data, []byte("<durable ")); from >= 0 {
				body, _, _ := bytes.Cut(data[from:], []byte(">"))
				w.bodies[string(body)+">"] = c
			}
		case remove:
			w.removed[seq] = c
		case removeMany:
			for ; len(data) >= 8; data = data[8:] {
				w.removed[binary.LittleEndian.Uint64(data)] = c
			}
		}
		b = b[min((header+n+7)&^7, len(b)):]
	}
}

// frames adds data to what is there of a direction, and gives each whole frame to use.
func frames(buf *[]byte, data []byte, use func(payload []byte) error) error {
	*buf = append(*buf, data...)
	for {
		payload, size, err := wire.Split(*buf, wire.FrameLimit(wire.DefaultMaxMessage))
		if err == wire.ErrShort {
			return nil
		}
		if err == nil {
			err = use(payload)
		}
		if err != nil {
			return err
		}
		*buf = (*buf)[size:]
	}
}

// asked takes a frame from the client.
func (conn *tracedConn) asked(payload []byte) error {
	switch kind, err := wire.PeekType(payload); {
	case err != nil:
		return err
	case kind == wire.TypePublish:
		var p wire.Publish
		if err := p.Decode(payload); err != nil {
			return err
		}
		conn.pushes = append(conn.pushes, string(p.Body))
	case kind == wire.TypeSettle:
		var s wire.Settle
		if err := s.Decode(payload); err != nil {
			return err
		}
		conn.acks = append(conn.acks, s)
	}
	return nil
}

// answered judges a frame that c writes to the client.
func (w *durability) answered(c *call, conn *tracedConn, payload []byte) error {
	kind, err := wire.PeekType(payload)
	if err != nil {
		return err
	}
	switch kind {
	case wire.TypeError:
		return fmt.Errorf("an ERROR: %q", payload)
	case wire.TypeAck:
		var a wire.Ack
		if err := a.Decode(payload); err != nil || a.UpTo > uint64(len(conn.pushes)) {
			return fmt.Errorf("ACK %d of %d: %v", a.UpTo, len(conn.pushes), err)
		}
		for ; conn.kept < int(a.UpTo); conn.kept++ {
			body := conn.pushes[conn.kept]
			w.kept += w.judge(c, w.bodies[body], "ACK of "+body)
		}
	case wire.TypeSettled:
		upTo, err := wire.DecodeSettled(payload)
		if err != nil || upTo > uint64(len(conn.acks)) {
			return fmt.Errorf("SETTLED %d of %d: %v", upTo, len(conn.acks), err)
		}
		for ; conn.confirmed < int(upTo); conn.confirmed++ {
			s := conn.acks[conn.confirmed]
			for seq := s.First; s.Verb == wire.VerbAck && seq <= s.Last; seq++ {
				w.settled += w.judge(c, w.removed[seq], fmt.Sprint("SETTLED of ", seq))
			}
		}
	}
	return nil
}

// judge returns 1 if record was written and then synced before answer began, else 0 and
// takes note of it.
func (w *durability) judge(answer, record *call, what string) int {
	if record == nil {
		w.violations = append(w.violations, what+": nothing of it was written to a segment")
		return 0
	}
	for _, sync := range w.syncsOf[record.fd] {
		if sync.begin > record.end && sync.end < answer.begin {
			return 1
		}
	}
	w.violations = append(w.violations,
		fmt.Sprintf("%s left at %s: no fdatasync of what was written at %s had returned", what, answer.at, record.at))
	return 0
}
