package broker

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/postbus/postbus/broker/internal/queue"
	"github.com/postbus/postbus/wire"
)

// queueRequest is a QUEUE frame of a peer.
type queueRequest struct {
	peer  *peer
	frame *wire.Queue
}

// operation does what a QUEUE frame asks of a queue, and answers it. An error is the
// answer.
type operation struct {
	do     func(l *loop, p *peer, f *wire.Queue, q *workQueue) error
	manage bool // for the owner of the queue only, the broker's user and root
}

var operations = map[string]operation{
	wire.OpInfo:    {(*loop).tellInfo, false},
	wire.OpPeek:    {(*loop).peek, false},
	wire.OpPurge:   {(*loop).purge, true},
	wire.OpPause:   {(*loop).pause, true},
	wire.OpResume:  {(*loop).resumeQueue, true},
	wire.OpDrain:   {(*loop).drainQueue, true},
	wire.OpRequeue: {(*loop).requeue, true},
	wire.OpDelete: {func(l *loop, p *peer, f *wire.Queue, q *workQueue) error {
		l.deleteQueue(p, f, q)
		return nil
	}, true},
}

func (l *loop) queueRequest(p *peer, payload []byte) error {
	f := new(wire.Queue)
	if err := wire.DecodeCold(payload, f); err != nil {
		return err
	}
	l.endRun()
	l.answerQueue(p, f)
	return nil
}

// answerQueue does what f asks for.
func (l *loop) answerQueue(p *peer, f *wire.Queue) {
	if err := l.operate(p, f); err != nil {
		l.refuseRequest(p, err, wire.ErrorBody{Token: f.Token})
	}
}

func (l *loop) operate(p *peer, f *wire.Queue) error {
	switch f.Op {
	case wire.OpDeclare:
		return l.declare(p, f)
	case wire.OpList:
		l.list(p, f)
		return nil
	}
	op, ok := operations[f.Op]
	if !ok {
		return badOption("QUEUE cannot %q", f.Op)
	}
	q, err := l.findQueue(f.Queue)
	if err != nil {
		return err
	}
	if uid := p.cred.UID; op.manage && uid != q.owner && uid != 0 && uid != uint32(os.Geteuid()) {
		return &wire.Error{Code: wire.CodeNotAllowed, Text: fmt.Sprintf(
			"queue %s belongs to uid %d: only that user, the broker's and root may %s it", q.name, q.owner, f.Op)}
	}
	if q.failed != nil && f.Op != wire.OpInfo && f.Op != wire.OpDelete {
		return &wire.Error{Code: wire.CodeStore, Text: fmt.Sprintf("queue %s cannot be used: %v", q.name, q.failed)}
	}
	return op.do(l, p, f, q)
}

// askedOne notes that a request of p that had to wait gets its answer.
func (l *loop) askedOne(p *peer) {
	p.asking--
	l.touch(p)
	l.resume(p)
}

// answer sends a QUEUED frame.
func (l *loop) answer(p *peer, a *wire.Queued) {
	if p.closed || p.ending {
		return
	}
	p.out = wire.AppendCold(p.out, wire.TypeQueued, a)
	l.touch(p)
}

// infosAFrame is how many queues one QUEUED frame tells of: each takes below 1 KiB but
// for its filters.
const infosAFrame = 16

// list tells of all queues, by name.
func (l *loop) list(p *peer, f *wire.Queue) {
	var all []*workQueue
	for _, q := range l.queues {
		if !q.deleted && !q.opening {
			all = append(all, q)
		}
	}
	slices.SortFunc(all, func(a, b *workQueue) int { return strings.Compare(a.name, b.name) })
	for {
		n := 0
		answer := wire.Queued{Token: f.Token, Count: int64(len(all))}
		for size := 0; n < len(all) && n < infosAFrame; n++ {
			for _, filter := range all[n].settings.Bind {
				size += len(filter)
			}
			if n > 0 && size > wire.MaxCold/2 {
				break
			}
			answer.Queues = append(answer.Queues, all[n].info(l))
		}
		all = all[n:]
		answer.More = len(all) > 0
		answer.Count = int64(len(answer.Queues))
		l.answer(p, &answer)
		if len(all) == 0 {
			return
		}
	}
}

func (l *loop) tellInfo(p *peer, f *wire.Queue, q *workQueue) error {
	l.answer(p, &wire.Queued{Token: f.Token, Count: 1, Queues: []wire.QueueInfo{q.info(l)}})
	return nil
}

