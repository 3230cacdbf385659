package store_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

// model is what a store should hold.
type model struct {
	messages, states, marks map[uint64][]byte
	settings                []byte
	high                    uint64
}

func newModel() *model {
	return &model{messages: map[uint64][]byte{}, states: map[uint64][]byte{}, marks: map[uint64][]byte{}}
}

func (m *model) clone() *model {
	return &model{maps.Clone(m.messages), maps.Clone(m.states), maps.Clone(m.marks), m.settings, m.high}
}

func (m *model) seqs() []uint64 { return slices.Sorted(maps.Keys(m.messages)) }

func randomBody(rng *rand.Rand, n int) []byte {
	return storetest.Fill(rng.Uint64(), n)
}

// append stores one entry: a new message, or a State, Mark or Settings.
func (m *model) append(d store.Store, kind store.Kind, data []byte) error {
	e := store.Entry{Kind: kind, Seq: m.high + 1, Data: data}
	n, err := d.Append([]store.Entry{e})
	if n == 1 {
		m.apply(e)
	}
	return err
}

func (m *model) apply(e store.Entry) {
	switch e.Kind {
	case store.Message:
		m.messages[e.Seq] = e.Data
		m.high = e.Seq
	case store.State:
		if _, ok := m.messages[e.Seq]; ok {
			m.states[e.Seq] = e.Data
		}
	case store.Mark:
		m.marks[e.Seq] = e.Data
		m.high = max(m.high, e.Seq)
	case store.Settings:
		m.settings = e.Data
	}
}

func (m *model) remove(d store.Store, seqs []uint64) error {
	for _, s := range seqs {
		delete(m.messages, s)
		delete(m.states, s)
	}
	return d.Remove(seqs)
}

// step does one thing at random.
func (m *model) step(rng *rand.Rand, d store.Store) error {
	switch n := rng.IntN(20); {
	case n < 8:
		var batch []store.Entry
		for i := range 1 + rng.Uint64N(20) {
			e := store.Entry{Kind: store.Message, Seq: m.high + i + 1, Data: randomBody(rng, rng.IntN(600))}
			batch = append(batch, e)
			if rng.IntN(4) == 0 {
				batch = append(batch, store.Entry{Kind: store.Mark, Seq: e.Seq, Data: []byte("id")})
			}
		}
		done, err := d.Append(batch)
		for _, e := range batch[:done] {
			m.apply(e)
		}
		return err
	case n < 11:
		if seqs := m.seqs(); len(seqs) > 0 {
			e := store.Entry{Kind: store.State, Seq: seqs[rng.IntN(len(seqs))], Data: randomBody(rng, 8)}
			done, err := d.Append([]store.Entry{e})
			if done == 1 {
				m.apply(e)
			}
			return err
		}
	case n == 11:
		e := store.Entry{Kind: store.Settings, Data: randomBody(rng, rng.IntN(100))}
		done, err := d.Append([]store.Entry{e})
		if done == 1 {
			m.apply(e)
		}
		return err
	case n == 12 && m.high > 100:
		upTo := m.high - uint64(rng.IntN(100))
		maps.DeleteFunc(m.marks, func(s uint64, _ []byte) bool { return s <= upTo })
		return d.Forget(upTo)
	case n < 18:
		seqs := m.seqs()
		rng.Shuffle(len(seqs), func(i, j int) { seqs[i], seqs[j] = seqs[j], seqs[i] })
		if len(seqs) > 120 { // else the backlog grows
			return m.remove(d, append(seqs[:rng.IntN(40)], 1<<50))
		}
	default:
		return d.Sync()
	}
	return nil
}

func (m *model) compare(t testing.TB, d store.Store) {
	t.Helper()
	if diff := m.diff(d); diff != "" {
		t.Fatal(diff)
	}
}

// contents reads all of a store.
func contents(d store.Store) (*model, error) {
	m := newModel()
	var order []uint64
	err := d.Each(func(e store.Entry) error {
		e.Data = bytes.Clone(e.Data)
		if e.Kind == store.State && m.messages[e.Seq] == nil {
			return fmt.Errorf("a State before its message %d", e.Seq)
		}
		if e.Kind == store.Message {
			order = append(order, e.Seq)
			e.Data = append([]byte{}, e.Data...)
		}
		m.apply(e)
		return nil
	})
	if !slices.IsSorted(order) {
		return nil, fmt.Errorf("messages out of order")
	}
	return m, err
}

func (m *model) diff(d store.Store) string {
	got, err := contents(d)
	if err != nil {
		return err.Error()
	}
	for _, c := range []struct {
		what      string
		got, want map[uint64][]byte
	}{{"messages", got.messages, m.messages}, {"states", got.states, m.states}, {"marks", got.marks, m.marks}} {
		if !maps.EqualFunc(c.got, c.want, bytes.Equal) {
			return fmt.Sprintf("%s: have %d, want %d, or others", c.what, len(c.got), len(c.want))
		}
	}
	if !bytes.Equal(got.settings, m.settings) {
		return "other settings"
	}
	s := d.Stats()
	if s.Messages != len(m.messages) || s.Marks != len(m.marks) || s.High != m.high {
		return fmt.Sprintf("Stats are %+v; want %d messages, %d marks, high %d", s, len(m.messages), len(m.marks), m.high)
	}
	for seq, body := range m.messages {
		if b, err := d.Read([]byte("x"), seq); err != nil || string(b) != "x"+string(body) {
			return fmt.Sprintf("Read(%d): %v", seq, err)
		}
	}
	return ""
}
