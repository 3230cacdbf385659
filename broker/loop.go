package broker

import (
	"fmt"
	"runtime"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// loop owns all state of the broker. One goroutine runs it, so there are no locks
// and every message has its place in one order. What others want done they post.
type loop struct {
	opts Options
	log  hclog.Logger
	bus  string

	epoll   int
	wake    int // an eventfd: something was posted
	woken   bool
	posted  func() []func(*loop)
	events  [128]unix.EpollEvent
	peers   []*peer // by file descriptor
	count   int     // of peers
	doors   map[int]door
	account map[uint32]*account

	topics topics
	seq    uint64
	stats  Stats

	now   time.Time
	stamp int64 // now, as messages have it

	readBuf  []byte
	turn     []byte // MESSAGE frames routed and not yet written
	run      run
	routed   int    // messages in turn, those of run not counted
	marks    []mark // places in turn
	nextMark int    // where the next mark is due
	scratch  []byte
	spare    spareChunks
	outputs  outputs

	dirty             []*peer // to be written to
	flushing          []*peer
	acks              []*peer      // with verdicts not sent
	resumed           []*peer      // to be read again
	unkept            []*workQueue // with a commit gathered
	stirred           []*workQueue // that may have something to deliver
	keeping, stirring []*workQueue // memory of the two
	feeders           []*peer      // that published to a block subscription this turn
	yielding          []*peer      // that are not read for a moment, the longest first
	ended             []*peer      // to be closed at the end of the turn
	ready             []int        // doors to accept at
	awaits            []await
	awaiting          bool // subscriptions came that may answer some

	sweepAt    time.Time // when time-outs are next looked at; zero: none run
	idleAt     time.Time // when IdleExit is over; zero: somebody is there
	knockAt    time.Time // when a door shut for want of descriptors opens again
	settling   map[string]int
	settleAt   time.Time
	drainUntil time.Time
	restart    *restart // what an orderly stop leaves behind
	draining   bool
	err        error // why the loop ends; nil while it runs

	broker    *Broker
	queues    map[string]*workQueue
	euid      uint32 // of this process
	batch     uint64 // of commits: how many were handed to stores
	memory    int64  // bytes that the queues of level memory hold
	queuesAt  int64  // when a queue's clock is next looked at, ns since 1970; 0: none runs
	record    record // the one being looked at
	recordBuf []byte
	seqs      []uint64 // scratch
	only      int      // the connection that was the only one with something to say,
	alone     int      // for how many turns
	handed    bool     // a store's goroutine was given something to do this turn
	told      []event  // what happened to queues, to be published
	tired     []*peer  // that are read again in the next turn

	frameLimit  int
	redelivered []byte // the info map that says so
}

// door is a listening socket.
type door struct {
	packet bool
	shut   bool
}

const (
	readSize   = 128 << 10
	sweepEvery = time.Second
	knockAgain = 100 * time.Millisecond

	// lingerTime is how long a connection that was ended is kept for its GOODBYE to
	// be read, where the socket was full.
	lingerTime = time.Second
)

// turnOnce waits for something to happen and does all of it: read what is ready,
// route it, write it, look at the clock.
func (l *loop) turnOnce(clock func() time.Time) error {
	n, err := unix.EpollWait(l.epoll, l.events[:], l.patience(clock()))
	if err != nil && err != unix.EINTR {
		return fmt.Errorf("broker: epoll_wait: %w", err)
	}
	l.now = clock()
	l.stamp = l.now.UnixNano()
	l.noteAlone(l.events[:max(n, 0)])
	l.rested()
	for i := range max(n, 0) {
		l.event(&l.events[i])
	}
	if l.woken {
		l.woken = false
		l.runPosted()
	}
	l.finishTurn()
	if l.handed {
		// On this processor, which the loop does not need now: to wake another one would
		// take as long as many a disk.
		l.handed = false
		runtime.Gosched()
	}
	return nil
}

// noteAlone counts the turns in which nobody but one connection had something to say.
func (l *loop) noteAlone(events []unix.EpollEvent) {
	switch {
	case len(events) == 0 || len(events) == 1 && int(events[0].Fd) == l.wake:
	case len(events) == 1 && int(events[0].Fd) == l.only:
		l.alone++
	default:
		l.only, l.alone = int(events[0].Fd), 0
	}
}

// finishTurn does what follows from the frames read, and what is due by the clock.
func (l *loop) finishTurn() {
	l.expire()
	l.settleDown()
	if l.draining {
		l.drain()
	}
	l.acceptReady()
}

// settleDown acknowledges, writes, and goes on as long as that makes more to do:
// a subscriber that has room again lets publishers go on, which publish.
func (l *loop) settleDown() {
	for {
		l.answerAwaits()
		l.keep()
		l.deliverQueues()
		l.publishTold()
		l.acknowledge()
		l.deliver()
		if len(l.resumed) == 0 && len(l.ended) == 0 && len(l.unkept) == 0 && len(l.stirred) == 0 && len(l.told) == 0 {
			return
		}
		l.readAgain()
		l.closeEnded()
	}
}

// event handles what epoll says of one descriptor.
func (l *loop) event(ev *unix.EpollEvent) {
	fd := int(ev.Fd)
	if fd == l.wake {
		l.woken = true // done after the events: it can bring new connections
		return
	}
	if _, ok := l.doors[fd]; ok {
		l.ready = append(l.ready, fd)
		return
	}
	if fd >= len(l.peers) || l.peers[fd] == nil {
		return
	}
	p := l.peers[fd]
	if ev.Events&unix.EPOLLOUT != 0 && p.stalled {
		l.writable(p)
	}
	gone := ev.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0
	switch {
	case ev.Events&unix.EPOLLIN != 0 && !p.paused && !p.eof && !p.ending:
		l.read(p)
	case gone && p.paused:
		// It is gone, and nobody waits for verdicts on what it had sent and we did
		// not take.
		l.close(p, "left while it had to wait")
	case gone && p.yields > 0 && !p.eof:
		// Its input is read in a moment; till then it would be reported all the time.
		l.unwatch(p)
	case gone:
		p.broken, p.eof = true, true
		l.touch(p)
	}
}

// runPosted does what other goroutines asked for.
func (l *loop) runPosted() {
	var count [8]byte
	unix.Read(l.wake, count[:]) // resets the eventfd; EAGAIN is as good
	for _, do := range l.posted() {
		do(l)
	}
}

// acknowledge sends the verdicts that are due.
func (l *loop) acknowledge() {
	kept := l.acks[:0]
	for _, p := range l.acks {
		if p.closed {
			continue
		}
		l.sendVerdicts(p, p.hasty || !l.now.Before(p.ackDue))
		if len(p.verdicts) > 0 && p.due(&p.verdicts[0]) {
			kept = append(kept, p)
		} else {
			p.ackListed = false
		}
	}
	clear(l.acks[len(kept):])
	l.acks = kept
}

// resume lets a paused peer be read again, once the present work is done.
func (l *loop) resume(p *peer) {
	if p.paused && !p.resuming && !p.closed {
		p.resuming = true
		l.resumed = append(l.resumed, p)
	}
}

// maxToil is how many messages of queues the frames of one connection may go through in
// a turn, but for the last of them.
const maxToil = 20_000

// rested lets those be read again that had the loop work much in the turn before.
func (l *loop) rested() {
	for _, p := range l.tired {
		p.toil = 0
		l.resume(p)
	}
	clear(l.tired)
	l.tired = l.tired[:0]
}

// readAgain handles what resumed peers had in hand when they were paused.
func (l *loop) readAgain() {
	peers := l.resumed
	l.resumed = nil
	for _, p := range peers {
		p.paused, p.resuming = false, false
		if p.closed || p.ending {
			continue
		}
		l.handle(p, p.in)
		if p.eof && !p.paused {
			l.sendVerdicts(p, true)
			l.touch(p)
		}
	}
}

// patience is how long epoll may wait, in milliseconds: until the next thing that
// is due by the clock.
func (l *loop) patience(now time.Time) int {
	if len(l.tired) > 0 || len(l.ready) > 0 || len(l.ended) > 0 || len(l.resumed) > 0 || len(l.dirty) > 0 {
		return 0
	}
	next := time.Time{}
	due := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	due(l.sweepAt)
	due(l.idleAt)
	due(l.knockAt)
	due(l.settleAt)
	due(l.drainUntil)
	if l.queuesAt != 0 {
		due(time.Unix(0, l.queuesAt))
	}
	if len(l.acks) > 0 {
		due(l.acks[0].ackDue)
	}
	if len(l.yielding) > 0 {
		due(l.yielding[0].yieldUntil)
	}
	if next.IsZero() {
		return -1
	}
	wait := next.Sub(now)
	if wait <= 0 {
		return 0
	}
	return int(min((wait+time.Millisecond-1)/time.Millisecond, time.Hour/time.Millisecond))
}

// expire does what is due by the clock.
func (l *loop) expire() {
	l.yieldsOver()
	if l.over(l.sweepAt) {
		l.sweep()
	}
	if l.queuesAt != 0 && l.stamp >= l.queuesAt {
		l.tickQueues()
	}
	if l.over(l.knockAt) {
		l.knockAt = time.Time{}
		l.openDoors()
	}
	if l.over(l.settleAt) {
		l.settled("time is over")
	}
	if l.over(l.idleAt) && l.count == 0 && len(l.ready) == 0 && l.memory == 0 {
		l.err = ErrIdle
	}
}

// over reports whether the time t, if one is set, has come.
func (l *loop) over(t time.Time) bool { return !t.IsZero() && !l.now.Before(t) }

// watchTime makes sure that time-outs are looked at.
func (l *loop) watchTime(d time.Duration) {
	if d != forever && l.sweepAt.IsZero() {
		l.sweepAt = l.now.Add(min(d, sweepEvery))
	}
}

// sweep ends connections that have taken too long, and goes on as long as there
// are any that might.
func (l *loop) sweep() {
	l.sweepAt = time.Time{}
	for _, p := range l.peers {
		if p == nil {
			continue
		}
		since, limit, why := l.timed(p)
		if why == "" || limit == forever {
			continue
		}
		switch late := l.now.Sub(since) >= limit; {
		case late && p.ending:
			l.close(p, why)
		case late:
			l.end(p, wire.CodeTimeout, fmt.Sprintf("%s within %v", why, limit))
		default:
			l.watchTime(limit)
		}
	}
}

// timed says which time-out runs for p, if any.
func (l *loop) timed(p *peer) (since time.Time, limit time.Duration, why string) {
	switch {
	case p.ending:
		return p.moved, lingerTime, "its goodbye was not read"
	case !p.open:
		return p.joined, l.opts.HelloTimeout, "no HELLO came"
	case p.stalled && !p.blocks():
		return p.moved, l.opts.StallTimeout, "nothing of what waits for this client was read"
	case len(p.in) > 0 && !p.paused && !p.eof:
		return p.inSince, l.opts.FrameTimeout, "the frame begun was not completed"
	}
	return time.Time{}, 0, ""
}

// watch tells epoll what p waits for.
func (l *loop) watch(p *peer) {
	var events uint32
	if !p.paused && p.yields == 0 && !p.eof && !p.ending {
		events |= unix.EPOLLIN
	}
	if p.stalled {
		events |= unix.EPOLLOUT
	}
	if p.closed || p.watched && events == p.events {
		return
	}
	op := unix.EPOLL_CTL_MOD
	if !p.watched {
		op = unix.EPOLL_CTL_ADD
	}
	ev := unix.EpollEvent{Events: events, Fd: int32(p.fd)}
	if err := unix.EpollCtl(l.epoll, op, p.fd, &ev); err != nil {
		l.log.Error("cannot watch a connection: it is closed", "error", err)
		p.broken, p.eof = true, true
		l.touch(p)
		return
	}
	p.watched, p.events = true, events
}

// unwatch takes p out of epoll until watch is called for it again.
func (l *loop) unwatch(p *peer) {
	if p.watched {
		p.watched = false
		_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, p.fd, nil)
	}
}