// info is what there is to know of q.
func (q *workQueue) info(l *loop) wire.QueueInfo {
	s := q.core.Stats()
	info := wire.QueueInfo{
		Name: q.name, Settings: q.settings, Owner: q.owner, Paused: q.core.Paused(), Draining: q.draining,
		Ready: int64(s.Ready), Delayed: int64(s.Delayed), Leased: int64(s.Leased), Dead: int64(s.Dead),
		Bytes: s.Bytes, Consumers: int64(len(q.consumers)), StoreFree: -1,
		Pushed: s.Pushed, Delivered: s.Delivered, Redelivered: s.Redelivered, Acked: s.Acked, Nacked: s.Nacked,
		Expired: s.Expired, Dropped: s.Dropped + q.passed, Duplicates: s.Duplicates, Lost: s.Lost,
	}
	if s.OldestReady != 0 {
		info.OldestMS = max(0, (l.stamp-s.OldestReady)/int64(time.Millisecond))
	}
	if !q.keeper.busy && q.keeper.store != nil { // else it is its goroutine's
		q.room = q.keeper.store.Stats()
	}
	info.StoreUsed, info.StoreFree = q.room.Used, q.room.Free
	switch {
	case q.failed != nil:
		info.Trouble = q.failed.Error()
	case q.trouble != nil:
		info.Trouble = q.trouble.Error()
	}
	return info
}

// peeked is a message that a QUEUE frame looks at.
type peeked struct {
	seq  uint64
	view queue.View
}

// peek sends messages that stay where they are.
func (l *loop) peek(p *peer, f *wire.Queue, q *workQueue) error {
	states := map[string]queue.StateKind{
		"": 0, wire.StateReady: queue.Ready, wire.StateDelayed: queue.Delayed, wire.StateLeased: queue.Leased, wire.StateDead: queue.Dead,
	}
	want, ok := states[f.State]
	switch {
	case !ok:
		return badOption("state %q is unknown: use ready, delayed, leased, dead, or none", f.State)
	case f.Sub == 0 || p.subs[f.Sub] != nil || p.consumers[f.Sub] != nil:
		return badOption("peek as subscription %d: give a number that is above 0 and not in use", f.Sub)
	case f.Limit < 1 || f.Limit > wire.MaxPeek:
		return badOption("peek at %d messages: 1 to %d are possible at a time", f.Limit, wire.MaxPeek)
	}
	var found []peeked
	next := uint64(0)
	looked := 0
	q.core.Each(f.From, func(seq uint64, v queue.View) bool {
		if looked++; len(found) == f.Limit || looked > maxLook {
			next = seq
			return false
		}
		if v.State != queue.Pending && (want == 0 && v.State != queue.Dead || v.State == want) {
			found = append(found, peeked{seq, v})
		}
		return true
	})
	p.toil += looked
	p.asking++
	seqs := make([]uint64, len(found))
	for i := range found {
		seqs[i] = found[i].seq
	}
	q.fetch(l, seqs, func(l *loop, bodies [][]byte) {
		if len(bodies) < len(found) {
			next = found[len(bodies)].seq
		}
		l.showPeeked(p, f, q, found[:len(bodies)], bodies, next)
	})
	return nil
}

// maxLook is how many messages one QUEUE frame looks through.
const maxLook = 100_000

// showPeeked answers a peek.
func (l *loop) showPeeked(p *peer, f *wire.Queue, q *workQueue, found []peeked, bodies [][]byte, next uint64) {
	l.askedOne(p)
	if p.closed || p.ending {
		return
	}
	sent := int64(0)
	for i := range found {
		if bodies[i] == nil || l.record.decode(bodies[i]) != nil {
			continue // gone, or not readable: who consumes it is told
		}
		v := &found[i].view
		info := wire.MessageInfo{State: v.State.String(), Reason: v.Reason, Tries: int(v.Tries)}
		if v.State == queue.Dead {
			info.Origin = q.name
		}
		if v.Due != 0 {
			info.DueMS = v.Due / int64(time.Millisecond)
		}
		if p.target != f.Sub {
			p.out = wire.AppendTarget(p.out, f.Sub)
			p.target = f.Sub
		}
		p.out = l.record.appendMessage(p.out, found[i].seq, q.topic, &info)
		sent++
	}
	p.target = 0 // the number may be used for something else
	l.answer(p, &wire.Queued{Token: f.Token, Count: sent, Next: next})
}

