package broker

import (
	"errors"

	"github.com/postbus/postbus/store"
)

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

	failures  map[int]error
	stored    int   // entries that the store was asked for; those behind it failed by trouble
	trouble   error // full or out of space: the rest may be tried again
	unremoved bool  // the store had no room to write down that messages are gone
	unsaved   int   // states from here on are to be tried again
	lost      []*store.LostError
	fatal     error // the store is at its end
}

// fetch is bodies to be read. It comes before the rest of a commit, and what was read is
// told before that is done.
type fetch struct {
	reads  []*reading
	lost   []*store.LostError
	failed error // the store's, that ends it
}

// pushed is a message of a commit.
type pushed struct {
	seq   uint64
	by    origin
	entry int  // its place in commit.entries; -1: it has none
	plain bool // it comes in the order it went: its body is worth keeping

	refused error  // why it is not kept
	first   uint64 // without an entry: the message that it is a duplicate of
}

// reading is a request for bodies; done is called in the loop with as many as were
// read within limit bytes, at least one. A body that could not be read is nil.
type reading struct {
	seqs  []uint64
	limit int
	done  func(l *loop, bodies [][]byte)

	bodies [][]byte
}

// copy puts data into the commit's memory.
func (c *commit) copy(data []byte) []byte {
	if cap(c.block)-len(c.block) < len(data) {
		// They grow, so that a small commit's message that is kept in memory pins little.
		c.block = make([]byte, 0, max(min(2*cap(c.block), blockSize), smallBlock, len(data)))
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
		c.unremoved = c.check(st.Remove(c.removes))
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

// outcome returns why the store did not keep an entry, nil if it did; -1 is no entry.
func (c *commit) outcome(entry int) error {
	switch {
	case c.fatal != nil:
		return c.fatal
	case c.failures[entry] != nil:
		return c.failures[entry]
	case entry >= c.stored:
		return c.trouble
	}
	return nil
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
func (f *fetch) empty() bool { return len(f.reads) == 0 }

// read reads the bodies that are asked for.
func (f *fetch) read(st store.Store) {
	var lost *store.LostError
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
		case errors.As(err, &lost):
			f.lost = append(f.lost, lost)
		case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDamaged):
		default: // not of this message alone
			f.failed = err
		}
		return nil
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

// newest returns of several entries of one kind and message the last.
func newest(entries []store.Entry) []store.Entry {
	type name struct {
		kind store.Kind
		seq  uint64
	}
	last := make(map[name]int, len(entries))
	for i, e := range entries {
		last[name{e.Kind, e.Seq}] = i
	}
	kept := entries[:0]
	for i, e := range entries {
		if last[name{e.Kind, e.Seq}] == i {
			kept = append(kept, e)
		}
	}
	return kept
}
