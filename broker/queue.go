package broker

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/postbus/postbus/broker/internal/queue"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// workQueue is a queue: its decisions (core), its store, and who pushes to it and
// consumes from it.
//
// What the core decides within a turn is gathered in a commit. At the end of the turn
// the commit is carried out by the store: in the loop where the store only calls the
// kernel, beside it where it waits for a disk; then all that was gathered meanwhile is
// the next one, so that one sync serves everybody who waits. Only then are pushes
// acknowledged and delivered, and settles confirmed.
type workQueue struct {
	name     string
	topic    []byte // that of pushes by name
	settings wire.QueueSettings
	owner    uint32 // uid
	level    wire.Level
	core     *queue.Queue
	tap      *subscription // which topics it takes
	keeper   keeper

	gathering *commit
	listed    bool // in loop.unkept
	stirred   bool // in loop.stirred

	consumers   []*consumer
	roomy       []*consumer // those that may have room
	turn        int         // which of them is next
	parked      []parked
	unsaved     []store.Entry // states that found no room in the store,
	late        []uint64      // and removes,
	lateSettled []origin      // with those who wait for them
	lateAnswers []func(l *loop, err error)
	bodies      shelf  // of messages that are kept, to be delivered soon
	aheadTo     uint64 // up to which bodies were read ahead
	counted     int64  // bytes of it in loop.memory
	ahead       bool   // bodies are being read ahead

	draining  bool
	drainers  []queueRequest // that wait until it is empty
	requeuing *requeuing
	purges    []*purging
	mover     *queue.Consumer // has the leases of what is requeued
	room      store.Stats     // as last seen

	passed    uint64 // publishes of other users that it had no room for
	full      bool   // it was told that it is
	trouble   error  // why its store took nothing the last time
	failed    error  // its store can do nothing more
	broken    bool   // its store could not be opened at the start
	reopening bool   // its store is being opened again

	unmarked bool           // a kill would leave a store that seems to have been closed in order
	unsure   uint64         // messages up to it may have been delivered by a broker that was killed
	opening  bool           // its store is being made
	deleted  bool           // it goes
	removing bool           // its store is being removed
	waiting  []queueRequest // for one of these
}

// parked is a push that waits for room (when-full block).
type parked struct {
	by      origin
	message queue.Message
	data    []byte
}

// origin is who waits for a push: a publish of a peer, or a dead letter of another
// queue.
type origin struct {
	peer   *peer
	number uint64 // of the publish, or the settle; or of the message in from
	sub    uint32 // of a settle
	from   *workQueue
}

const (
	// cacheBytes bounds the bodies that a queue of level kernel or disk keeps in
	// memory so that they need not be read again, in bytes.
	cacheBytes = 8 << 20

	// bodyCost is about what a body takes beside its bytes.
	bodyCost = 64

	// messageCost is about what a message takes in the core and in its store beside its
	// bytes.
	messageCost = 100

	// markCost is about what an id takes that is remembered.
	markCost = 300

	// parkedCost is about what a parked push takes beside its data, in bytes.
	parkedCost = 160
)

// refusePush says why q takes no push of so many bytes now, or nil. memory is what all
// queues of level memory hold.
func (q *workQueue) refusePush(l *loop, size int, memory int64) error {
	switch {
	case q.failed != nil:
		return &wire.Error{Code: wire.CodeStore, Text: fmt.Sprintf("queue %s takes nothing, its store has failed: %v", q.name, q.failed)}
	case q.draining:
		return &wire.Error{Code: wire.CodeDraining, Text: fmt.Sprintf("queue %s is being drained: resume it to push again", q.name)}
	case q.level == wire.LevelMemory && memory+int64(size) > l.opts.MaxQueueMemory:
		return &wire.Error{Code: wire.CodeLimit, Text: fmt.Sprintf(
			"the queues of level memory hold %d bytes, the broker's limit is %d: take some out, use another level, or raise it", memory, l.opts.MaxQueueMemory)}
	case q.settings.WhenFull == wire.WhenFullReject && !q.core.HasRoom(size):
		q.tellFull(l)
		return q.fullError()
	}
	return nil
}

