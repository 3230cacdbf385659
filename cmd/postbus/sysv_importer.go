package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/postbus/postbus/store"
)

const (
	// importBatch is how many messages an import has on the way at most.
	importBatch = 256

	// firstGuess is how long a message is thought to be until a longer one comes, in
	// bytes: MSG_COPY costs by the buffer it is given.
	firstGuess = 256

	// pollMin and pollMax bound the pauses between looks at a kernel queue that gives or
	// takes nothing now: there is no call that waits for it along with a context.
	pollMin = time.Millisecond
	pollMax = 50 * time.Millisecond
)

// errOtherReader says that messages were copied and then taken by somebody else.
var errOtherReader = errors.New("another program receives from that kernel queue: what was copied went to both; " +
	"stop it, or use --no-copy, which gives each message to one of the two")

// parcel is a message on its way from a kernel queue to its destination.
type parcel struct {
	id      string // never that of another message, and the same after a crash
	mtype   int64
	guessed bool // see entry
	body    []byte
}

// headers returns the headers that the message gets.
func (p *parcel) headers() map[string]string {
	h := map[string]string{headerType: strconv.FormatInt(p.mtype, 10)}
	if p.guessed {
		h[headerLength] = "guessed"
	}
	return h
}

const (
	headerType   = "sysv-type"   // the message's type, msgop(2)
	headerLength = "sysv-length" // "guessed": a kill left only the message, not its length
)

// destination takes messages off an import's hands.
type destination interface {
	// deliver hands batch over, in order, and calls kept with the place of each that is kept
	// there. It returns nil when all are.
	deliver(ctx context.Context, batch []parcel, kept func(i int)) error

	// name is what it is called, with its kind; it is compared after a crash.
	name() string
}

// importer moves messages from a kernel queue to a destination, a batch at a time.
//
// Where the kernel has MSG_COPY it copies a batch, hands it over, and receives just these messages
// once they are kept: until then they are in the kernel queue as well. Else, and with
// take, it receives the batch into the journal and then hands it over. Killed at any
// point the next import goes on from the journal with the same ids, so that the
// destination's dedup takes a message once.
type importer struct {
	source  *store.Foreign // nil: it is not there, and only the journal is to be emptied
	missing error          // why
	journal *importJournal
	to      destination
	mtype   int64 // only this type; 0: any
	take    bool
	step    func(name string) // called between steps, for tests that crash there; or nil

	guess    int // bytes of body that the next message is thought to have
	resumed  int // messages that an import before left on the way
	imported int // messages handed over, resumed ones included
	others   bool
}

func (im *importer) at(step string) {
	if im.step != nil {
		im.step(step)
	}
}

// resume finishes the batch that a killed import has left.
func (im *importer) resume(ctx context.Context) error {
	j := im.journal
	here := im.source != nil && j.from(im.source.ID())
	switch j.state() {
	case journalIdle:
		return nil
	case journalFilling:
		if !j.taken() { // nothing was done yet with the copies
			j.setState(journalIdle)
			return nil
		}
		j.adopt()
	}
	if j.entries() == 0 {
		j.setState(journalIdle)
		return nil
	}
	if was := j.destination(); was != im.to.name() {
		return fmt.Errorf("an import of this kernel queue into %s was cut short with %s on the way: run that once more, to its end, before this one",
			was, plural(j.entries(), "message"))
	}
	im.resumed = j.entries()
	if j.state() == journalFilling {
		j.setState(journalFilled)
	}
	return im.finish(ctx, here)
}

// batch moves the next messages, at most limit, and returns how many there were. The error is
// errOtherReader when all of them were handed over and somebody else has received some of them.
func (im *importer) batch(ctx context.Context, limit int) (int, error) {
	im.journal.limit = min(limit, importBatch)
	im.journal.begin(im.source.ID(), im.to.name(), im.take)
	fill := im.copyBatch
	if im.take {
		fill = im.takeBatch
	}
	im.at("begun")
	fillErr := fill()
	n := im.journal.entries()
	if n == 0 {
		im.journal.setState(journalIdle)
		return 0, fillErr
	}
	im.journal.setState(journalFilled)
	im.at("filled")
	if err := im.finish(ctx, true); err != nil {
		return n, err
	}
	return n, fillErr
}

