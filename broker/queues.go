package broker

import (
	"errors"
	"fmt"
	"slices"

	"github.com/postbus/postbus/broker/internal/queue"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
	"golang.org/x/sys/unix"
)

// takeQueue makes a queue of what its store had.
func (l *loop) takeQueue(name string, k *stored) *workQueue {
	q := &workQueue{
		name: name, topic: []byte(wire.QueueTopic + name), settings: k.note.Settings, owner: k.note.Owner,
		level: levelOf(&k.note.Settings), core: k.core, draining: k.note.Draining,
	}
	q.keeper.store = k.store
	if k.note.Paused {
		q.core.Pause()
	}
	if q.level >= wire.LevelDiskInterval {
		q.start(l.broker)
	}
	q.tap = &subscription{tapped: q, filters: append([]string{wire.QueueTopic + name}, q.settings.Bind...)}
	l.endRun()
	l.topics.subscribe(q.tap)
	l.queues[name] = q
	q.begin(l, k)
	if err := k.store.Stats().LastLost; err != nil {
		l.log.Error("messages of a queue are lost", "queue", name, "reason", err)
		l.announce(q, eventLost, 0, err.Error())
	}
	if k.junk > 0 {
		l.log.Error("a queue has records of another version: they are left alone", "queue", name, "records", k.junk)
	}
	q.core.Tick(l.stamp)
	q.effects(l)
	return q
}

// begin has the store know that the queue is in use, before anything is delivered: what a
// kill leaves then may have been delivered. A kill between the messages of a push and its
// marks has left them without.
func (q *workQueue) begin(l *loop, k *stored) {
	if q.unsure = k.note.Unsure; !k.note.Clean {
		q.unsure = k.store.Stats().High
	}
	q.remember(l)
	q.unmarked = true
	c := q.commit(l)
	c.answers = append(c.answers, func(l *loop, _ error) {
		q.unmarked = false
		l.stir(q)
	})
	q.core.MarksAfter(k.mark, func(seq uint64, id string, time int64) {
		c.notes = append(c.notes, markEntry(seq, id, time))
	})
}

// findQueue returns the queue of that name.
func (l *loop) findQueue(name string) (*workQueue, error) {
	q := l.queues[name]
	if q == nil || q.deleted || q.opening {
		return nil, noQueue(name)
	}
	return q, nil
}

// declare makes a queue unless it is there.
func (l *loop) declare(p *peer, f *wire.Queue) error {
	if err := wire.CheckQueueName(f.Queue); err != nil {
		return err
	}
	s, err := definite(f.Queue, f.Settings)
	if err != nil {
		return err
	}
	if q := l.queues[f.Queue]; q != nil {
		return l.declareAgain(p, f, q, &s)
	}
	switch {
	case len(l.queues) >= l.opts.MaxQueues:
		return &wire.Error{Code: wire.CodeLimit, Text: fmt.Sprintf("there are %d queues, the broker's limit: delete some, or raise it", len(l.queues))}
	case s.Level != string(store.LevelMemory) && l.opts.StateDir == "":
		return badOption("queue %s of level %s: this broker has no state directory to keep it in", f.Queue, s.Level)
	}
	owner := p.cred.UID
	if s.Level == string(store.LevelMemory) {
		k, err := openStore("", f.Queue, &s, l.now)
		if err != nil {
			return err
		}
		k.note.Owner = owner
		l.declared(p, f, l.takeQueue(f.Queue, k))
		return nil
	}
	p.asking++
	q := &workQueue{name: f.Queue, settings: s, opening: true, core: queue.New(coreSettings(&s), 0)}
	l.queues[f.Queue] = q
	b, dir, now := l.broker, l.opts.StateDir, l.now
	go func() {
		k, err := openStore(dir, f.Queue, &s, now)
		if err == nil {
			k.note.Owner, k.note.Settings = owner, s
			data := (&workQueue{settings: s, owner: owner, core: k.core}).note(false)
			if _, err = k.store.Append([]store.Entry{data}); err == nil {
				err = k.store.Sync()
			}
			if err != nil {
				err = errors.Join(err, k.store.Close(), deleteStore(dir, f.Queue, store.Level(s.Level)))
			}
		}
		if !b.post(func(l *loop) { l.opened(p, f, q, k, err) }) && err == nil {
			k.store.Close()
		}
	}()
	return nil
}