func (q *workQueue) fullError() error {
	return &wire.Error{Code: wire.CodeFull, Text: fmt.Sprintf(
		"queue %s is full: it holds %d messages of %d and %d bytes of %d: take some out, or raise its limits",
		q.name, q.core.Len(), q.settings.MaxMessages, q.core.Bytes(), q.settings.MaxBytes)}
}

// push offers a message to q and returns how many answers by has to wait for.
func (q *workQueue) push(l *loop, by origin, m *queue.Message, data []byte) (open int) {
	if len(q.parked) > 0 {
		q.park(l, by, m, data)
		return 1
	}
	seq, verdict := q.core.Push(l.stamp, m)
	if len(q.core.Effects()) > 0 {
		q.effects(l)
	}
	switch verdict {
	case queue.Full:
		q.tellFull(l)
		if q.settings.WhenFull == wire.WhenFullReject {
			c := q.commit(l)
			c.pushed = append(c.pushed, pushed{by: by, entry: -1, refused: q.fullError()})
		} else { // what could be dropped is on its way to the store yet, or leased
			q.park(l, by, m, data)
		}
		return 1
	case queue.Duplicate:
		// The first may be on its way to the store yet: it is what the answer waits for.
		c := q.commit(l)
		c.pushed = append(c.pushed, pushed{by: by, entry: -1, first: q.core.First(m.ID)})
		return 1
	}
	q.gather(l, seq, by, m, data)
	return 1
}

// gather puts a message that the core took into the commit.
func (q *workQueue) gather(l *loop, seq uint64, by origin, m *queue.Message, data []byte) {
	c := q.commit(l)
	data = c.copy(data)
	c.pushed = append(c.pushed, pushed{seq: seq, by: by, entry: len(c.entries), plain: m.Due == 0 && m.Priority == 0 && m.Key == ""})
	c.entries = append(c.entries, store.Entry{Kind: store.Message, Seq: seq, Data: data})
	if m.ID != "" && q.settings.DedupMS > 0 {
		c.entries = append(c.entries, markEntry(seq, m.ID, m.Time))
	}
}

// markEntry is what remembers the id of message seq, also when that is gone.
func markEntry(seq uint64, id string, time int64) store.Entry {
	return store.Entry{Kind: store.Mark, Seq: seq, Data: append(binary.BigEndian.AppendUint64(nil, uint64(time)), id...)}
}

// park keeps a push until there is room.
func (q *workQueue) park(l *loop, by origin, m *queue.Message, data []byte) {
	q.parked = append(q.parked, parked{by, *m, slices.Clone(data)})
	if p := by.peer; p != nil {
		p.parkedBytes += len(data) + parkedCost
		p.recharge()
	}
}

// unpark pushes what is parked as far as there is room.
func (q *workQueue) unpark(l *loop) {
	n := 0
	for ; n < len(q.parked) && q.failed == nil; n++ {
		k := &q.parked[n]
		if k.by.peer != nil && k.by.peer.closed {
			continue // nobody was told that it is kept
		}
		if !q.core.HasRoom(k.message.Size) {
			break
		}
		seq, verdict := q.core.Push(l.stamp, &k.message)
		q.effects(l)
		if verdict == queue.Full {
			break
		}
		if verdict == queue.Duplicate {
			q.commit(l).pushed = append(q.commit(l).pushed, pushed{by: k.by, entry: -1, first: q.core.First(k.message.ID)})
		} else {
			q.gather(l, seq, k.by, &k.message, k.data)
		}
		k.uncharge()
	}
	clear(q.parked[:n])
	if q.parked = q.parked[n:]; len(q.parked) == 0 {
		q.parked = nil
	}
}

func (k *parked) uncharge() {
	if p := k.by.peer; p != nil && !p.closed {
		p.parkedBytes -= len(k.data) + parkedCost
		p.recharge()
	}
}

