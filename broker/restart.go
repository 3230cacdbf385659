package broker

import (
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"os"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// restart is what an orderly stop leaves for the broker that follows, in the file
// wire.RestartFile: the numbers go on, and the sessions with subscriptions are
// waited for before publishes are taken, so that nobody publishes to a room whose
// listeners are still on their way back.
type restart struct {
	Bus      string         `msgpack:"bus"`
	Seq      uint64         `msgpack:"seq"`
	Stopped  time.Time      `msgpack:"stopped"`
	Sessions map[string]int `msgpack:"sessions"` // how many subscriptions each had
}

const (
	sessionSize = 16 // bytes

	// settleTime is how long a new broker waits for the sessions of the old one.
	settleTime = 2 * time.Second

	// settleWithin is how old a restart file may be for its sessions to be waited
	// for: after longer their clients have found something else to do.
	settleWithin = 30 * time.Second
)

// maxRestart bounds the restart file, in bytes: some 50,000 sessions.
const maxRestart = 1 << 20

// readRestart takes the restart file, if there is one that can be read: it is for
// one broker only. What is no plain file of ours is left alone: others may have write
// permission to a bus directory.
func readRestart(path string) *restart {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != uint32(os.Geteuid()) {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRestart))
	if err != nil {
		return nil
	}
	_ = os.Remove(path)
	var r restart
	if msgpack.Unmarshal(data, &r) != nil || !r.plausible() {
		return nil
	}
	return &r
}

// plausible reports whether a broker of ours may have written r.
func (r *restart) plausible() bool {
	id, err := hex.DecodeString(r.Bus)
	return err == nil && len(id) == busSize && r.Seq < 1<<62
}

// write stores r so that a reader sees all of it or nothing.
func (r *restart) write(path string) error {
	data, err := msgpack.Marshal(r)
	if err != nil {
		return err
	}
	if len(data) > maxRestart {
		r.Sessions = nil // nobody is waited for; the numbers go on
		return r.write(path)
	}
	_ = os.Remove(path + ".new")
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// take goes on where the broker that left r stopped.
func (l *loop) take(r *restart) {
	l.bus, l.seq = r.Bus, max(l.seq, r.Seq)
	if l.restart != nil { // it stops before it has served anybody
		l.restart = r
		return
	}
	if len(r.Sessions) == 0 || l.now.Sub(r.Stopped) > settleWithin {
		return
	}
	l.settling = r.Sessions
	l.settleAt = l.now.Add(settleTime)
}

// returned looks whether p is one of those waited for, and has all its
// subscriptions again.
func (l *loop) returned(p *peer) {
	if l.settling == nil {
		return
	}
	if n, ok := l.settling[p.session]; ok && len(p.subs) >= min(n, p.restore) {
		delete(l.settling, p.session)
	}
	if len(l.settling) == 0 {
		l.settled("all are back")
	}
}

// settled lets publishers go on.
func (l *loop) settled(why string) {
	l.log.Debug("publishes are taken again after the restart", "why", why, "missing", len(l.settling))
	l.settling, l.settleAt = nil, time.Time{}
	for _, p := range l.peers {
		if p != nil {
			l.resume(p)
		}
	}
}

// startDrain begins the orderly stop: no more connections, no more publishes.
func (l *loop) startDrain() {
	if l.draining {
		return
	}
	l.endRun()
	l.draining = true
	l.drainUntil = time.Time{}
	if l.opts.DrainTimeout != forever {
		l.drainUntil = l.now.Add(l.opts.DrainTimeout)
	}
	for fd := range l.doors {
		l.shutDoor(fd)
	}
	l.dropParked()
	sessions := make(map[string]int)
	maps.Copy(sessions, l.settling) // they are not back yet, and will come to the next
	for _, p := range l.peers {
		if p == nil {
			continue
		}
		if len(p.session) == sessionSize && len(p.subs) > 0 {
			sessions[p.session] = len(p.subs)
		}
		l.sendVerdicts(p, true)
	}
	l.restart = &restart{Bus: l.bus, Seq: l.seq, Sessions: sessions}
}

// drain lets those connections go that have got everything, and at the end of the
// time all of them: what they do not get then they are told.
func (l *loop) drain() {
	over := l.over(l.drainUntil)
	for _, p := range l.peers {
		// All of them before the first goodbye: this releases verdicts of others.
		if over && p != nil && !p.ending {
			l.tellLost(p)
		}
	}
	for _, p := range l.peers {
		switch {
		case p == nil || p.ending:
		case over:
			l.end(p, wire.CodeShutdown, "the broker stopped before all was delivered")
		case !p.stalled && p.quiet() && len(p.heldBy) == 0:
			l.end(p, wire.CodeShutdown, "the broker stops")
		}
	}
	l.settleDown()
	if over || l.count == 0 {
		l.restart.Stopped = l.now
		l.err = ErrClosed
	}
}

// tellLost closes p's subscriptions and puts a gap behind what was sent for each that
// has messages left.
func (l *loop) tellLost(p *peer) {
	for _, s := range p.subs {
		d, dropped := s.queue.lost(wire.ReasonShutdown)
		s.drop(l, dropped)
		p.out = d.tell(p.out, s.id)
		l.closeSub(s)
	}
}
