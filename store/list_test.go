package store

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// A list is a map that knows the order.
func TestList(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	var l list[int]
	model := map[uint64]int{}
	for step := range 60_000 {
		high := uint64(1 + step/10)
		seq := high
		switch rng.IntN(4) {
		case 0: // anywhere
			seq = 1 + rng.Uint64N(high)
		case 1: // at the front
			seq, _ = l.first()
		}
		want, there := model[seq]
		if grow := step/5000%2 == 0; rng.IntN(3) > 0 == grow {
			before, replaced := l.put(seq, step)
			if replaced != there || before != want {
				t.Fatalf("seed %d: put(%d) replaces %d, %v; want %d, %v", seed, seq, before, replaced, want, there)
			}
			model[seq] = step
		} else {
			if value, ok := l.remove(seq); ok != there || value != want {
				t.Fatalf("seed %d: remove(%d) is %d, %v; want %d, %v", seed, seq, value, ok, want, there)
			}
			delete(model, seq)
		}
		probe := rng.Uint64N(high + 2)
		want, there = model[probe]
		if value, ok := l.get(probe); value != want || ok != there {
			t.Fatalf("seed %d: get(%d) is %d, %v; want %d, %v", seed, probe, value, ok, want, there)
		}
		if step%997 == 0 {
			same(t, &l, model)
		}
	}
	same(t, &l, model)
}

func same(t *testing.T, l *list[int], model map[uint64]int) {
	t.Helper()
	seqs := slices.Sorted(maps.Keys(model))
	var got []uint64
	_ = l.each(func(seq uint64, value int) error {
		if value != model[seq] {
			t.Fatalf("%d has %d, want %d", seq, value, model[seq])
		}
		got = append(got, seq)
		return nil
	})
	if !slices.Equal(got, seqs) || l.live != len(seqs) {
		t.Fatalf("the list has %d and says %d, want %d", len(got), l.live, len(seqs))
	}
	if len(seqs) > 0 {
		first, _ := l.first()
		last, _ := l.last()
		if first != seqs[0] || last != seqs[len(seqs)-1] {
			t.Fatalf("from %d to %d, want %d to %d", first, last, seqs[0], seqs[len(seqs)-1])
		}
	}
}