// opened goes on with a declaration whose store was made, or could not be.
func (l *loop) opened(p *peer, f *wire.Queue, place *workQueue, k *stored, err error) {
	delete(l.queues, f.Queue)
	l.askedOne(p)
	if err != nil {
		l.log.Error("a queue cannot be made", "queue", f.Queue, "error", err)
		l.refuseRequest(p, &wire.Error{Code: wire.CodeStore, Text: fmt.Sprintf("queue %s cannot be made: %v", f.Queue, err)}, wire.ErrorBody{Token: f.Token})
	} else if l.err != nil {
		k.store.Close()
		return
	} else {
		l.declared(p, f, l.takeQueue(f.Queue, k))
	}
	for _, r := range place.waiting { // the same was asked for meanwhile
		if !r.peer.closed {
			l.answerQueue(r.peer, r.frame)
		}
	}
}

// declareAgain answers a declaration of what is there already.
func (l *loop) declareAgain(p *peer, f *wire.Queue, q *workQueue, s *wire.QueueSettings) error {
	switch {
	case q.opening && len(q.waiting) >= maxWaiting:
		return tooManyWait(q)
	case q.opening:
		q.waiting = append(q.waiting, queueRequest{p, f})
		return nil
	case q.deleted:
		return &wire.Error{Code: wire.CodeConflict, Text: fmt.Sprintf("queue %s is just being deleted: try again", q.name)}
	}
	if d := differences(&q.settings, s); d != "" {
		return &wire.Error{Code: wire.CodeConflict, Text: fmt.Sprintf("queue %s is there with other settings: %s", q.name, d)}
	}
	l.answer(p, &wire.Queued{Token: f.Token, Queues: []wire.QueueInfo{q.info(l)}})
	return nil
}

func (l *loop) declared(p *peer, f *wire.Queue, q *workQueue) {
	l.announce(q, eventCreated, 0, "")
	if !p.closed {
		l.answer(p, &wire.Queued{Token: f.Token, Queues: []wire.QueueInfo{q.info(l)}})
	}
}

// deleteQueue removes a queue and everything in it.
func (l *loop) deleteQueue(p *peer, f *wire.Queue, q *workQueue) {
	q.deleted = true
	p.asking++
	q.waiting = append(q.waiting, queueRequest{p, f})
	l.endRun()
	if q.tap != nil {
		l.topics.unsubscribe(q.tap)
	}
	gone := &wire.Error{Code: wire.CodeNotFound, Text: fmt.Sprintf("queue %s was deleted", q.name)}
	for _, c := range slices.Clone(q.consumers) {
		peer, id := c.peer, c.id
		l.closeConsumer(c)
		l.refuseRequest(peer, gone, wire.ErrorBody{Sub: id})
	}
	parked := q.parked
	q.parked = nil
	for i := range parked {
		parked[i].uncharge()
		q.unpushed(l, parked[i].by, gone)
	}
	l.endJobs(q, gone)
	for _, r := range q.drainers {
		l.refuseRequest(r.peer, gone, wire.ErrorBody{Token: r.frame.Token})
	}
	q.drainers = nil
	q.commit(l) // pushes and settles before it are answered as they come out, then it goes
}