// unpushed tells by that its message was not kept.
func (q *workQueue) unpushed(l *loop, by origin, err error) {
	switch {
	case by.from != nil:
		by.from.notMoved(l, by.number)
	case by.peer != nil && !by.peer.closed:
		l.answerPublish(by.peer, by.number, err)
	}
}

// effects carries out what the core has decided.
func (q *workQueue) effects(l *loop) {
	var bury []queue.Effect
	for _, e := range q.core.Effects() {
		switch e.Kind {
		case queue.Remove:
			c := q.commit(l)
			c.removes = append(c.removes, e.Seq)
			q.bodies.take(e.Seq)
		case queue.Save:
			c := q.commit(l)
			c.states = append(c.states, store.Entry{Kind: store.State, Seq: e.Seq, Data: appendState(nil, &e.State)})
			if e.State.Dead {
				l.announce(q, eventDead, e.Seq, e.State.Reason)
			}
		case queue.Bury:
			bury = append(bury, e)
		case queue.Forget:
			q.commit(l).forget = e.Seq
		}
	}
	q.core.ClearEffects()
	for i := range bury { // these have effects of their own
		q.bury(l, &bury[i])
	}
	if q.level == wire.LevelMemory {
		now := q.core.Bytes() + messageCost*int64(q.core.Len()) + markCost*int64(q.core.Marks())
		l.memory += now - q.counted
		q.counted = now
	}
	l.stir(q)
	l.dueBy(q.core.Due())
}

// commit returns what is gathered for the store.
func (q *workQueue) commit(l *loop) *commit {
	if q.gathering == nil {
		q.gathering = q.keeper.fresh()
	}
	if !q.listed {
		q.listed = true
		l.unkept = append(l.unkept, q)
	}
	return q.gathering
}

// stir says that q may have something to deliver, or to somebody.
func (l *loop) stir(q *workQueue) {
	if !q.stirred {
		q.stirred = true
		l.stirred = append(l.stirred, q)
	}
}

// cache keeps the body of a message that is now kept, as far as there is room for it.
func (q *workQueue) cache(seq uint64, data []byte) {
	if q.bodies.bytes+len(data)+q.bodies.n*bodyCost <= cacheBytes {
		q.bodies.put(seq, data)
	}
}

// tellFull announces that q is full, once until there is room again.
func (q *workQueue) tellFull(l *loop) {
	if !q.full {
		q.full = true
		l.announce(q, eventFull, 0, "")
	}
}

// appendState and decodeState are a queue.State as the store has it: flags, tries, due,
// reason.
func appendState(dst []byte, s *queue.State) []byte {
	var dead byte
	if s.Dead {
		dead = 1
	}
	dst = binary.AppendUvarint(append(dst, dead), uint64(s.Tries))
	return append(binary.AppendVarint(dst, s.Due), s.Reason...)
}

func decodeState(data []byte) (s queue.State, ok bool) {
	f := fields{b: data}
	s.Dead = f.byte() == 1
	s.Tries = uint32(f.uvarint())
	due, n := binary.Varint(f.b)
	f.take(n)
	s.Due, s.Reason = due, string(f.b)
	return s, !f.bad && n > 0
}

// enqueue pushes a publish to the queues that tap its topic. The error says why one
// of them refuses it at once: then none has it.
func (l *loop) enqueue(p *peer, r *route, m *wire.Publish, o *wire.PublishOptions, t *taken) error {
	rec, err := l.newRecord(p, r, m, o)
	if err != nil {
		return err
	}
	data := rec.append(l.recordBuf[:0])
	l.recordBuf = data
	rec.Size = len(data)
	if !l.room(p, len(data)) {
		return &wire.Error{Code: wire.CodeLimit, Text: "what waits for room in queues takes more than the broker keeps for one connection or one user: wait for the answers, or raise its limits"}
	}
	memory := l.memory
	for _, tap := range r.taps {
		q := tap.tapped
		if q.mayPass(l, p, r) {
			continue
		}
		if err := q.refusePush(l, rec.Size, memory); err != nil {
			return err
		}
		if q.level == wire.LevelMemory {
			memory += int64(rec.Size)
		}
	}
	by := origin{peer: p, number: p.published}
	for _, tap := range r.taps {
		q := tap.tapped
		if q.mayPass(l, p, r) && (!q.core.HasRoom(rec.Size) || q.refusePush(l, rec.Size, l.memory) != nil) {
			q.passed++
			q.tellFull(l)
			continue
		}
		if t.queues == 0 || q.level < t.level {
			t.level = q.level
		}
		t.queues++
		q.pushRecord(l, by, rec, data, t)
	}
	return nil
}

