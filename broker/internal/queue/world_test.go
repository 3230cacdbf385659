package queue_test

import (
	"cmp"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/postbus/postbus/broker/internal/queue"
)

// world is a queue, the model of it, and a store that does what the effects say.
// Each action does the same to both.
type world struct {
	q     *queue.Queue
	model *model
	now   int64

	consumers []*queue.Consumer // nil: has left

	kept    map[uint64]stored
	marks   map[uint64]sighting
	unsaved []queue.Effect // not in the store yet
}

// stored is a message in the store.
type stored struct {
	m queue.Message
	s queue.State
}

func newWorld(t *rapid.T) *world {
	w := &world{now: 1000, kept: map[uint64]stored{}, marks: map[uint64]sighting{}}
	s := queue.Settings{
		MaxMessages: rapid.SampledFrom([]int{1, 5, 20, 60}).Draw(t, "max messages"),
		MaxBytes:    rapid.SampledFrom([]int64{5, 40, 1000}).Draw(t, "max bytes"),
		MaxMarks:    rapid.SampledFrom([]int{0, 0, 3}).Draw(t, "max marks"),
		DropOld:     rapid.Bool().Draw(t, "drop old"),
		Lease:       10,
		TTL:         rapid.SampledFrom([]time.Duration{0, 0, 25}).Draw(t, "ttl"),
		Dedup:       rapid.SampledFrom([]time.Duration{0, 15}).Draw(t, "dedup"),
		MaxTries:    rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "max tries"),
		Forward:     rapid.Bool().Draw(t, "forward"),
	}
	high := rapid.SampledFrom([]uint64{0, 60, 1000}).Draw(t, "high")
	w.q, w.model = queue.New(s, high), &model{settings: s, high: high}
	w.join(t)
	return w
}

func (w *world) join(*rapid.T) {
	if len(w.consumers) < 20 {
		w.consumers = append(w.consumers, w.q.Consumer())
	}
}

func (w *world) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"":           w.compare,
		"join":       w.join,
		"push":       w.push,
		"push more":  w.push,
		"push many":  w.pushMany,
		"churn":      w.churn,
		"stored":     w.stored,
		"stored too": w.stored,
		"unstored":   w.unstored,
		"take":       w.take,
		"take more":  w.take,
		"take many":  w.takeMany,
		"pick":       w.pick,
		"ack":        w.ack,
		"ack range":  w.ackRange,
		"nack":       w.nack,
		"nack more":  w.nack,
		"reject":     w.reject,
		"extend":     w.extend,
		"leave":      w.leave,
		"advance":    w.advance,
		"tick":       w.tick,
		"tick more":  w.tick,
		"pause":      w.pause,
		"purge":      w.purge,
		"drop":       w.drop,
		"requeue":    w.requeue,
		"lost":       w.lost,
		"moved":      w.moved,
		"sync":       w.sync,
		"crash":      w.crash,
	}
}

func (w *world) push(t *rapid.T) { w.pushOne(t) }

func (w *world) pushOne(t *rapid.T) uint64 {
	m := queue.Message{
		Size:     rapid.IntRange(0, 8).Draw(t, "size"),
		Key:      rapid.SampledFrom([]string{"", "", "a", "a", "b"}).Draw(t, "key"),
		ID:       rapid.SampledFrom([]string{"", "", "1", "2", "3", "4", "5"}).Draw(t, "id"),
		Priority: rapid.SampledFrom([]uint8{0, 0, 0, 1, 9, 200}).Draw(t, "priority"),
		Time:     w.now,
	}
	if rapid.IntRange(0, 3).Draw(t, "has due") == 0 {
		m.Due = w.now + rapid.Int64Range(-5, 20).Draw(t, "due")
	}
	if rapid.IntRange(0, 5).Draw(t, "has expires") == 0 {
		m.Expires = w.now + rapid.Int64Range(-5, 30).Draw(t, "expires")
	}
	mine := m
	seq, verdict := w.q.Push(w.now, &m)
	wantSeq, wantVerdict := w.model.push(w.now, &mine)
	if seq != wantSeq || verdict != wantVerdict || m != mine {
		t.Fatalf("Push: %d %s %+v, want %d %s %+v", seq, verdict, m, wantSeq, wantVerdict, mine)
	}
	return seq
}

func (w *world) pushMany(t *rapid.T) {
	for range 4 {
		if seq := w.pushOne(t); seq != 0 {
			w.store(seq)
		}
	}
}

// churn lets messages through that nothing is to be said about, so that those around
// them have seqs far apart.
func (w *world) churn(t *rapid.T) {
	n, c := w.consumer(t)
	for range rapid.SampledFrom([]int{10, 40, 120}).Draw(t, "n") {
		m := queue.Message{Priority: 9, Time: w.now}
		if i := w.model.next(); i != nil && i.m.Priority >= 9 || !w.model.fits(len(w.model.messages), w.q.Stats().Bytes, 0) {
			t.Skip("others are first, or it is full")
		}
		seq, _ := w.q.Push(w.now, &m)
		w.model.push(w.now, &m)
		w.store(seq)
		if !w.takeOne(t, n, c, 0) {
			t.Skip("it is paused")
		}
		w.same(t, "Ack", w.q.Ack(w.now, c, seq), w.model.held(n, seq))
		w.model.remove(w.model.find(seq), queue.Acked)
	}
}

