package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// sizeUnits are the suffixes of a size, as dd(1) has them.
var sizeUnits = map[string]int64{
	"": 1, "B": 1,
	"k": 1 << 10, "K": 1 << 10, "KiB": 1 << 10, "kB": 1000, "KB": 1000,
	"M": 1 << 20, "MiB": 1 << 20, "MB": 1000 * 1000,
	"G": 1 << 30, "GiB": 1 << 30, "GB": 1000 * 1000 * 1000,
	"T": 1 << 40, "TiB": 1 << 40, "TB": 1000 * 1000 * 1000 * 1000,
}

const sizeHelp = "k, M, G, T (or KiB, MiB, GiB, TiB) are powers of 1024, kB, MB, GB, TB of 1000"

// parseSize reads a number of bytes above 0, such as 4096, 64k or 1.5MiB, that fits 32
// bits.
func parseSize(s string) (int, error) {
	n, err := parseBytes(s, math.MaxInt32)
	return int(n), err
}

// parseBytes reads a number of bytes from 1 to limit.
func parseBytes(s string, limit int64) (int64, error) {
	digits := strings.TrimRight(s, "BGKMTik")
	unit, known := sizeUnits[s[len(digits):]]
	n, err := strconv.ParseFloat(digits, 64)
	bytes := n * float64(unit)
	if !known || err != nil || !(bytes >= 1 && bytes <= float64(limit)) { // NaN is neither
		return 0, fmt.Errorf("%q is not a size from 1 byte to %s: write it as 4096, 64k or 1MiB (%s)", s, formatSize(limit+1), sizeHelp)
	}
	return int64(bytes), nil
}

// formatSize writes a number of bytes in the largest unit that keeps it whole.
func formatSize[T int | int64](n T) string {
	switch {
	case int64(n) >= 1<<40 && int64(n)%(1<<40) == 0:
		return fmt.Sprintf("%d TiB", int64(n)>>40)
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// roughSize writes a number of bytes to about three digits.
func roughSize(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), 0
	for value >= 1023.5 && unit < 3 { // which would be written as 1024
		value /= 1 << 10
		unit++
	}
	digits := 0
	if value < 99.95 {
		digits = 1
	}
	return strings.TrimSuffix(strconv.FormatFloat(value, 'f', digits, 64), ".0") + []string{" KiB", " MiB", " GiB", " TiB"}[unit]
}

// sizeFlag is a flag that holds a number of bytes; 0 while it was not given.
type sizeFlag int

func (f *sizeFlag) Set(s string) (err error) {
	n, err := parseSize(s)
	*f = sizeFlag(n)
	return err
}

func (f *sizeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strconv.Itoa(int(*f))
}

func (f *sizeFlag) Type() string { return "SIZE" }

// largeSizeFlag is as sizeFlag, for what may be larger than 2 GiB.
type largeSizeFlag int64

// largestSize is above what any file system of today holds in one file, in bytes.
const largestSize = 1<<50 - 1

func (f *largeSizeFlag) Set(s string) error {
	n, err := parseBytes(s, largestSize)
	*f = largeSizeFlag(n)
	return err
}

func (f *largeSizeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*f), 10)
}

func (f *largeSizeFlag) Type() string { return "SIZE" }

// bufferFlag is the bound of a buffer: messages (a plain number), bytes (a number
// with a unit), or both with a comma between.
type bufferFlag struct {
	messages, bytes int
}

func (f *bufferFlag) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		if n, err := strconv.Atoi(part); err == nil && n > 0 {
			f.messages = n
			continue
		}
		n, err := parseSize(part)
		if err != nil {
			return fmt.Errorf("%q is neither a number of messages, such as 1000, nor a size with its unit, such as 8MiB", part)
		}
		f.bytes = n
	}
	return nil
}

func (f *bufferFlag) String() string {
	switch {
	case f.messages == 0 && f.bytes == 0:
		return ""
	case f.bytes == 0:
		return strconv.Itoa(f.messages)
	case f.messages == 0:
		return fmt.Sprintf("%dB", f.bytes)
	}
	return fmt.Sprintf("%d,%dB", f.messages, f.bytes)
}

func (f *bufferFlag) Type() string { return "BOUND" }
