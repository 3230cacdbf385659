package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// keeper carries out what a queue has decided: by its store, in the loop or, where
// that waits for a disk, in a goroutine of its own.
type keeper struct {
	store store.Store
	work  chan *commit  // to the goroutine; nil: in the loop
	ended chan struct{} // closed when the goroutine has ended
	busy  bool          // a commit is under way
	usual time.Duration // how long one takes; while one is under way its goroutine's
	spare *commit
}

const (
	// blockSize is how much of messages' data is put in one piece of memory at most, and
	// smallBlock at least, in bytes.
	blockSize  = 64 << 10
	smallBlock = 256

	// A commit for a disk is done in the loop where one client waits for it and nobody
	// else is about: to hand it over costs more than some disks. aloneTurns is how long
	// that must have been so, quickDisk how long a commit takes at most, usually, and
	// fewWait how many pushes and settles are in it.
	aloneTurns = 16
	quickDisk  = 250 * time.Microsecond
	fewWait    = 2

	// tryAgain is how often a store without room is asked again.
	tryAgain = time.Second
)

// fresh returns an empty commit.
func (k *keeper) fresh() *commit {
	c := k.spare
	if k.spare = nil; c == nil {
		c = new(commit)
	}
	return c
}

// recycle makes c empty and keeps it for the next time.
func (k *keeper) recycle(c *commit) {
	clear(c.entries)
	clear(c.pushed)
	clear(c.settled)
	block := c.block[:0]
	if _, copies := k.store.(*store.Memory); !copies || cap(block) > blockSize {
		block = nil // its messages are in the cache, or it was a large one's
	}
	*c = commit{
		entries: c.entries[:0], pushed: c.pushed[:0], settled: c.settled[:0], removes: c.removes[:0], block: block,
	}
	k.spare = c
}

// start makes a goroutine for the store's calls.
func (q *workQueue) start(b *Broker) {
	k := &q.keeper
	k.work, k.ended = make(chan *commit, 1), make(chan struct{})
	go func() {
		defer close(k.ended)
		for c := range k.work {
			if f := c.takeFetch(k.store); f != nil {
				b.post(func(l *loop) { l.fetched(q, f) })
			}
			k.run(c)
			b.post(func(l *loop) {
				k.busy = false
				l.kept(q, c)
			})
		}
	}()
}

// keep has the stores do what the turn has decided.
func (l *loop) keep() {
	for len(l.unkept) > 0 {
		queues := l.unkept
		l.unkept = l.keeping[:0]
		for _, q := range queues {
			q.listed = false
			l.keepOne(q)
		}
		clear(queues)
		l.keeping = queues
	}
}

func (l *loop) keepOne(q *workQueue) {
	k, c := &q.keeper, q.gathering
	if c == nil || k.busy {
		return // what is gathered goes when the one under way is back
	}
	q.gathering = nil
	l.batch++
	if q.failed != nil {
		f := c.fetch
		c.fetch = fetch{}
		c.fatal = q.failed
		for _, r := range f.reads {
			r.done(l, nil)
		}
		l.kept(q, c)
		return
	}
	if k.work != nil && !l.worthWaiting(k, c) {
		k.busy = true
		k.work <- c // does not wait: there is one under way at most
		l.handed = true
		return
	}
	if f := c.takeFetch(k.store); f != nil {
		l.fetched(q, f)
	}
	k.run(c)
	l.kept(q, c)
}

// worthWaiting reports whether the loop does a commit for a disk itself.
func (l *loop) worthWaiting(k *keeper, c *commit) bool {
	return l.alone >= aloneTurns && k.usual > 0 && k.usual < quickDisk && len(c.pushed)+len(c.settled) <= fewWait && c.fetch.empty()
}

// run has the store do c, and notes how long it took.
func (k *keeper) run(c *commit) {
	began := time.Now()
	c.run(k.store)
	if took := time.Since(began); k.usual == 0 {
		k.usual = took
	} else {
		k.usual += (took - k.usual) / 8
	}
}

