package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// progressAfter is how long work may take without a word, and progressEvery how
	// often it says one.
	progressAfter = 500 * time.Millisecond
	progressEvery = 100 * time.Millisecond

	progressWidth = 24 // columns of the bar
)

// progress is a line on a terminal that says how far long work has come. On what is
// no terminal it says nothing, and so does one that is nil.
type progress struct {
	file  *os.File
	total int64     // of the amount that is shown as a bar; 0: unknown
	next  time.Time // when the line may be written again
	shown bool
}

func newProgress(file *os.File, total int64) *progress {
	if !isTerminal(file) {
		return nil
	}
	return &progress{file: file, total: total, next: time.Now().Add(progressAfter)}
}

// show says that done of the total is done, and what that means.
func (p *progress) show(done int64, format string, args ...any) {
	if p == nil || time.Now().Before(p.next) {
		return
	}
	p.next = time.Now().Add(progressEvery)
	p.shown = true
	p.file.WriteString("\r\x1b[K" + progressBar(done, p.total) + fmt.Sprintf(format, args...))
}

// while calls look every now and then, to show something, until the function it
// returns is called, which waits for look and takes the line away.
func (p *progress) while(every time.Duration, look func()) (end func()) {
	if p == nil {
		return func() {}
	}
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				look()
			}
		}
	})
	return func() {
		close(done)
		watch.Wait()
		p.end()
	}
}

// end takes the line away.
func (p *progress) end() {
	if p != nil && p.shown {
		p.file.WriteString("\r\x1b[K")
		p.shown = false
	}
}

// progressBar draws done of total; nothing where there is no total.
func progressBar(done, total int64) string {
	if total <= 0 {
		return ""
	}
	share := float64(min(max(done, 0), total)) / float64(total)
	bar := make([]byte, progressWidth)
	for i := range bar {
		bar[i] = ' '
		if float64(i) < share*progressWidth {
			bar[i] = '#'
		}
	}
	return fmt.Sprintf("[%s] %3d%% ", bar, int(share*100))
}

func isTerminal(file *os.File) bool {
	conn, err := file.SyscallConn() // file.Fd would make it blocking for all who share it
	if err != nil {
		return false
	}
	terminal := false
	err = conn.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		terminal = err == nil
	})
	return terminal && err == nil
}
