package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// The log of a queue whose broker was killed, or stopped, is cut off or has a few bits
// flipped at any place: what was before that place is there, and the place is named, by
// queue check and by the broker, whose other queues it does not touch.
func TestQueueCrashDamaged(t *testing.T) {
	var s *accounts
	outcomes := make(map[string]int)
	for round := range crashRounds() {
		if round%10 == 0 {
			s = newSiegeOfAccounts(t, "disk")
			s.fill()
			s.fill()
			s.survey()
		}
		l := s.copyLog()
		l.damage(s.rng)
		outcomes[l.check()]++
		if t.Failed() {
			t.Fatalf("in round %d: %s at %d, %s", round, l.what, l.at, filepath.Base(l.path))
		}
		os.RemoveAll(l.bus)
	}
	t.Logf("damage %v", outcomes)
}

// fill has clients use the queue, and ends its broker.
func (s *accounts) fill() {
	cmd := s.start(nil)
	s.next()
	if !s.ready(cmd) {
		s.t.Fatalf("the broker does not start: %s", cmd.Stderr)
	}
	settings := s.settings()
	settings.MaxMessages = 0
	if err := s.declare(settings); err != nil {
		s.t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 3 {
		seed := s.rng.Uint64()
		all.Go(func() {
			if err := s.use(rand.New(rand.NewPCG(seed, 0)), 300); err != nil {
				s.t.Error(err)
			}
		})
	}
	all.Wait()
	if s.rng.IntN(2) == 0 {
		s.dead(cmd)
		return
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		s.t.Fatalf("%v: %s", err, cmd.Stderr)
	}
}

// damagedLog is a copy of a queue's log, what is where in it, and what was done to it.
type damagedLog struct {
	*accounts
	bus      string
	segments []string
	path     string // the damaged segment,
	at       int64  // and where
	what     string
}

// logPlace is where a message is.
type logPlace struct {
	segment int
	end     int64 // of its body
}

func (p logPlace) compare(q logPlace) int {
	return cmp.Or(cmp.Compare(p.segment, q.segment), cmp.Compare(p.end, q.end))
}

// letterName is what the body of a letter consists of.
var letterName = regexp.MustCompile(`<\d+\.\d+> `)

// copyLog copies the state directory to a bus of its own.
func (s *accounts) copyLog() *damagedLog {
	l := &damagedLog{accounts: s, bus: busDir(s.t)}
	if err := os.CopyFS(filepath.Join(l.bus, "state"), os.DirFS(filepath.Join(s.dir, "state"))); err != nil {
		s.t.Fatal(err)
	}
	var err error
	if l.segments, err = filepath.Glob(filepath.Join(l.bus, "state", "q.disk", "*.seg")); err != nil || len(l.segments) == 0 {
		s.t.Fatalf("segments: %v, %v", l.segments, err)
	}
	return l
}

// survey finds the live messages in the log. It opens a copy: opening changes it.
func (s *accounts) survey() {
	l := s.copyLog()
	defer os.RemoveAll(l.bus)
	places := make(map[string]logPlace)
	for i, path := range l.segments {
		text, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, at := range letterName.FindAllIndex(text, -1) { // when it was moved the last one counts
			places[nameOf(text[at[0]:at[1]])] = logPlace{i, int64(at[1])}
		}
	}
	st, err := store.OpenDisk(filepath.Join(l.bus, "state"), "q", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer st.Close()
	s.live = make(map[*letter]logPlace)
	err = st.Each(func(e store.Entry) error {
		if e.Kind != store.Message {
			return nil
		}
		name := letterIn(e.Data)
		place, ok := places[name]
		if m := s.letters[name]; m != nil && ok {
			s.live[m] = place
			return nil
		}
		return fmt.Errorf("message %d, %q, is none that was pushed, or in no segment", e.Seq, name)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// damage damages the log somewhere in what was written.
func (l *damagedLog) damage(rng *rand.Rand) {
	l.path = l.segments[rng.IntN(len(l.segments))]
	nearEnd := rng.IntN(4) == 0
	if nearEnd {
		l.path = l.segments[len(l.segments)-1]
	}
	text, err := os.ReadFile(l.path)
	if err != nil {
		l.t.Fatal(err)
	}
	used := int64(len(bytes.TrimRight(text, "\x00")))
	if l.at = rng.Int64N(used); nearEnd {
		l.at = max(0, used-1-rng.Int64N(2000))
	}
	if rng.IntN(2) == 0 {
		l.what = "cut off"
		if err := os.Truncate(l.path, l.at); err != nil {
			l.t.Fatal(err)
		}
		return
	}
	l.what = "bits flipped"
	for range 1 + rng.IntN(8) {
		if i := l.at + rng.Int64N(3); i < int64(len(text)) {
			text[i] ^= 1 << rng.IntN(8)
		}
	}
	if err := os.WriteFile(l.path, text, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// before reports whether a message is in front of the damage.
func (l *damagedLog) before(p logPlace) bool {
	return p.compare(logPlace{slices.Index(l.segments, l.path), l.at + 1}) < 0
}

// check looks at the damaged log as its user does, and returns what was found.
func (l *damagedLog) check() string {
	report, err := store.Check(filepath.Join(l.bus, "state"), "q")
	check := program(l.t, "queue", "check", "--state", filepath.Join(l.bus, "state"), "q")
	text, exit := check.Output()
	switch {
	case errors.Is(err, store.ErrDamaged):
		named := func(d store.Damage) bool {
			return d.Path == l.path && d.Offset <= l.at+3 && l.at < d.Offset+max(d.Length, 1)
		}
		if !slices.ContainsFunc(report.Damage, named) {
			l.t.Errorf("the damage is not named: %v", err)
		}
		if check.ProcessState.ExitCode() != exitDamaged || !strings.Contains(string(text), filepath.Base(l.path)) {
			l.t.Errorf("queue check: %v: %s", exit, text)
		}
		l.refused()
	case err != nil || exit != nil:
		l.t.Fatalf("check: %v; queue check: %v: %s", err, exit, text)
	case report.Torn != nil && (report.Torn.Path != l.path || report.Torn.Offset > l.at+3):
		l.t.Errorf("a write is said to be cut off at %v", report.Torn)
	}
	if err != nil {
		l.complete(false, l.stored())
		return "named"
	}
	h, stop := l.serve()
	defer stop()
	there := make(map[string]string)
	for _, state := range []string{"", wire.StateDead} {
		if err := h.peek(state, func(m *wire.Message, _ *wire.MessageInfo) { there[nameOf(m.Body)] = string(m.Body) }); err != nil {
			l.t.Fatal(err)
		}
	}
	l.complete(report.Torn == nil, there)
	switch {
	case report.Torn != nil:
		return "taken for a write that was cut off"
	}
	return "without effect"
}

// serve starts a broker on the copy and returns a client of it.
func (l *damagedLog) serve() (client *hand, stop func()) {
	cmd := serve(l.t, l.bus, "--log-level", "off")
	h, err := newAccount(l.t, l.bus, "q").join("unix", nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return h, func() {
		h.conn.Close()
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// refused has a broker tell that the queue is damaged, and serve another one.
func (l *damagedLog) refused() {
	h, stop := l.serve()
	defer stop()
	q, err := h.ask(&wire.Queue{Op: wire.OpInfo, Queue: "q"}, nil)
	if err != nil || len(q.Queues) != 1 || !strings.Contains(q.Queues[0].Trouble, "damaged") || !strings.Contains(q.Queues[0].Trouble, filepath.Base(l.path)) {
		l.t.Errorf("the broker tells of the damaged queue: %+v, %v", q, err)
	}
	if _, err := h.ask(&wire.Queue{Op: wire.OpDeclare, Queue: "other", Settings: &wire.QueueSettings{Level: "disk"}}, nil); err != nil {
		l.t.Errorf("another queue: %v", err)
	}
	for i, queue := range []string{"q", "other"} {
		h.out = wire.AppendPublish(h.out, &wire.Publish{Topic: []byte(wire.QueueTopic + queue), Body: []byte("x")})
		payload, err := h.say()
		if err != nil {
			l.t.Fatal(err)
		}
		if kind, _ := wire.PeekType(payload); kind != []wire.Type{wire.TypeError, wire.TypeAck}[i] {
			l.t.Errorf("a push to %s is answered by %v: %.200q", queue, kind, payload)
		}
	}
}

// stored salvages the queue and returns the bodies that are in it then, by name. Its
// settings may be lost, so it is left to the broker no more.
func (l *damagedLog) stored() map[string]string {
	st, err := store.OpenDisk(filepath.Join(l.bus, "state"), "q", &store.DiskOptions{Salvage: true})
	if err != nil {
		l.t.Fatalf("salvage: %v", err)
	}
	defer st.Close()
	there := make(map[string]string)
	err = st.Each(func(e store.Entry) error {
		if name := letterIn(e.Data); e.Kind == store.Message {
			if m := l.letters[name]; m != nil {
				there[name] = string(e.Data[max(0, len(e.Data)-len(m.body())):])
			} else {
				there[name] = "unknown"
			}
		}
		return nil
	})
	if err != nil {
		l.t.Fatalf("salvage: %v", err)
	}
	return there
}

// letterIn returns the name of the letter whose body a record ends with.
func letterIn(record []byte) string { return nameOf(record[max(0, bytes.LastIndexByte(record, '<')):]) }

// complete looks whether all is there that was in front of the damage, or all, and
// nothing that was not pushed.
func (l *damagedLog) complete(all bool, there map[string]string) {
	for name, body := range there {
		if m := l.letters[name]; m == nil || body != m.body() {
			l.t.Errorf("%q is not what was pushed: %.50q", name, body)
		}
	}
	for m, place := range l.live {
		if _, ok := there[m.name]; !ok && (all || l.before(place)) {
			l.t.Errorf("%s, message %d, is lost: its body ends at %d of segment %d", m.name, m.seq, place.end, place.segment)
		}
	}
}
