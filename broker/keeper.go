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
	usual time.Duration // how long one takes
	spare *commit
}

// commit is what a store is to do next, and what came of it.
type commit struct {
	fetch
	removes []uint64      // messages
	entries []store.Entry // messages and their marks
	states  []store.Entry
	notes   []store.Entry // settings
	forget  uint64
	pushed  []pushed
	settled []origin                   // whose SETTLE is confirmed then
	answers []func(l *loop, err error) // to whom it is told then

	block []byte // holds the messages' data

	bodies   [][]byte // of wanted; nil: it could not be read
	failures map[int]error
	stored   int   // entries that the store was asked for; those behind it failed by trouble
	trouble  error // full or out of space: the rest may be tried again
	unsaved  int   // states from here on are to be tried again
	lost     []*store.LostError
	took     time.Duration // by the store's calls, in its goroutine
	fatal    error         // the store is at its end
}

// fetch is bodies to be read. It comes before the rest of a commit, and what was read is
// told before that is done.
type fetch struct {
	wanted []uint64
	reads  []*reading
	bodies [][]byte // of wanted; nil: it could not be read
	failed error    // the store's, that ends it
}

// pushed is a message of a commit.
type pushed struct {
	seq   uint64
	by    origin
	entry int // its place in commit.entries; -1: it has none
	due   int64

	refused error // why it is not kept; nil without an entry: it is another's duplicate
}

// reading is a request for bodies; done is called in the loop with as many as were
// read within limit bytes, at least one. A body that could not be read is nil.
type reading struct {
	seqs  []uint64
	limit int
	done  func(l *loop, bodies [][]byte)

	bodies [][]byte
}

