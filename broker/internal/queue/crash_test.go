package queue_test

import (
	"maps"
	"slices"

	"pgregory.net/rapid"

	"github.com/postbus/postbus/broker/internal/queue"
)

// sync brings the store up to date.
func (w *world) sync(*rapid.T) { w.apply(len(w.unsaved)) }

func (w *world) apply(n int) {
	for _, e := range w.unsaved[:n] {
		switch e.Kind {
		case queue.Remove:
			delete(w.kept, e.Seq)
		case queue.Save:
			if one, ok := w.kept[e.Seq]; ok {
				one.s = e.State
				w.kept[e.Seq] = one
			}
		case queue.Forget:
			maps.DeleteFunc(w.marks, func(seq uint64, _ sighting) bool { return seq <= e.Seq })
		}
	}
	w.unsaved = w.unsaved[n:]
}

// crash builds everything anew from what the store has, with the last effects
// missing there.
func (w *world) crash(t *rapid.T) {
	w.apply(rapid.IntRange(0, len(w.unsaved)).Draw(t, "effects kept"))
	w.unsaved, w.consumers = nil, nil
	high := w.model.high
	w.q, w.model = queue.New(w.model.settings, high), &model{settings: w.model.settings, high: high}
	marksFirst := rapid.Bool().Draw(t, "marks first")
	if marksFirst {
		w.restoreMarks()
	}
	maybeDelivered := rapid.Bool().Draw(t, "maybe delivered")
	for _, seq := range slices.Sorted(maps.Keys(w.kept)) {
		one := w.kept[seq]
		m := one.m
		w.q.Restore(seq, &m, one.s, maybeDelivered)
		w.model.restore(seq, one.m, one.s, maybeDelivered)
	}
	if !marksFirst {
		w.restoreMarks()
	}
	w.modelMarks()
	w.join(t)
}

func (w *world) restoreMarks() {
	for _, s := range w.marks {
		w.q.RestoreMark(s.seq, s.id, s.time)
	}
}

// modelMarks gives the model the marks of the store, those of messages included.
func (w *world) modelMarks() {
	all := maps.Clone(w.marks)
	for seq, one := range w.kept {
		all[seq] = sighting{seq: seq, id: one.m.ID, time: one.m.Time}
	}
	for _, seq := range slices.Sorted(maps.Keys(all)) {
		s := all[seq]
		s.stored = true
		w.model.mark(s)
		for w.model.forget(w.model.tooManyMarks) {
		}
	}
}
