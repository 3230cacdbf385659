package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"syscall"

	"github.com/postbus/postbus/broker"
)

// What the role "broker" can be asked for, a line each. Each is answered with a result.
const (
	heapLine    = "heap"    // collect all garbage and tell how much is left
	profileLine = "profile" // begin a CPU profile, with the file's name behind a space; without one, end it
)

// serve is the role "broker": a broker like that of `postbus serve`, which can be asked
// about itself. With a profile in its job it writes that when it is ended.
func serve(j *job, c *control) (*result, error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b, err := broker.New(&broker.Options{MaxMessage: j.Size, StateDir: j.State, MaxQueueMemory: -1})
	if err != nil {
		return nil, err
	}
	dir, err := broker.OpenDir(j.Path, nil)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	var p profile
	defer p.end()
	if err := p.begin(j.CPUProfile); err != nil {
		return nil, errors.Join(err, dir.Close(), b.Close())
	}
	go answer(c)
	context.AfterFunc(ctx, func() { _ = b.Close() })
	if err := b.ServeDir(dir); !errors.Is(err, broker.ErrClosed) {
		return nil, err
	}
	return &result{}, nil
}

// profile is a CPU profile of this process, or none.
type profile struct{ file *os.File }

// begin begins a profile; with path "" there is none.
func (p *profile) begin(path string) error {
	if path == "" {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return errors.Join(err, f.Close())
	}
	p.file = f
	return nil
}

// end writes the profile, if there is one.
func (p *profile) end() {
	if p.file != nil {
		pprof.StopCPUProfile()
		_ = p.file.Close()
		p.file = nil
	}
}

// answer does what the parent asks for while the broker serves. A profile that is
// begun so is ended so too.
func answer(c *control) {
	var p profile
	for line := range c.asked {
		what, path, _ := strings.Cut(line, " ")
		r, err := &result{}, error(nil)
		switch what {
		case heapLine:
			r.Heap = liveHeap()
		case profileLine:
			p.end()
			err = p.begin(path)
		default:
			err = fmt.Errorf("the broker is asked for %q", line)
		}
		if err != nil {
			_ = c.out.Encode(report{Error: err.Error()})
			continue
		}
		_ = c.tell(r)
	}
}

// liveHeap collects the garbage, gives the system back what is free, and returns how
// many bytes of objects are left.
func liveHeap() int64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