// fetched takes the bodies that were read.
func (l *loop) fetched(q *workQueue, f *fetch) {
	for _, lost := range f.lost {
		l.lose(q, lost)
	}
	for _, r := range f.reads {
		r.done(l, r.bodies)
	}
	q.effects(l)
}

// kept takes note of what a store has done.
func (l *loop) kept(q *workQueue, c *commit) {
	if c.fatal != nil && q.failed == nil {
		l.fail(q, c.fatal)
	}
	for _, lost := range c.lost {
		l.lose(q, lost)
	}
	q.tookStock(l, c)
	if c.unremoved && c.fatal == nil {
		q.removeLater(l, c)
	}
	l.confirm(q, c)
	q.keeper.recycle(c)
	if q.gathering != nil && !q.listed {
		q.listed = true
		l.unkept = append(l.unkept, q)
	}
	if q.trouble == nil {
		q.unpark(l)
		q.full = q.full && (len(q.parked) > 0 || !q.core.HasRoom(0))
	}
	q.effects(l)
	if q.deleted {
		l.finishDelete(q)
	}
}

// tookStock says what c kept: to the core, and to those who pushed.
func (q *workQueue) tookStock(l *loop, c *commit) {
	var again []parked
	var unkept map[uint64]int // by message that is not kept, its entry
	for i := range c.pushed {
		p := &c.pushed[i]
		if entry, ok := unkept[p.first]; ok {
			p.entry = entry // the first is not kept, so this is none of it either
		}
		switch err := c.outcome(p.entry); {
		case p.refused != nil:
			q.unpushed(l, p.by, p.refused)
		case err == nil:
			q.pushKept(l, p, c)
		default:
			if p.seq != 0 {
				q.core.Unstored(p.seq)
				if unkept == nil {
					unkept = make(map[uint64]int)
				}
				unkept[p.seq] = p.entry
			}
			again = q.notKept(l, c, p, again)
		}
	}
	if q.gathering != nil && len(unkept) > 0 {
		for i := range q.gathering.pushed { // duplicates that came meanwhile
			if p := &q.gathering.pushed[i]; p.first != 0 {
				if entry, ok := unkept[p.first]; ok {
					again = q.notKept(l, c, &pushed{by: p.by, entry: entry}, again)
					p.by = origin{}
				}
			}
		}
	}
	q.inTrouble(l, c, again)
	if c.fatal == nil && c.unsaved < len(c.states) {
		q.unsaved = newest(append(q.unsaved, c.states[c.unsaved:]...))
		l.dueBy(l.stamp + int64(tryAgain))
	}
}

// removeLater puts what the store had no room to write down into the next commit, with
// those who wait for it.
func (q *workQueue) removeLater(l *loop, c *commit) {
	q.late = append(q.late, c.removes...)
	q.lateSettled = append(q.lateSettled, c.settled...)
	q.lateAnswers = append(q.lateAnswers, c.answers...)
	clear(c.settled)
	c.settled, c.answers = c.settled[:0], nil
	l.dueBy(l.stamp + int64(tryAgain))
}

// notKept tells of one push that it was not kept, or adds it to those that are tried
// again.
func (q *workQueue) notKept(l *loop, c *commit, p *pushed, again []parked) []parked {
	if c.fatal == nil && c.trouble != nil && q.settings.WhenFull != wire.WhenFullReject && p.entry >= 0 && c.failures[p.entry] == nil {
		return append(again, q.again(c, p))
	}
	q.unpushed(l, p.by, q.storeError(c.outcome(p.entry)))
	return again
}

// pushKept tells of one push that it was kept.
func (q *workQueue) pushKept(l *loop, p *pushed, c *commit) {
	if p.seq != 0 {
		q.core.Stored(l.stamp, p.seq)
		if q.level != wire.LevelMemory && p.plain {
			q.cache(p.seq, c.entries[p.entry].Data)
		}
	}
	switch by := &p.by; {
	case by.from != nil:
		by.from.moved(l, by.number)
	case by.peer != nil && !by.peer.closed:
		l.answerPublish(by.peer, by.number, nil)
	}
}