func (l *loop) purge(p *peer, f *wire.Queue, q *workQueue) error {
	if f.State != "" && f.State != wire.StateDead {
		return badOption("purge messages that are %q: only dead ones can be purged apart, and none means all that are ready or delayed", f.State)
	}
	q.purges = append(q.purges, &purging{request: queueRequest{p, f}, dead: f.State == wire.StateDead, upTo: q.core.High()})
	p.asking++
	l.purgeMore(q)
	return nil
}

// purging is a purge under way.
type purging struct {
	request queueRequest
	dead    bool
	upTo    uint64 // what is pushed later stays
	count   int
}

// purgePage is how many messages a purge takes in one turn.
const purgePage = 10_000

// purgeMore takes the next page of the first purge, or ends it.
func (l *loop) purgeMore(q *workQueue) {
	g := q.purges[0]
	n := q.core.PurgeSome(g.dead, g.upTo, purgePage)
	g.count += n
	q.effects(l)
	if n == purgePage {
		l.dueBy(l.stamp)
		return
	}
	q.purges = q.purges[1:]
	if g.count > 0 {
		l.tell(&event{Queue: q.name, Event: eventPurged, Count: g.count})
	}
	l.answerKept(g.request.peer, g.request.frame, q, int64(g.count))
	l.askedOne(g.request.peer)
	if len(q.purges) > 0 {
		l.dueBy(l.stamp)
	}
}

// answerKept answers f once the store has what was decided so far.
func (l *loop) answerKept(p *peer, f *wire.Queue, q *workQueue, count int64) {
	c := q.commit(l)
	p.asking++
	c.answers = append(c.answers, func(l *loop, err error) {
		l.askedOne(p)
		if err != nil {
			l.refuseRequest(p, q.storeError(err), wire.ErrorBody{Token: f.Token})
			return
		}
		l.answer(p, &wire.Queued{Token: f.Token, Count: count})
	})
}

func (l *loop) pause(p *peer, f *wire.Queue, q *workQueue) error {
	if !q.core.Paused() {
		q.core.Pause()
		q.remember(l)
		l.announce(q, eventPaused, 0, "")
	}
	l.answerKept(p, f, q, 0)
	return nil
}

func (l *loop) resumeQueue(p *peer, f *wire.Queue, q *workQueue) error {
	if q.core.Paused() || q.draining {
		q.core.Resume()
		q.draining = false
		for _, r := range q.drainers {
			l.refuseRequest(r.peer, &wire.Error{Code: wire.CodeConflict, Text: fmt.Sprintf("queue %s was resumed before it was empty", q.name)}, wire.ErrorBody{Token: r.frame.Token})
		}
		q.drainers = nil
		q.remember(l)
		l.announce(q, eventResumed, 0, "")
		l.stir(q)
	}
	l.answerKept(p, f, q, 0)
	return nil
}

// drainQueue has q take no more pushes; it is answered when it is empty.
func (l *loop) drainQueue(p *peer, f *wire.Queue, q *workQueue) error {
	q.drainers = slices.DeleteFunc(q.drainers, func(r queueRequest) bool { return r.peer.closed })
	if len(q.drainers) >= maxWaiting {
		return tooManyWait(q)
	}
	if !q.draining {
		q.draining = true
		q.remember(l)
	}
	q.drainers = append(q.drainers, queueRequest{p, f})
	l.stir(q)
	return nil
}

// maxWaiting bounds the QUEUE frames that wait for something to happen to one queue.
const maxWaiting = 256

func tooManyWait(q *workQueue) error {
	return &wire.Error{Code: wire.CodeLimit, Text: fmt.Sprintf("%d requests wait for queue %s already, the limit", maxWaiting, q.name)}
}

// emptied answers those who wait for q to be empty, if it is.
func (l *loop) emptied(q *workQueue) {
	if len(q.drainers) == 0 {
		return
	}
	if s := q.core.Stats(); s.Pending+s.Ready+s.Delayed+s.Leased > 0 || len(q.parked)+len(q.late) > 0 || q.gathering != nil || q.keeper.busy {
		return
	}
	for _, r := range q.drainers {
		l.answer(r.peer, &wire.Queued{Token: r.frame.Token})
	}
	q.drainers = nil
	l.announce(q, eventDrained, 0, "")
}