// of draws a seq of a message in one of the states, or sometimes any.
func (w *world) of(t *rapid.T, states ...queue.StateKind) uint64 {
	var seqs []uint64
	for _, i := range w.model.messages {
		if slices.Contains(states, i.state) {
			seqs = append(seqs, i.seq)
		}
	}
	if len(seqs) == 0 {
		t.Skip("there is none")
	}
	if rapid.IntRange(0, 15).Draw(t, "any") == 0 {
		return rapid.Uint64Range(w.model.high-min(w.model.high, 70), w.model.high+1).Draw(t, "seq")
	}
	return rapid.SampledFrom(seqs).Draw(t, "seq")
}

func (w *world) stored(t *rapid.T) {
	if rapid.Bool().Draw(t, "all") {
		for _, i := range slices.Clone(w.model.messages) {
			if i.state == queue.Pending {
				w.store(i.seq)
			}
		}
		return
	}
	w.store(w.of(t, queue.Pending))
}

func (w *world) store(seq uint64) {
	if i := w.model.find(seq); i != nil && i.state == queue.Pending {
		w.kept[seq] = stored{m: i.m}
		if i.m.ID != "" {
			w.marks[seq] = sighting{seq: seq, id: i.m.ID, time: i.m.Time}
		}
	}
	w.q.Stored(w.now, seq)
	w.model.stored(w.now, seq)
}

func (w *world) unstored(t *rapid.T) {
	seq := w.of(t, queue.Pending)
	w.q.Unstored(seq)
	w.model.unstored(seq)
}

// consumer draws one that has not left.
func (w *world) consumer(t *rapid.T) (int, *queue.Consumer) {
	var here []int
	for n, c := range w.consumers {
		if c != nil {
			here = append(here, n)
		}
	}
	if len(here) == 0 {
		t.Skip("all have left")
	}
	n := rapid.SampledFrom(here).Draw(t, "consumer")
	return n, w.consumers[n]
}

func (w *world) take(t *rapid.T) {
	n, c := w.consumer(t)
	lease := rapid.SampledFrom([]time.Duration{0, 0, 0, 3, 40}).Draw(t, "lease")
	w.takeOne(t, n, c, lease)
}

func (w *world) takeOne(t *rapid.T, n int, c *queue.Consumer, lease time.Duration) bool {
	upcoming := w.q.Upcoming(nil, 1)
	if i := w.model.next(); i != nil && !slices.Equal(upcoming, []uint64{i.seq}) || i == nil && len(upcoming) > 0 {
		t.Fatalf("Upcoming(1): %d, want %+v", upcoming, i)
	}
	got, ok := w.q.Take(w.now, c, lease)
	want, wantOK := w.model.take(w.now, n, lease)
	if got != want || ok != wantOK {
		t.Fatalf("Take: %+v %v, want %+v %v", got, ok, want, wantOK)
	}
	return ok
}

func (w *world) takeMany(t *rapid.T) {
	n, c := w.consumer(t)
	for range 8 {
		if !w.takeOne(t, n, c, 0) {
			return
		}
	}
}

func (w *world) pick(t *rapid.T) {
	n, c := w.consumer(t)
	seq := w.of(t, queue.Ready)
	i := w.model.find(seq)
	want := i != nil && w.model.deliverable(i) && !w.model.expired(i, w.now)
	if got := w.q.Pick(w.now, c, seq, 0); got != want {
		t.Fatalf("Pick(%d): %v, want %v", seq, got, want)
	}
	if want {
		w.model.deliver(w.now, i, n, 0)
	}
}

// settle draws a leased message and a consumer, mostly the one that has it.
func (w *world) settle(t *rapid.T) (*queue.Consumer, *item, uint64) {
	seq := w.of(t, queue.Leased)
	n, c := w.consumer(t)
	if i := w.model.find(seq); i != nil && i.state == queue.Leased && rapid.IntRange(0, 7).Draw(t, "other consumer") != 0 {
		n, c = i.consumer, w.consumers[i.consumer]
	}
	return c, w.model.held(n, seq), seq
}

func (w *world) same(t *rapid.T, what string, got bool, want *item) {
	if got != (want != nil) {
		t.Fatalf("%s: %v, want %+v", what, got, want)
	}
}

func (w *world) ack(t *rapid.T) {
	c, i, seq := w.settle(t)
	w.same(t, "Ack", w.q.Ack(w.now, c, seq), i)
	if i != nil {
		w.model.remove(i, queue.Acked)
	}
}

