package store_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/store"
)

// bare sends and receives b.N messages of size through one kernel queue, batch at a time,
// and returns the time of one.
func bare(b *testing.B, size, batch, rounds int) time.Duration {
	id, err := store.Msgget(0, unix.IPC_CREAT|0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer rmid(b, id)
	buf := make([]byte, store.MtypeSize+size)
	binary.NativeEndian.PutUint64(buf, 1)
	start := time.Now()
	for range rounds {
		for range batch {
			if err := store.MsgsndRaw(id, buf); err != nil {
				b.Fatal(err)
			}
		}
		for range batch {
			if _, err := store.Msgrcv(id, buf, 1, 0); err != nil {
				b.Fatal(err)
			}
		}
	}
	return time.Since(start) / time.Duration(rounds*batch)
}

// BenchmarkSysV appends and removes, and compares with bare msgsnd and msgrcv in the
// same run.
func BenchmarkSysV(b *testing.B) {
	for _, size := range []int{128, 1024} {
		for _, batch := range []int{1, 8, 64, 1024} {
			b.Run(fmt.Sprintf("size=%d/batch=%d", size, batch), func(b *testing.B) {
				s := mustOpen(b, b.TempDir(), nil)
				entries := make([]store.Entry, batch)
				seqs := make([]uint64, batch)
				data := make([]byte, size)
				seq := uint64(0)
				rounds := max(b.N/batch, 1)
				b.ReportAllocs()
				b.ResetTimer()
				start := time.Now()
				for range rounds {
					for i := range entries {
						seq++
						entries[i] = store.Entry{Kind: store.Message, Seq: seq, Data: data}
						seqs[i] = seq
					}
					if _, err := s.Append(entries); err != nil {
						b.Fatal(err)
					}
					if err := s.Remove(seqs); err != nil {
						b.Fatal(err)
					}
				}
				each := time.Since(start) / time.Duration(rounds*batch)
				b.StopTimer()
				if b.N > 1 {
					one := bare(b, size+16, min(batch, 14), rounds*batch/min(batch, 14))
					b.ReportMetric(float64(each)/float64(one), "x-bare")
				}
			})
		}
	}
}

// BenchmarkSysVDepth appends and removes the oldest with n messages waiting.
func BenchmarkSysVDepth(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 10_000, 25_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := mustOpen(b, b.TempDir(), nil)
			data := make([]byte, 128)
			high := uint64(0)
			push := func() {
				high++
				if _, err := s.Append([]store.Entry{{Kind: store.Message, Seq: high, Data: data}}); err != nil {
					b.Fatal(err)
				}
			}
			for range n {
				push()
			}
			b.ReportAllocs()
			for b.Loop() {
				push()
				if err := s.Remove([]uint64{high - uint64(n)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSysVOpen reads 10,000 messages back, by copy and by rotation.
func BenchmarkSysVOpen(b *testing.B) {
	for _, noCopy := range []bool{false, true} {
		b.Run(fmt.Sprintf("NoCopy=%v", noCopy), func(b *testing.B) {
			dir := b.TempDir()
			opts := &store.SysVOptions{NoCopy: noCopy}
			s := mustOpen(b, dir, opts)
			addMessages(b, s, make([]int, 10_000)...)
			s.Close()
			for b.Loop() {
				s, err := store.OpenSysV(dir, "q", opts)
				if err != nil || s.Stats().Messages != 10_000 {
					b.Fatal(err)
				}
				s.Close()
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/10_000, "ns/message")
		})
	}
}

// BenchmarkSysVRead reads messages from the kernel, in order, 10,000 waiting.
func BenchmarkSysVRead(b *testing.B) {
	s := mustOpen(b, b.TempDir(), nil)
	sizes := make([]int, 10_000)
	for i := range sizes {
		sizes[i] = 128
	}
	seqs := addMessages(b, s, sizes...)
	var buf []byte
	i := 0
	for b.Loop() {
		var err error
		if buf, err = s.Read(buf[:0], seqs[i%len(seqs)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