// pushRecord pushes a publish; data is its encoding.
func (q *workQueue) pushRecord(l *loop, by origin, rec *record, data []byte, t *taken) {
	m := rec.Message // the core completes it with what is the queue's own
	if ttl := q.settings.TTLMS; ttl > 0 && rec.Expires == 0 {
		m.Expires = rec.Time + ttl*int64(time.Millisecond)
		own := *rec
		own.Message = m
		data = own.append(nil)
	}
	waiting := len(q.parked)
	t.open += q.push(l, by, &m, data)
	t.parked = t.parked || len(q.parked) > waiting
}

// mayPass reports whether a publish to a topic that q is bound to goes on without q when
// q is full: the queue of one user does not stop another's publishers.
func (q *workQueue) mayPass(l *loop, p *peer, r *route) bool {
	return !r.own && q.owner != p.cred.UID && q.owner != 0 && q.owner != l.euid
}

// newRecord makes what is kept of a publish.
func (l *loop) newRecord(p *peer, r *route, m *wire.Publish, o *wire.PublishOptions) (*record, error) {
	rec := &l.record
	*rec = record{uid: p.cred.UID, gid: p.cred.GID, pid: p.cred.PID, headers: m.Headers, body: m.Body}
	rec.Time, rec.again = l.stamp, o.Redelivered
	if !r.own {
		rec.topic = m.Topic
	}
	if m.Options == nil {
		return rec, nil
	}
	switch {
	case o.Priority < 0 || o.Priority > wire.MaxPriority:
		return nil, badOption("a priority of %d: 0 to %d are possible", o.Priority, wire.MaxPriority)
	case len(o.ID) > wire.MaxID:
		return nil, badOption("an id of %d bytes, the limit is %d", len(o.ID), wire.MaxID)
	case len(o.Key) > wire.MaxKey:
		return nil, badOption("a key of %d bytes, the limit is %d", len(o.Key), wire.MaxKey)
	case o.DelayMS < 0 || o.DelayMS > maxDelay.Milliseconds() || o.TTLMS < 0 || o.TTLMS > maxDelay.Milliseconds():
		return nil, badOption("a delay of %d ms and a time to live of %d: 0 to %d are possible", o.DelayMS, o.TTLMS, maxDelay.Milliseconds())
	case o.AtMS < 0 || o.AtMS > (l.stamp+int64(maxDelay))/int64(time.Millisecond):
		return nil, badOption("a delivery at %d ms since 1970: it must be within %v", o.AtMS, maxDelay)
	case o.DelayMS > 0 && o.AtMS > 0:
		return nil, badOption("both a delay and a time: give one of them")
	}
	rec.ID, rec.Key, rec.Priority = o.ID, o.Key, uint8(o.Priority)
	if o.DelayMS > 0 {
		rec.Due = l.stamp + o.DelayMS*int64(time.Millisecond)
	} else if at := o.AtMS * int64(time.Millisecond); at > l.stamp {
		rec.Due = at
	}
	if o.TTLMS > 0 {
		rec.Expires = l.stamp + o.TTLMS*int64(time.Millisecond)
	}
	return rec, nil
}

func badOption(format string, args ...any) error {
	return &wire.Error{Code: wire.CodeBadOption, Text: fmt.Sprintf(format, args...)}
}

func noQueue(name string) error {
	return &wire.Error{Code: wire.CodeNotFound, Text: fmt.Sprintf("there is no queue %q: create it first (postbus queue create)", name)}
}