func (w *world) ackRange(t *rapid.T) {
	n, c := w.consumer(t)
	high := w.model.high
	first := rapid.Uint64Range(high-min(high, 60), high+2).Draw(t, "first")
	last := rapid.Uint64Range(first-min(first, 2), high+70).Draw(t, "last")
	var want []uint64
	for _, i := range w.model.messages {
		if i.state == queue.Leased && i.consumer == n && first <= i.seq && i.seq <= last {
			want = append(want, i.seq)
		}
	}
	got := w.q.Leased(c, first, last, []uint64{7})
	if got[0] != 7 || !slices.Equal(got[1:], want) {
		t.Fatalf("Leased(%d, %d): %d, want %d", first, last, got, want)
	}
	for _, seq := range want {
		w.same(t, "Ack", w.q.Ack(w.now, c, seq), w.model.held(n, seq))
		w.model.remove(w.model.find(seq), queue.Acked)
	}
}

func (w *world) nack(t *rapid.T) {
	c, i, seq := w.settle(t)
	delay := rapid.SampledFrom([]time.Duration{0, 1, 5, 30}).Draw(t, "delay")
	w.same(t, "Nack", w.q.Nack(w.now, c, seq, delay), i)
	if i != nil {
		w.model.did.Nacked++
		w.model.giveBack(w.now, i, delay, "nack")
	}
}

func (w *world) reject(t *rapid.T) {
	c, i, seq := w.settle(t)
	reason := rapid.SampledFrom([]string{"", "bad"}).Draw(t, "reason")
	w.same(t, "Reject", w.q.Reject(w.now, c, seq, reason), i)
	if i != nil {
		w.model.bury(i, map[string]string{"": "rejected", "bad": "rejected: bad"}[reason])
	}
}

func (w *world) extend(t *rapid.T) {
	c, i, seq := w.settle(t)
	d := rapid.SampledFrom([]time.Duration{0, 1, 5, 30}).Draw(t, "extension")
	w.same(t, "Extend", w.q.Extend(w.now, c, seq, d), i)
	if i != nil {
		i.end = w.now + int64(cmp.Or(d, w.model.settings.Lease))
	}
}

func (w *world) leave(t *rapid.T) {
	n, c := w.consumer(t)
	w.q.Leave(w.now, c)
	w.model.leave(w.now, n)
	if d, ok := w.q.Take(w.now, c, 0); ok || c.Leases() != 0 {
		t.Fatalf("a consumer that left takes %+v", d)
	}
	w.consumers[n] = nil
	if rapid.Bool().Draw(t, "another") {
		w.join(t)
	}
}

// advance lets time pass; now and then the clock is set back.
func (w *world) advance(t *rapid.T) {
	w.now += rapid.SampledFrom([]int64{0, 1, 2, 3, 5, 8, 13, -4}).Draw(t, "time")
}

func (w *world) tick(t *rapid.T) {
	w.advance(t)
	w.q.Tick(w.now)
	w.model.tick(w.now)
}

func (w *world) pause(*rapid.T) {
	if w.model.paused = !w.model.paused; w.model.paused {
		w.q.Pause()
	} else {
		w.q.Resume()
	}
}

func (w *world) purge(t *rapid.T) {
	deadLetters := rapid.Bool().Draw(t, "dead letters")
	if got, want := w.q.Purge(deadLetters), w.model.purge(deadLetters); got != want {
		t.Fatalf("Purge: %d, want %d", got, want)
	}
}

func (w *world) drop(t *rapid.T) {
	if !w.model.settings.DropOld {
		t.Skip("it drops nothing")
	}
	want := 0
	for want < 2 && w.model.dropOldest() {
		want++
	}
	if got := w.q.DropOldest(2); got != want {
		t.Fatalf("DropOldest: %d, want %d", got, want)
	}
}

func (w *world) requeue(t *rapid.T) {
	limit := rapid.IntRange(0, 3).Draw(t, "limit")
	if got, want := w.q.Requeue(w.now, limit), w.model.requeue(limit); !slices.Equal(got, want) {
		t.Fatalf("Requeue: %d, want %d", got, want)
	}
}

func (w *world) lost(t *rapid.T) {
	seqs := []uint64{
		w.of(t, queue.Ready, queue.Delayed, queue.Leased, queue.Dead),
		w.of(t, queue.Ready, queue.Leased),
	}
	for _, seq := range seqs {
		delete(w.kept, seq)
	}
	w.q.Lost(seqs)
	w.model.lost(seqs)
}

func (w *world) moved(t *rapid.T) {
	seq := w.of(t, queue.Dead)
	i := w.model.find(seq)
	if i != nil && !i.moving {
		i = nil
	}
	if rapid.Bool().Draw(t, "moved") {
		if w.q.Moved(seq); i != nil {
			w.model.remove(i, queue.Moved)
		}
		return
	}
	if w.q.NotMoved(seq); i != nil {
		i.moving = false
		w.model.save(i)
	}
}
