package bench

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress tells on a terminal what is under way and for how long, on one line.
type progress struct {
	w    io.Writer
	stop func()
}

// newProgress writes to w; nil is silence.
func newProgress(w io.Writer) *progress { return &progress{w: w, stop: func() {}} }

// clearLine goes to the line's start and wipes it.
const clearLine = "\r\x1b[K"

// begin says that something new is under way.
func (p *progress) begin(format string, args ...any) {
	if p.w == nil {
		return
	}
	p.stop()
	text := fmt.Sprintf(format, args...)
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { p.tick(text, quit) })
	p.stop = sync.OnceFunc(func() {
		close(quit)
		wg.Wait()
	})
}

func (p *progress) tick(text string, quit <-chan struct{}) {
	start := time.Now()
	every := time.NewTicker(500 * time.Millisecond)
	defer every.Stop()
	for {
		fmt.Fprintf(p.w, "%s%s, %.0f s", clearLine, text, time.Since(start).Seconds())
		select {
		case <-quit:
			fmt.Fprint(p.w, clearLine)
			return
		case <-every.C:
		}
	}
}

// end wipes the line.
func (p *progress) end() { p.stop() }