// copyBatch copies messages from the head of the kernel queue.
func (im *importer) copyBatch() error {
	for index := 0; ; {
		buf, err := im.journal.room(im.guess)
		if buf == nil || err != nil {
			return err
		}
		r, err := im.source.Copy(buf, index)
		switch {
		case errors.Is(err, store.ErrEmpty):
			return nil
		case errors.Is(err, store.ErrTooLarge):
			im.guess *= 2
		case err != nil:
			return err
		default:
			im.guess = max(firstGuess, len(r.Body()))
			if im.mtype == 0 || r.Type() == im.mtype {
				im.journal.add(len(r.Body()))
			}
			index++
		}
	}
}

// takeBatch receives messages into the journal.
func (im *importer) takeBatch() error {
	for {
		buf, err := im.journal.room(im.guess)
		if buf == nil || err != nil {
			return err
		}
		im.journal.prepareNext(im.guess)
		im.at("taking")
		r, err := im.source.Receive(buf, im.mtype)
		im.at("taken")
		switch {
		case errors.Is(err, store.ErrEmpty):
			return nil
		case errors.Is(err, store.ErrTooLarge):
			im.guess *= 2
		case err != nil:
			return err
		default:
			im.guess = max(firstGuess, len(r.Body()))
			im.journal.add(len(r.Body()))
			im.at("noted")
		}
	}
}

// finish hands the batch over and then, if it was copied from the source as it is now, receives it.
func (im *importer) finish(ctx context.Context, here bool) error {
	j := im.journal
	if j.state() == journalFilled {
		if j.taken() {
			if err := j.sync(); err != nil {
				return err
			}
		}
		if err := im.handOver(ctx); err != nil {
			return err
		}
		im.at("kept")
		j.setState(journalKept)
	}
	im.at("noted as kept")
	n := j.entries()
	if here && !j.taken() {
		if err := im.receiveBatch(ctx); err != nil {
			return err
		}
	}
	j.setState(journalIdle)
	im.imported += n
	if im.others {
		return errOtherReader
	}
	return nil
}

// handOver gives the destination what it does not have yet.
func (im *importer) handOver(ctx context.Context) error {
	var batch []parcel
	var entries []entry
	for i := range im.journal.entries() {
		e := im.journal.entry(i)
		if e.kept() {
			continue
		}
		r := e.buffer()
		if !e.same(r) { // the host went down before the disk had all of it
			return fmt.Errorf("%s: message %d of %d is not what was written: move the file away, and see that no message is missing",
				im.journal.f.Name(), i+1, im.journal.entries())
		}
		batch = append(batch, parcel{id: im.journal.id(i, ""), mtype: e.mtype(), guessed: im.journal.taken() && e.guessed(), body: r.Body()})
		entries = append(entries, e)
	}
	return im.to.deliver(ctx, batch, func(i int) { entries[i].setKept() })
}

// receiveBatch takes the messages of the batch, which are kept elsewhere now, off the kernel queue.
func (im *importer) receiveBatch(ctx context.Context) error {
	for i := range im.journal.entries() {
		e := im.journal.entry(i)
		if e.step() == entryDone {
			continue
		}
		r := e.received()
		if r == nil {
			e.beginTake()
			im.at("taking")
			got, err := im.source.Receive(e.buffer(), e.mtype())
			im.at("taken")
			if errors.Is(err, store.ErrEmpty) || errors.Is(err, store.ErrTooLarge) { // its place is another's now
				im.others = true
				e.setStep(entryDone)
				continue
			}
			if err != nil {
				return err
			}
			e.setGot(len(got.Body()))
			r = got
		}
		if err := im.check(ctx, i, r); err != nil {
			return err
		}
		im.at("received")
	}
	return nil
}

// await waits for so long, and on while the kernel queue is empty.
func (im *importer) await(ctx context.Context, pause time.Duration) error {
	for ; ; pause = min(2*pause, pollMax) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		if q, err := im.source.Stat(); err != nil || q.Messages > 0 {
			return err
		}
	}
}

// check compares r, received for entry i, with what was copied. A message that is not in the batch
// is handed over like the others: nobody else has it.
func (im *importer) check(ctx context.Context, i int, r store.Record) error {
	e := im.journal.entry(i)
	if e.same(r) {
		e.setStep(entryDone)
		return nil
	}
	im.others = true
	for later := i + 1; later < im.journal.entries(); later++ {
		if l := im.journal.entry(later); l.step() == entryCopied && l.same(r) {
			l.setStep(entryDone)
			e.setStep(entryDone)
			return nil
		}
	}
	extra := parcel{id: im.journal.id(i, "-extra"), mtype: r.Type(), guessed: e.guessed(), body: r.Body()}
	if err := im.to.deliver(ctx, []parcel{extra}, func(int) {}); err != nil {
		return err
	}
	im.imported++
	e.setStep(entryDone)
	return nil
}
