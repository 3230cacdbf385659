package bench

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
)

func TestHistogramBuckets(t *testing.T) {
	for v := int64(0); v < math.MaxInt64/3; v += 1 + v/7 {
		got := bucketValue(bucketOf(v))
		if diff := math.Abs(float64(got - v)); diff > float64(v)/halfSub {
			t.Fatalf("%d counts as %d, further off than 1/%d", v, got, halfSub)
		}
	}
	if i := bucketOf(math.MaxInt64); i >= numBuckets {
		t.Errorf("the largest duration is in bucket %d of %d", i, numBuckets)
	}
}

func TestHistogramQuantiles(t *testing.T) {
	var h histogram
	for v := range int64(1000) {
		h.add(v * 1000)
	}
	for q, want := range map[float64]float64{0: 0, 0.5: 500e3, 0.99: 990e3, 0.999: 999e3, 1: 999e3} {
		if got := float64(h.quantile(q)); math.Abs(got-want) > want/100 {
			t.Errorf("quantile %v is %v, want about %v", q, got, want)
		}
	}
	var empty histogram
	if got := empty.quantile(0.5); got != 0 {
		t.Errorf("the quantile of nothing is %d, want 0", got)
	}
}

func TestHistogramJSON(t *testing.T) {
	var h, back, sum histogram
	for _, v := range []int64{5, 5, 123_456_789, -1} {
		h.add(v)
	}
	b, err := json.Marshal(&h)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	sum.merge(&back)
	if !slices.Equal(sum.counts, h.counts) || sum.total != h.total || sum.max != h.max {
		t.Errorf("came back as %d durations up to %d, was %d up to %d", sum.total, sum.max, h.total, h.max)
	}
}
