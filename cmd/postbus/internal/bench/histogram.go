package bench

import (
	"encoding/json"
	"math/bits"
)

// histogram counts durations in nanoseconds, each to within 1/128 of its value. The
// zero histogram is ready for use, and they can be added up.
type histogram struct {
	counts []uint64
	total  uint64
	max    int64
}

// Below 2^subBits every value has a bucket of its own, above each power of two is
// divided into half as many.
const (
	subBits    = 8
	halfSub    = 1 << (subBits - 1)
	numBuckets = (64 - subBits + 2) * halfSub
)

func bucketOf(v int64) int {
	shift := max(0, bits.Len64(uint64(v))-subBits)
	return shift*halfSub + int(v>>shift)
}

// bucketValue returns the middle of a bucket.
func bucketValue(i int) int64 {
	if i < 2*halfSub {
		return int64(i)
	}
	shift := i/halfSub - 1
	return int64(i-shift*halfSub)<<shift + 1<<shift/2
}

// add counts one duration of v nanoseconds; below 0 it counts as 0.
func (h *histogram) add(v int64) {
	v = max(v, 0)
	h.count(bucketOf(v), 1)
	h.max = max(h.max, v)
}

func (h *histogram) count(bucket int, n uint64) {
	if h.counts == nil {
		h.counts = make([]uint64, numBuckets)
	}
	h.counts[bucket] += n
	h.total += n
}

// merge adds what o counted.
func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		if n > 0 {
			h.count(i, n)
		}
	}
	h.max = max(h.max, o.max)
}

// quantile returns the duration that a share q of all do not exceed, in nanoseconds.
func (h *histogram) quantile(q float64) int64 {
	rank := uint64(q * float64(h.total))
	var seen uint64
	for i, n := range h.counts {
		seen += n
		if seen > rank {
			return min(bucketValue(i), h.max)
		}
	}
	return h.max
}

// sparse is how a histogram crosses the pipe: only the buckets that count.
type sparse struct {
	Buckets [][2]uint64 `json:"buckets"`
	Max     int64       `json:"max"`
}

// MarshalJSON writes the buckets that are not empty.
func (h *histogram) MarshalJSON() ([]byte, error) {
	s := sparse{Max: h.max}
	for i, n := range h.counts {
		if n > 0 {
			s.Buckets = append(s.Buckets, [2]uint64{uint64(i), n})
		}
	}
	return json.Marshal(s)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (h *histogram) UnmarshalJSON(b []byte) error {
	var s sparse
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*h = histogram{}
	for _, bucket := range s.Buckets {
		if bucket[0] < numBuckets {
			h.count(int(bucket[0]), bucket[1])
		}
	}
	h.max = s.Max
	return nil
}