// again makes a parked push of one that found no room in the store.
func (q *workQueue) again(c *commit, p *pushed) parked {
	var r record
	data := c.entries[p.entry].Data
	_ = r.decode(data) // it is our own
	return parked{p.by, r.Message, data}
}

// inTrouble notes whether the store has room, and what is to be tried again.
func (q *workQueue) inTrouble(l *loop, c *commit, again []parked) {
	if c.trouble == nil {
		if len(c.entries) > 0 || len(c.removes) > 0 {
			q.trouble = nil
		}
		return
	}
	q.tellFull(l)
	if q.settings.WhenFull == wire.WhenFullDropOld {
		q.core.DropOldest(len(c.entries) - c.stored)
	}
	q.trouble = c.trouble
	if c.stored < len(c.entries) && c.entries[c.stored].Kind == store.Mark { // its message is kept
		q.unsaved = append(q.unsaved, c.entries[c.stored])
	}
	if len(again) > 0 { // what came meanwhile comes behind
		again = q.ungather(again)
	}
	for i := range again {
		if p := again[i].by.peer; p != nil && !p.closed {
			p.parkedBytes += len(again[i].data) + parkedCost
			p.recharge()
		}
	}
	q.parked = append(again, q.parked...)
	l.dueBy(l.stamp + int64(tryAgain))
}

// ungather adds the pushes that are gathered to those that are tried again.
func (q *workQueue) ungather(again []parked) []parked {
	c := q.gathering
	if c == nil || len(c.entries) == 0 {
		return again
	}
	rest := c.pushed[:0]
	for i := range c.pushed {
		p := &c.pushed[i]
		if p.entry < 0 || p.seq == 0 {
			rest = append(rest, *p)
			continue
		}
		q.core.Unstored(p.seq)
		again = append(again, q.again(c, p))
	}
	clear(c.pushed[len(rest):])
	c.pushed = rest
	clear(c.entries)
	c.entries = c.entries[:0]
	return again
}

// storeError is what somebody is told whose message the store did not keep.
func (q *workQueue) storeError(err error) error {
	code := wire.CodeStore
	switch {
	case errors.Is(err, store.ErrFull), errors.Is(err, store.ErrNoSpace): // both pass
		code = wire.CodeFull
	case errors.Is(err, store.ErrTooLarge):
		code = wire.CodeTooLarge
	}
	return &wire.Error{Code: code, Text: fmt.Sprintf("queue %s did not keep it: %v", q.name, err)}
}

// confirm tells those who settled that it is kept.
func (l *loop) confirm(q *workQueue, c *commit) {
	for i := range c.settled {
		s := &c.settled[i]
		if s.peer.closed {
			continue
		}
		var err error
		if c.fatal != nil {
			err = q.storeError(c.fatal)
		}
		l.settleKept(s, err)
	}
	for _, tell := range c.answers {
		tell(l, c.fatal)
	}
}

// lose takes note of messages that somebody else removed.
func (l *loop) lose(q *workQueue, lost *store.LostError) {
	q.core.Lost(lost.Seqs)
	q.effects(l)
	for _, seq := range lost.Seqs {
		q.bodies.take(seq)
	}
	l.leasesEnded(q)
	l.log.Error("messages of a queue are lost", "queue", q.name, "messages", lost.Messages, "reason", lost.Why)
	l.tell(&event{Queue: q.name, Event: eventLost, Count: max(lost.Messages, 0), Reason: lost.Error()})
}

// fail ends what q can do until its store is opened again.
func (l *loop) fail(q *workQueue, err error) {
	q.failed = err
	l.log.Error("a queue's store has failed", "queue", q.name, "error", err)
	l.announce(q, eventFailed, 0, err.Error())
	q.lateOnes(l) // they are answered with that
	l.endJobs(q, q.storeError(err))
	parked := q.parked
	q.parked = nil
	for i := range parked {
		parked[i].uncharge()
		q.unpushed(l, parked[i].by, q.storeError(err))
	}
	l.dueBy(l.stamp + int64(tryAgain))
}
