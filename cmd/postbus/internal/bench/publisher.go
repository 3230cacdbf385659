package bench

import (
	"math"
	"runtime"

	"golang.org/x/sys/unix"
)

// publisher decides what is sent when.
type publisher struct {
	outlet
	job  *job
	sent uint64
}

// outlet is a publisher's way to the middle.
type outlet interface {
	// many is how many messages are best sent at once.
	many() int

	// send sends the next n messages. The first has that tag and was stamped at;
	// each further one has the next tag and is step nanoseconds later.
	send(n int, first tag, at int64, step float64) error

	// flush waits for the verdict on everything sent, where there are verdicts.
	flush() error

	close()
}

// publish is the role "publisher".
func publish(j *job, c *control) (*result, error) {
	open := openRawOutlet
	if j.Endpoints == clientEndpoints {
		open = openClientOutlet
	}
	out, err := open(j)
	if err != nil {
		return nil, err
	}
	defer out.close()
	if err := c.ready(); err != nil {
		return nil, err
	}
	p := &publisher{outlet: out, job: j}
	r := &result{Start: now()}
	if j.Rate > 0 {
		err = p.steadily()
	} else {
		err = p.flood()
	}
	if err == nil {
		err = p.finish()
	}
	r.End, r.Published = now(), p.sent
	return r, err
}

// flood sends as fast as it can.
func (p *publisher) flood() error {
	for end := p.deadline(); ; {
		at := now()
		n := p.allowed(p.many())
		if n == 0 || at >= end {
			return nil
		}
		if err := p.next(n, at, 0); err != nil {
			return err
		}
	}
}

// deadline returns when to stop, as now has it.
func (p *publisher) deadline() int64 {
	if p.job.Messages > 0 {
		return math.MaxInt64
	}
	return now() + int64(p.job.Duration)
}

// allowed returns how many of n messages may be sent before the last one.
func (p *publisher) allowed(n int) int {
	if p.job.Messages > 0 {
		n = min(n, p.job.Messages-1-int(p.sent))
	}
	return n
}

// steadily sends at the job's rate. A message carries the time at which it was
// handed to the kernel; one that is late because a write before it had to wait, the
// time at which it was due, so that a stall is not left out of the figures.
func (p *publisher) steadily() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The default slack of 50 µs is as long as the pause between messages.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)

	start, end := now(), p.deadline()
	interval := 1e9 / p.job.Rate
	for slept := false; ; {
		due := start + int64(float64(p.sent)*interval)
		at := now()
		if due > at {
			sleepUntil(min(due, end))
			slept = true
			at = now()
		}
		n := p.allowed(min(p.many(), int(float64(at-due)/interval)+1))
		if n == 0 || at >= end {
			return nil
		}
		step := interval
		if slept {
			due, step = at, 0
		}
		if err := p.next(n, due, step); err != nil {
			return err
		}
		slept = false
	}
}

// next sends the next n messages, stamped from at on.
func (p *publisher) next(n int, at int64, step float64) error {
	first := newTag(p.job.Index, p.sent)
	p.sent += uint64(n)
	return p.send(n, first, at, step)
}

// finish sends the last message, marked as such, and waits until all are out.
func (p *publisher) finish() error {
	last := newTag(p.job.Index, p.sent) | lastTag
	p.sent++
	if err := p.send(1, last, now(), 0); err != nil {
		return err
	}
	return p.flush()
}
