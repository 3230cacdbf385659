// Package storetest is the contract of store.Store as tests, one suite for every
// store, as testing/slogtest has one for every slog.Handler:
//
//	func TestDisk(t *testing.T) {
//		storetest.Run(t, func(t testing.TB, dir string) store.Store {
//			s, err := store.OpenDisk(dir, "q", nil)
//			if err != nil {
//				t.Fatal(err)
//			}
//			return s
//		})
//	}
package storetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postbus/postbus/store"
)

// Open opens the store of a queue in dir, new or as it was left there. It registers
// with t.Cleanup what has to go away again beside dir, also if that is done already, and
// fails t when it can't open.
type Open func(t testing.TB, dir string) store.Store

type suiteTest struct {
	name string
	run  func(*bench)
}

// Run runs the suite. What a store must keep when it is closed and opened again
// follows from its Stats().Level.
func Run(t *testing.T, open Open) {
	tests := []suiteTest{
		{"Empty", testEmpty},
		{"Order", testOrder},
		{"Replace", testReplace},
		{"StateBeforeMessage", testStateBeforeMessage},
		{"RemoveOutOfOrder", testRemove},
		{"MarksOutliveMessages", testMarks},
		{"EmptyData", testEmptyData},
		{"DataIsNotKept", testNotKept},
		{"BadEntries", testBadEntries},
		{"HighIsNeverUsedTwice", testHigh},
		{"EachStops", testEachStops},
		{"Sizes", testSizes},
		{"TooLarge", testTooLarge},
		{"Many", testMany},
		{"Closed", testClosed},
	}
	for range Scale(100, 1, 1) {
		tests = append(tests, suiteTest{"Random", testRandom}) // another seed each
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := &bench{T: t, open: open, dir: t.TempDir(), model: newModel()}
			b.s = open(t, b.dir)
			b.level = b.s.Stats().Level
			test.run(b)
			b.check()
			b.reopen()
			if err := b.s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

// bench is a store beside a model of what must be in it.
type bench struct {
	*testing.T
	open  Open
	dir   string
	s     store.Store
	level store.Level
	model *model
}

// append appends to both and fails on an error.
func (b *bench) append(entries ...store.Entry) {
	b.Helper()
	if n, err := b.s.Append(entries); err != nil || n != len(entries) {
		b.Fatalf("Append of %d: %d, %v", len(entries), n, err)
	}
	for _, e := range entries {
		b.model.add(e)
	}
}

func (b *bench) remove(seqs ...uint64) {
	b.Helper()
	if err := b.s.Remove(seqs); err != nil {
		b.Fatalf("Remove: %v", err)
	}
	b.model.remove(seqs)
}

func (b *bench) forget(upTo uint64) {
	b.Helper()
	if err := b.s.Forget(upTo); err != nil {
		b.Fatalf("Forget: %v", err)
	}
	b.model.forget(upTo)
}

// reopen closes the store, opens it again and checks what is in it.
func (b *bench) reopen() {
	b.Helper()
	if b.level == store.LevelMemory {
		return
	}
	if err := b.s.Sync(); err != nil {
		b.Fatalf("Sync: %v", err)
	}
	if err := b.s.Close(); err != nil {
		b.Fatalf("Close: %v", err)
	}
	b.s = b.open(b.T, b.dir)
	b.check()
}

// check compares the store with the model.
func (b *bench) check() {
	b.Helper()
	want := b.model.entries()
	i := 0
	err := b.s.Each(func(e store.Entry) error {
		if i >= len(want) {
			return fmt.Errorf("entry %d: kind %d seq %d was not stored, or was removed", i, e.Kind, e.Seq)
		}
		if w := want[i]; e.Kind != w.Kind || e.Seq != w.Seq || !bytes.Equal(e.Data, w.Data) {
			return fmt.Errorf("entry %d: kind %d seq %d %s, want kind %d seq %d %s", i, e.Kind, e.Seq, brief(e.Data), w.Kind, w.Seq, brief(w.Data))
		}
		i++
		return nil
	})
	if err == nil && i < len(want) {
		err = fmt.Errorf("%d entries, want %d; the next is kind %d seq %d", i, len(want), want[i].Kind, want[i].Seq)
	}
	if err != nil {
		b.Fatalf("Each: %v", err)
	}
	st := b.s.Stats()
	if st.Messages != len(b.model.messages) || st.Marks != len(b.model.marks) || st.Bytes != b.model.bytes() || st.High != b.model.high {
		b.Fatalf("Stats: %d messages, %d marks, %d bytes, high %d, want %d, %d, %d, %d", st.Messages, st.Marks, st.Bytes, st.High,
			len(b.model.messages), len(b.model.marks), b.model.bytes(), b.model.high)
	}
	if st.Lost != 0 || st.LastLost != nil {
		b.Fatalf("Stats: lost %d: %v", st.Lost, st.LastLost)
	}
}

// brief shows data, and of much data only the beginning.
func brief(data []byte) string {
	if len(data) <= 40 {
		return fmt.Sprintf("%q", data)
	}
	return fmt.Sprintf("%q… (%d bytes)", data[:40], len(data))
}

// model is what must be in a store.
type model struct {
	settings []byte
	set      bool
	messages map[uint64][]byte
	states   map[uint64][]byte
	marks    map[uint64][]byte
	high     uint64
}

func newModel() *model {
	return &model{messages: map[uint64][]byte{}, states: map[uint64][]byte{}, marks: map[uint64][]byte{}}
}

func (m *model) add(e store.Entry) {
	data := bytes.Clone(e.Data)
	switch e.Kind {
	case store.Settings:
		m.settings, m.set = data, true
	case store.Message:
		m.messages[e.Seq] = data
		m.high = max(m.high, e.Seq)
	case store.State:
		if _, ok := m.messages[e.Seq]; ok {
			m.states[e.Seq] = data
		}
	case store.Mark:
		m.marks[e.Seq] = data
		m.high = max(m.high, e.Seq)
	}
}

func (m *model) remove(seqs []uint64) {
	for _, seq := range seqs {
		delete(m.messages, seq)
		delete(m.states, seq)
	}
}

func (m *model) forget(upTo uint64) {
	for seq := range m.marks {
		if seq <= upTo {
			delete(m.marks, seq)
		}
	}
}

func (m *model) bytes() (n int64) {
	for _, data := range m.messages {
		n += int64(len(data))
	}
	return n
}

// entries returns what Each must give.
func (m *model) entries() (all []store.Entry) {
	if m.set {
		all = append(all, store.Entry{Kind: store.Settings, Data: m.settings})
	}
	for _, seq := range sortedKeys(m.messages) {
		all = append(all, store.Entry{Kind: store.Message, Seq: seq, Data: m.messages[seq]})
		if state, ok := m.states[seq]; ok {
			all = append(all, store.Entry{Kind: store.State, Seq: seq, Data: state})
		}
	}
	for _, seq := range sortedKeys(m.marks) {
		all = append(all, store.Entry{Kind: store.Mark, Seq: seq, Data: m.marks[seq]})
	}
	return all
}

func sortedKeys(m map[uint64][]byte) []uint64 {
	keys := make([]uint64, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Fill returns size bytes that only seq has.
func Fill(seq uint64, size int) []byte {
	data := make([]byte, 0, size+7)
	x := seq*0x9e3779b97f4a7c15 + uint64(size)
	for len(data) < size {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		data = binary.LittleEndian.AppendUint64(data, x)
	}
	return data[:size:size]
}

func message(seq uint64, data string) store.Entry {
	return store.Entry{Kind: store.Message, Seq: seq, Data: []byte(data)}
}

func state(seq uint64, data string) store.Entry {
	return store.Entry{Kind: store.State, Seq: seq, Data: []byte(data)}
}

func mark(seq uint64, data string) store.Entry {
	return store.Entry{Kind: store.Mark, Seq: seq, Data: []byte(data)}
}

func settings(data string) store.Entry {
	return store.Entry{Kind: store.Settings, Data: []byte(data)}
}

// wantError fails unless err is kind and its text names something.
func (b *bench) wantError(what string, err, kind error) {
	b.Helper()
	if !errors.Is(err, kind) {
		b.Errorf("%s: %v, want %v", what, err, kind)
	} else if !strings.HasPrefix(err.Error(), "store: ") {
		b.Errorf("%s: text %q does not begin with the package", what, err)
	}
}
