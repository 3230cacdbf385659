package queue_test

import (
	"slices"
	"testing"

	"github.com/postbus/postbus/broker/internal/queue"
)

func TestRestore(t *testing.T) {
	restore := func(r *rig, seq uint64, m queue.Message, s queue.State) { r.q.Restore(seq, &m, s, false) }
	cases(t, queue.Settings{Dedup: 10, DropOld: true}, map[string]func(*rig){
		"plain, and the next seq": func(r *rig) {
			restore(r, 3, queue.Message{Size: 5}, queue.State{})
			restore(r, 700, queue.Message{Priority: 1}, queue.State{})
			restore(r, 700, queue.Message{}, queue.State{}) // it is there
			r.push(plain(1)...)
			r.takes(700, 3, 701)
			r.effects()
			if s := r.q.Stats(); s.Bytes != 5 || s.Pushed != 1 || s.Redelivered != 0 {
				r.Errorf("%+v", s)
			}
		},
		"in another order": func(r *rig) {
			for _, seq := range []uint64{900, 1, 500, 2, 501} {
				restore(r, seq, queue.Message{}, queue.State{})
			}
			var seqs []uint64
			r.q.Each(2, func(seq uint64, _ queue.View) bool {
				seqs = append(seqs, seq)
				return seq < 501
			})
			if !slices.Equal(seqs, []uint64{2, 500, 501}) {
				r.Errorf("%d", seqs)
			}
			r.takes(1, 2, 500, 501, 900)
		},
		"tries, and maybe delivered": func(r *rig) {
			restore(r, 1, queue.Message{}, queue.State{Tries: 2})
			r.q.Restore(2, &queue.Message{}, queue.State{}, true)
			if d := r.take(1); d.Tries != 3 || !d.Redelivered {
				r.Errorf("%+v", d)
			}
			if d := r.take(2); d.Tries != 1 || !d.Redelivered {
				r.Errorf("%+v", d)
			}
		},
		"delays": func(r *rig) {
			restore(r, 1, queue.Message{Due: 1005}, queue.State{})
			restore(r, 2, queue.Message{Due: 900}, queue.State{Tries: 1, Due: 1003})
			restore(r, 3, queue.Message{Due: 900}, queue.State{Tries: 1})
			restore(r, 4, queue.Message{Due: 900}, queue.State{})
			r.due(-100)
			r.tick(0)
			r.takes(3, 4)
			r.due(3)
			r.tick(5)
			r.takes(1, 2)
		},
		"dead letters": func(r *rig) {
			restore(r, 1, queue.Message{Key: "a"}, queue.State{Tries: 4, Dead: true, Reason: "rejected"})
			restore(r, 2, queue.Message{Key: "a"}, queue.State{})
			r.takes(2)
			if v, _ := r.q.Look(1); v.State != queue.Dead || v.Reason != "rejected" || v.Tries != 4 {
				r.Errorf("%+v", v)
			}
			r.q.Requeue(r.now, 0)
			r.ack(2)
			if d := r.take(1); d.Tries != 1 || !d.Redelivered {
				r.Errorf("%+v", d)
			}
		},
		"one returned with a delay holds its key": func(r *rig) {
			restore(r, 1, queue.Message{Key: "a", Due: 1001}, queue.State{})
			restore(r, 2, queue.Message{Key: "a"}, queue.State{})
			restore(r, 3, queue.Message{Key: "a"}, queue.State{Tries: 1, Due: 1005})
			restore(r, 4, queue.Message{Key: "a"}, queue.State{Tries: 1, Due: 1002})
			r.take(0)
			r.tick(4)
			r.take(0)
			r.tick(1)
			for _, seq := range []uint64{3, 1, 2, 4} {
				r.takes(seq)
				r.ack(seq)
			}
		},
		"beyond what would fit": func(r *rig) {
			restore(r, 1, queue.Message{Size: 800}, queue.State{})
			restore(r, 2, queue.Message{Size: 800}, queue.State{})
			r.push(queue.Message{Size: 300})
			r.effects("remove 1 dropped", "remove 2 dropped")
		},
		"marks": func(r *rig) {
			r.q.RestoreMark(9, "c", 998)
			r.q.RestoreMark(4, "a", 993)
			restore(r, 7, queue.Message{ID: "b", Time: 995}, queue.State{})
			r.q.RestoreMark(7, "b", 995)
			r.q.RestoreMark(2, "c", 980) // an earlier push of it
			r.q.RestoreMark(11, "", 999)
			for _, id := range []string{"a", "b", "c"} {
				r.pushed(queue.Message{ID: id}, queue.Duplicate)
			}
			if s := r.q.Stats(); s.Marks != 3 {
				r.Errorf("%+v", s)
			}
			r.due(3)
			r.tick(5)
			r.effects("forget 7")
			r.tick(3)
			r.effects("forget 9")
			r.due(-1)
			if seq := r.push(queue.Message{ID: "a"}); seq != 10 {
				r.Errorf("the next is %d", seq)
			}
		},
	})
}

func TestViews(t *testing.T) {
	r := newRig(t, queue.Settings{TTL: 90})
	r.push(queue.Message{Size: 5, Key: "a", Priority: 3}, queue.Message{Key: "a"}, queue.Message{Due: 1040}, queue.Message{Priority: 4})
	r.pushed(queue.Message{Due: 1050}, queue.Taken)
	r.take(4)
	r.reject(4, "x")
	r.take(1)
	want := []queue.View{
		{State: queue.Leased, Tries: 1, Due: 1010, Priority: 3, Key: "a", Expires: 1090, Time: 1000, Size: 5, Redelivered: true},
		{State: queue.Ready, Key: "a", Expires: 1090, Time: 1000},
		{State: queue.Delayed, Due: 1040, Expires: 1090, Time: 1000},
		{State: queue.Dead, Tries: 1, Priority: 4, Reason: "rejected: x", Expires: 1090, Time: 1000, Redelivered: true},
		{State: queue.Pending, Expires: 1090, Time: 1000},
	}
	var got []queue.View
	r.q.Each(0, func(seq uint64, v queue.View) bool {
		got = append(got, v)
		return true
	})
	if !slices.Equal(got, want) {
		t.Errorf("\n%+v, want\n%+v", got, want)
	}
	r.now = 1020
	r.push(plain(1)...)
	s := r.q.Stats()
	if s.Pending != 1 || s.Ready != 2 || s.Delayed != 1 || s.Leased != 1 || s.Dead != 1 || s.OldestReady != 1000 || s.Bytes != 5 {
		t.Errorf("%+v", s)
	}
	if r.q.Len() != 6 || r.q.Waiting() != 2 || r.q.Bytes() != 5 {
		t.Error(r.q.Len(), r.q.Waiting(), r.q.Bytes())
	}
	r.q.Purge(false)
	if s := r.q.Stats(); s.OldestReady != 0 {
		t.Errorf("%+v", s)
	}
	if kinds := queue.Leased.String() + queue.StateKind(0).String(); kinds != "leasednone" {
		t.Error(kinds)
	}
}
