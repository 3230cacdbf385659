package queue_test

import (
	"cmp"
	"reflect"
	"slices"

	"pgregory.net/rapid"

	"github.com/postbus/postbus/broker/internal/queue"
)

// compare compares all that can be seen.
func (w *world) compare(t *rapid.T) {
	if err := w.q.Check(); err != nil {
		t.Fatal(err)
	}
	w.compareEffects(t)
	if got, want := w.q.Stats(), w.model.stats(); got != want {
		t.Fatalf("Stats:\n%+v, want\n%+v", got, want)
	}
	if got, want := w.q.Due(), w.model.due(); got != want {
		t.Fatalf("Due: %d, want %d", got, want)
	}
	if got, want := w.q.Ready(), w.model.next() != nil && !w.model.paused; got != want || w.q.Paused() != w.model.paused {
		t.Fatalf("Ready: %v, want %v", got, want)
	}
	for _, size := range []int{0, 4, 100} {
		if got, want := w.q.HasRoom(size), w.model.hasRoom(size); got != want {
			t.Fatalf("HasRoom(%d): %v, want %v", size, got, want)
		}
	}
	w.compareMessages(t)
	w.compareUpcoming(t)
}

func (w *world) compareEffects(t *rapid.T) {
	got, want := collapse(w.q.Effects()), collapse(w.model.effects)
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("effects:\n%+v, want\n%+v", got, want)
	}
	w.unsaved = append(w.unsaved, got...)
	w.q.ClearEffects()
	w.model.effects = nil
}

// collapse sorts effects by seq, for Tick's order is its own, and leaves one Forget.
func collapse(effects []queue.Effect) []queue.Effect {
	var all []queue.Effect
	forget := queue.Effect{Kind: queue.Forget}
	for _, e := range effects {
		if e.Kind == queue.Forget {
			forget.Seq = max(forget.Seq, e.Seq)
		} else {
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, func(a, b queue.Effect) int { return cmp.Compare(a.Seq, b.Seq) })
	if forget.Seq > 0 {
		all = append(all, forget)
	}
	return all
}

func (w *world) compareMessages(t *rapid.T) {
	for _, from := range []uint64{0, w.model.high - 1} {
		var got, want []uint64
		for _, i := range w.model.messages {
			if i.seq >= from {
				want = append(want, i.seq)
			}
		}
		w.q.Each(from, func(seq uint64, v queue.View) bool {
			got = append(got, seq)
			i := w.model.find(seq)
			if i == nil || v != w.model.view(i) {
				t.Fatalf("message %d is %+v, want %+v", seq, v, i)
			}
			if looked, ok := w.q.Look(seq); !ok || looked != v {
				t.Fatalf("Look(%d): %+v, want %+v", seq, looked, v)
			}
			return true
		})
		if !slices.Equal(got, want) {
			t.Fatalf("Each(%d): %d, want %d", from, got, want)
		}
	}
	held := make([]int, len(w.consumers))
	for _, i := range w.model.messages {
		if i.state == queue.Leased {
			held[i.consumer]++
		}
	}
	for n, c := range w.consumers {
		if c != nil && c.Leases() != held[n] {
			t.Fatalf("consumer %d has %d leases, want %d", n, c.Leases(), held[n])
		}
	}
}

func (w *world) compareUpcoming(t *rapid.T) {
	got := w.q.Upcoming(nil, 5)
	seen := map[uint64]bool{}
	for _, seq := range got {
		if i := w.model.find(seq); seen[seq] || i == nil || !w.model.deliverable(i) {
			t.Fatalf("Upcoming: %d in %d is not", seq, got)
		}
		seen[seq] = true
	}
	if len(got) > 5 {
		t.Fatalf("Upcoming(5): %d", got)
	}
}