// finishDelete removes the store, beside the loop, once nothing is under way in it.
func (l *loop) finishDelete(q *workQueue) {
	if q.gathering != nil || q.keeper.busy || q.removing || q.reopening {
		return
	}
	q.removing = true
	b, dir := l.broker, l.opts.StateDir
	go func() {
		q.keeper.end()
		var err error
		if q.keeper.store != nil {
			err = q.keeper.store.Close()
		}
		err = errors.Join(err, deleteStore(dir, q.name, store.Level(q.settings.Level)))
		b.post(func(l *loop) {
			delete(l.queues, q.name)
			l.memory -= q.counted
			l.announce(q, eventDeleted, 0, "")
			for _, r := range q.waiting {
				l.askedOne(r.peer)
				if err != nil {
					l.refuseRequest(r.peer, &wire.Error{Code: wire.CodeStore, Text: fmt.Sprintf("queue %s is deleted, but not all of its store: %v", q.name, err)}, wire.ErrorBody{Token: r.frame.Token})
				} else {
					l.answer(r.peer, &wire.Queued{Token: r.frame.Token})
				}
			}
		})
	}()
}

// unparkAll drops what p has parked: nobody was told that it is kept.
func (l *loop) unparkAll(p *peer) {
	if p.parkedBytes == 0 {
		return
	}
	for _, q := range l.queues {
		q.parked = slices.DeleteFunc(q.parked, func(k parked) bool { return k.by.peer == p })
	}
}

// dropParked forgets the pushes that wait for room. Their clients have no verdict on
// them, and push them again to the next broker.
func (l *loop) dropParked() {
	for _, q := range l.queues {
		for i := range q.parked {
			k := &q.parked[i]
			if k.uncharge(); k.by.peer != nil {
				k.by.peer.pending--
			}
		}
		q.parked = nil
	}
}

// end ends the goroutine of a store, and waits for it.
func (k *keeper) end() {
	if k.work != nil {
		close(k.work)
		<-k.ended
		k.work = nil
	}
}

// tickQueues does what is due by the queues' clocks.
func (l *loop) tickQueues() {
	l.queuesAt = 0
	for _, q := range l.queues {
		if q.deleted || q.opening || q.broken {
			continue
		}
		if due := q.core.Due(); due != 0 && due <= l.stamp {
			q.core.Tick(l.stamp)
			l.leasesEnded(q)
			q.effects(l)
		}
		l.dueBy(q.core.Due())
		q.tryAgain(l)
		if r := q.requeuing; r != nil && r.open == 0 && !r.reading {
			l.requeueMore(q)
		}
		if len(q.purges) > 0 {
			l.purgeMore(q)
		}
	}
}

// tryAgain has what found no room in the store tried again, and a failed store opened
// again.
func (q *workQueue) tryAgain(l *loop) {
	if q.failed != nil {
		l.reopen(q)
		return
	}
	if len(q.unsaved) > 0 {
		c := q.commit(l)
		c.states = append(q.unsaved, c.states...)
		q.unsaved = nil
	}
	q.lateOnes(l)
	if len(q.parked) > 0 {
		q.unpark(l)
		l.dueBy(l.stamp + int64(tryAgain))
	}
}

// lateOnes puts removes that found no room into the commit, with those who wait for them.
func (q *workQueue) lateOnes(l *loop) {
	if len(q.late)+len(q.lateSettled)+len(q.lateAnswers) == 0 {
		return
	}
	c := q.commit(l)
	c.removes = append(q.late, c.removes...)
	c.settled = append(q.lateSettled, c.settled...)
	c.answers = append(q.lateAnswers, c.answers...)
	q.late, q.lateSettled, q.lateAnswers = nil, nil, nil
}

// dueBy sees to it that the queues' clocks are looked at by then; 0: never.
func (l *loop) dueBy(at int64) {
	if at != 0 && (l.queuesAt == 0 || at < l.queuesAt) {
		l.queuesAt = at
	}
}

