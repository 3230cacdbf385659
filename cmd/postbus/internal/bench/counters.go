package bench

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counters are shared by the consumers' processes, in a file that each has mapped: how
// many messages they are to take together, and how far they are.
type counters struct {
	mem []byte
	*sharedCounters
}

type sharedCounters struct {
	target    atomic.Int64
	claimed   atomic.Int64
	confirmed atomic.Int64
}

// createCounters makes the file, all zero.
func createCounters(path string) (*counters, error) {
	if err := os.WriteFile(path, make([]byte, unsafe.Sizeof(sharedCounters{})), 0o600); err != nil {
		return nil, err
	}
	return openCounters(path)
}

func openCounters(path string) (*counters, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, int(unsafe.Sizeof(sharedCounters{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &counters{mem: mem, sharedCounters: (*sharedCounters)(unsafe.Pointer(&mem[0]))}, nil
}

func (c *counters) close() { _ = unix.Munmap(c.mem) }

func (c *counters) reached() bool { return c.confirmed.Load() >= c.target.Load() }

// claim returns how many of n messages are still to be taken; they are the caller's.
func (c *counters) claim(n int) int {
	for {
		had := c.claimed.Load()
		k := min(int64(n), c.target.Load()-had)
		if k <= 0 {
			return 0
		}
		if c.claimed.CompareAndSwap(had, had+k) {
			return int(k)
		}
	}
}

// claimedAll reports whether nothing is left to be claimed.
func (c *counters) claimedAll() bool { return c.claimed.Load() >= c.target.Load() }

func (c *counters) confirm(n int) { c.confirmed.Add(int64(n)) }