const (
	// blockSize is how much of messages' data is put in one piece of memory, bytes.
	blockSize = 64 << 10

	// fewWait is for how many pushes and settles a store's goroutine may be waited for
	// without sleep, and spinMost the longest that this is worth it.
	fewWait  = 2
	spinMost = 150 * time.Microsecond

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

// copy puts data into the commit's memory.
func (c *commit) copy(data []byte) []byte {
	if cap(c.block)-len(c.block) < len(data) {
		c.block = make([]byte, 0, max(blockSize, len(data)))
	}
	at := len(c.block)
	c.block = append(c.block, data...)
	return c.block[at:len(c.block):len(c.block)]
}

// idle reports whether there is nothing to be confirmed by a Sync.
func (c *commit) idle() bool {
	return len(c.removes)+len(c.entries)+len(c.states)+len(c.notes)+len(c.settled)+len(c.pushed)+len(c.answers) == 0 && c.forget == 0
}

// run has the store do it all. Removes come first: they make room.
func (c *commit) run(st store.Store) {
	if c.idle() || c.fatal != nil {
		return
	}
	if len(c.removes) > 0 {
		c.check(st.Remove(c.removes))
	}
	c.append(st)
	if c.fatal == nil && len(c.states) > 0 {
		n, err := st.Append(c.states)
		if c.unsaved = n; !c.check(err) {
			c.unsaved = len(c.states)
		}
	}
	if c.fatal == nil && len(c.notes) > 0 {
		_, err := st.Append(c.notes)
		c.check(err)
	}
	if c.fatal == nil && c.forget > 0 {
		c.check(st.Forget(c.forget))
	}
	if c.fatal == nil {
		c.check(st.Sync())
	}
}

// append stores the messages. One that is too large is passed over; where there is no
// more room the rest is not tried.
func (c *commit) append(st store.Store) {
	for c.stored < len(c.entries) && c.fatal == nil {
		n, err := st.Append(c.entries[c.stored:])
		c.stored += n
		switch {
		case !c.check(err) || c.stored == len(c.entries):
			if err != nil && n == 0 && len(c.lost) > maxLosses {
				c.fatal = err
			}
		case errors.Is(err, store.ErrTooLarge), errors.Is(err, store.ErrBadEntry):
			c.passOver(err)
		default:
			c.trouble = err
			return
		}
	}
}

// passOver leaves out an entry that the store does not take, and its mark: another push
// of that id is to be taken.
func (c *commit) passOver(err error) {
	if c.failures == nil {
		c.failures = make(map[int]error)
	}
	c.failures[c.stored] = err
	c.stored++
	if c.stored < len(c.entries) && c.entries[c.stored].Kind == store.Mark {
		c.stored++
	}
}

// maxLosses is how often a store may find within one commit that something was taken
// from it.
const maxLosses = 16

// check looks at the outcome of a store's call. It reports true when err is a refusal
// that the caller has to deal with.
func (c *commit) check(err error) bool {
	var lost *store.LostError
	switch {
	case err == nil:
		return false
	case errors.As(err, &lost):
		c.lost = append(c.lost, lost)
		return false
	case errors.Is(err, store.ErrFull), errors.Is(err, store.ErrNoSpace), errors.Is(err, store.ErrTooLarge), errors.Is(err, store.ErrBadEntry):
		return true
	}
	if c.fatal == nil {
		c.fatal = err
	}
	return false
}

// empty reports whether there is nothing to read.
func (f *fetch) empty() bool { return len(f.wanted)+len(f.reads) == 0 }

// read reads the bodies that are asked for.
func (f *fetch) read(st store.Store) {
	var block []byte // many small bodies lie in one piece of memory
	get := func(seq uint64) []byte {
		if cap(block)-len(block) < blockSize/16 {
			block = make([]byte, 0, blockSize)
		}
		at := len(block)
		all, err := st.Read(block, seq)
		switch {
		case err == nil:
			if block = all; cap(all) > blockSize {
				block = nil
			}
			return all[at:len(all):len(all)]
		case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDamaged), errors.Is(err, store.ErrLost):
		default: // not of this message alone
			f.failed = err
		}
		return nil
	}
	for _, seq := range f.wanted {
		f.bodies = append(f.bodies, get(seq))
	}
	for _, r := range f.reads {
		size := 0
		for _, seq := range r.seqs {
			body := get(seq)
			r.bodies = append(r.bodies, body)
			if size += len(body); size >= r.limit {
				break
			}
		}
	}
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
			began := time.Now()
			c.run(k.store)
			c.took = time.Since(began)
			b.post(func(l *loop) {
				k.busy = false
				k.usual += (c.took - k.usual) / 8
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
	if k.work != nil {
		k.busy = true
		k.work <- c // does not wait: there is one under way at most
		l.handed = true
		if few := len(c.pushed)+len(c.settled) <= fewWait; few && k.usual < spinMost {
			l.spinUntil = l.now.Add(2 * k.usual)
		}
		return
	}
	if f := c.takeFetch(k.store); f != nil {
		l.fetched(q, f)
	}
	c.run(k.store)
	l.kept(q, c)
}

// takeFetch reads what is to be read and takes it out of c; nil: there was nothing.
func (c *commit) takeFetch(st store.Store) *fetch {
	if c.fetch.empty() {
		return nil
	}
	f := c.fetch
	c.fetch = fetch{}
	f.read(st)
	c.fatal = f.failed
	return &f
}

// fetched takes the bodies that were read.
func (l *loop) fetched(q *workQueue, f *fetch) {
	for i, seq := range f.wanted {
		q.arrived(l, seq, f.bodies[i], f.failed == nil)
	}
	if len(f.wanted) > 0 {
		for _, consumer := range q.consumers {
			consumer.goOn(l)
		}
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
	trouble := c.trouble
	if c.fatal != nil {
		trouble = c.fatal
	}
	var again []parked
	for i := range c.pushed {
		p := &c.pushed[i]
		err := c.failures[p.entry]
		switch {
		case p.refused != nil:
			q.unpushed(l, p.by, p.refused)
			continue
		case p.entry < 0 && c.fatal == nil, err == nil && p.entry >= 0 && p.entry < c.stored && c.fatal == nil:
			q.pushKept(l, p, c)
			continue
		case err == nil:
			err = trouble
		}
		if p.entry >= 0 {
			q.core.Unstored(p.seq)
		}
		if c.fatal == nil && c.trouble != nil && q.settings.WhenFull != wire.WhenFullReject && p.entry >= 0 && c.failures[p.entry] == nil {
			again = append(again, q.again(c, p))
			continue
		}
		q.unpushed(l, p.by, q.storeError(err))
	}
	q.inTrouble(l, c, again)
	if c.fatal == nil && c.unsaved < len(c.states) {
		q.unsaved = newest(append(q.unsaved, c.states[c.unsaved:]...))
		l.dueBy(l.stamp + int64(tryAgain))
	}
}

// newest returns of several states of one message the last.
func newest(states []store.Entry) []store.Entry {
	last := make(map[uint64]int, len(states))
	for i := range states {
		last[states[i].Seq] = i
	}
	kept := states[:0]
	for i := range states {
		if last[states[i].Seq] == i {
			kept = append(kept, states[i])
		}
	}
	return kept
}

// pushKept tells of one push that it was kept.
func (q *workQueue) pushKept(l *loop, p *pushed, c *commit) {
	if p.entry >= 0 {
		q.core.Stored(l.stamp, p.seq)
		if q.level != wire.LevelMemory && p.due <= l.stamp {
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
	for i := range again {
		if p := again[i].by.peer; p != nil {
			p.parkedBytes += len(again[i].data) + parkedCost
			p.recharge()
		}
	}
	q.parked = append(again, q.parked...)
	l.dueBy(l.stamp + int64(tryAgain))
}

// storeError is what somebody is told whose message the store did not keep.
func (q *workQueue) storeError(err error) error {
	code := wire.CodeStore
	switch {
	case errors.Is(err, store.ErrFull):
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
	for _, seq := range lost.Seqs {
		q.bodies.take(seq)
	}
	l.log.Error("messages of a queue are lost", "queue", q.name, "messages", lost.Messages, "reason", lost.Why)
	l.announce(q, eventLost, 0, lost.Error())
}

// fail ends what q can do until its store is opened again.
func (l *loop) fail(q *workQueue, err error) {
	q.failed = err
	l.log.Error("a queue's store has failed", "queue", q.name, "error", err)
	l.announce(q, eventFailed, 0, err.Error())
	parked := q.parked
	q.parked = nil
	for i := range parked {
		parked[i].uncharge()
		q.unpushed(l, parked[i].by, q.storeError(err))
	}
	l.dueBy(l.stamp + int64(tryAgain))
}