// reopen opens a failed store again, beside the loop. Who had leases has none any more.
func (l *loop) reopen(q *workQueue) {
	if q.keeper.busy || q.gathering != nil || q.reopening {
		l.dueBy(l.stamp + int64(tryAgain))
		return
	}
	q.reopening = true
	b, dir, now, s := l.broker, l.opts.StateDir, l.now, q.settings
	old := q.keeper
	q.keeper = keeper{store: closedStore{}}
	go func() {
		old.end()
		old.store.Close()
		k, err := openStore(dir, q.name, &s, now)
		if !b.post(func(l *loop) { l.reopened(q, k, err) }) && err == nil {
			k.store.Close()
		}
	}()
}

func (l *loop) reopened(q *workQueue, k *stored, err error) {
	q.reopening = false
	if q.deleted {
		if err == nil {
			q.keeper.store = k.store
		}
		l.finishDelete(q)
		return
	}
	if err != nil {
		q.failed = err
		l.dueBy(l.stamp + int64(tryAgain))
		return
	}
	if l.err != nil {
		k.store.Close()
		return
	}
	for _, c := range q.consumers {
		c.leases = k.core.Consumer()
	}
	q.mover = nil
	if r := q.requeuing; r != nil {
		q.requeuing = nil
		l.refuseRequest(r.request.peer, q.storeError(q.failed), wire.ErrorBody{Token: r.request.frame.Token})
	}
	q.failed, q.trouble, q.full = nil, nil, false
	q.bodies, q.aheadTo, q.unsaved = shelf{}, 0, nil
	paused := q.core.Paused()
	if q.core = k.core; paused {
		q.core.Pause()
	}
	q.keeper.store = k.store
	if q.level >= wire.LevelDiskInterval {
		q.start(l.broker)
	}
	q.begin(l, k)
	l.log.Info("a queue's store is open again", "queue", q.name)
	l.announce(q, eventHealed, 0, "")
	q.effects(l)
	l.leasesEnded(q)
}

// finishTurns bounds finishQueues, should queues never come to an end with one another.
const finishTurns = 1000

// finishQueues has done what is under way: commits, and dead letters that move from one
// queue to another.
func (l *loop) finishQueues() {
	for range finishTurns {
		l.keep()
		busy := false
		for _, q := range l.queues {
			busy = busy || q.keeper.busy
		}
		if !busy && len(l.unkept) == 0 {
			return
		}
		if busy {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(l.wake), Events: unix.POLLIN}}, 100)
			l.runPosted()
		}
	}
}

// stopQueues gives back what queues hold, at the end of the loop: what was delivered and
// not settled is told so in the store.
func (l *loop) stopQueues() {
	for _, q := range l.queues {
		if q.opening || q.removing || q.broken || q.reopening {
			continue
		}
		if q.deleted {
			q.keeper.end()
			if err := errors.Join(q.keeper.store.Close(), deleteStore(l.opts.StateDir, q.name, store.Level(q.settings.Level))); err != nil {
				l.log.Error("a queue was not deleted", "queue", q.name, "error", err)
			}
			continue
		}
		for _, c := range slices.Clone(q.consumers) {
			l.closeConsumer(c)
		}
		q.core.ClearEffects()
		q.keeper.end() // the commit under way is done, and its outcome posted to nobody
		c := q.gathering
		if c == nil {
			c = new(commit)
		}
		c.fetch = fetch{}
		c.states = append(q.unsaved, c.states...)
		c.removes = append(q.late, c.removes...)
		if q.failed == nil {
			c.notes = append(c.notes, q.note(true))
			if c.run(q.keeper.store); c.fatal != nil {
				l.log.Error("a queue was not closed in order", "queue", q.name, "error", c.fatal)
			}
		}
		if err := q.keeper.store.Close(); err != nil {
			l.log.Error("a queue was not closed in order", "queue", q.name, "error", err)
		}
	}
}

// closedStore is the store of a queue whose own is being opened again.
type closedStore struct{ store.Store }

func (closedStore) Read(dst []byte, _ uint64) ([]byte, error) { return dst, store.ErrClosed }
func (closedStore) Stats() store.Stats                        { return store.Stats{Free: -1} }
func (closedStore) Close() error                              { return nil }
