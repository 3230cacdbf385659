package bench

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// The endpoints compare times across processes, so they need the time since boot
// (CLOCK_MONOTONIC) and not, as package time has it, since the process began.
var clockStart, clockBase = readClock()

// readClock reads both clocks at once, as nearly as several tries allow.
func readClock() (start time.Time, base int64) {
	best := time.Duration(math.MaxInt64)
	for range 8 {
		var ts unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			return before, 0
		}
		if took := time.Since(before); took < best {
			best = took
			start, base = before.Add(took/2), ts.Nano()
		}
	}
	return start, base
}

// now returns the time in nanoseconds since boot, without a system call.
func now() int64 { return clockBase + int64(time.Since(clockStart)) }

// sleepUntil sleeps until t (of now). Unlike a timer of the runtime, nanosleep(2)
// wakes this very thread, to the microsecond where the timer slack is low.
func sleepUntil(t int64) {
	for {
		left := t - now()
		if left <= 0 {
			return
		}
		ts := unix.NsecToTimespec(left)
		_ = unix.Nanosleep(&ts, nil) // EINTR: go round again
	}
}

// cpuTime returns the CPU time that process pid has used, user and system, all
// threads, in nanoseconds. The clock's number is made as clock_getcpuclockid(3) does.
func cpuTime(pid int) (int64, error) {
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|sched, &ts); err != nil {
		return 0, err
	}
	return ts.Nano(), nil
}
