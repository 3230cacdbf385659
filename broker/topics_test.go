package broker_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/wire"
)

// The routes are those that wire.Match gives, whatever comes and goes between.
func TestTopicsAgreeWithMatch(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { agree(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func agree(t *testing.T, rnd *rand.Rand) {
	var topics broker.Topics
	filters := map[int][]string{}
	for id := range 2000 {
		switch n := rnd.IntN(10); {
		case n < 3:
			fs := []string{randomFilter(rnd)}
			for rnd.IntN(3) == 0 {
				fs = append(fs, randomFilter(rnd))
			}
			slices.Sort(fs)
			filters[id] = slices.Compact(fs)
			topics.Subscribe(id, filters[id]...)
		case n < 5 && len(filters) > 0:
			for k := range filters {
				topics.Unsubscribe(k)
				delete(filters, k)
				break
			}
		default:
			topic := randomName(rnd, "a", "b", "c", "@s")
			got, err := topics.Find([]byte(topic))
			if err != nil {
				t.Fatalf("Find(%q): %v", topic, err)
			}
			want := matching(filters, topic)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("Find(%q) = %v, want %v; filters %v", topic, got, want, filters)
			}
		}
	}
	for k := range filters {
		topics.Unsubscribe(k)
	}
	if err := topics.Empty(); err != nil {
		t.Fatal(err)
	}
}

// randomName is some of the words as levels.
func randomName(rnd *rand.Rand, words ...string) string {
	s := words[rnd.IntN(len(words))]
	for rnd.IntN(3) > 0 {
		s += "/" + words[rnd.IntN(len(words))]
	}
	return s
}

func randomFilter(rnd *rand.Rand) string {
	f := randomName(rnd, "a", "b", "c", "@s", "+", "+")
	switch rnd.IntN(6) {
	case 0:
		return "#"
	case 1:
		return f + "/#"
	}
	return f
}

// matching returns those with a filter that matches topic, sorted.
func matching(filters map[int][]string, topic string) (ids []int) {
	for k, fs := range filters {
		if slices.ContainsFunc(fs, func(f string) bool { return wire.Match(f, topic) }) {
			ids = append(ids, k)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestTopicsCacheIsBounded(t *testing.T) {
	var topics broker.Topics
	topics.Subscribe(1, "n/#")
	for i := range 2*broker.MaxRoutes + 10 {
		if got, err := topics.Find(fmt.Appendf(nil, "n/%d/x", i)); err != nil || len(got) != 1 {
			t.Fatalf("topic %d: %v, %v", i, got, err)
		}
	}
	if n := topics.Cached(); n > broker.MaxRoutes {
		t.Fatalf("%d topics are cached, the bound is %d", n, broker.MaxRoutes)
	}
	for i := range 20_000 {
		topic := fmt.Appendf(nil, "n/%d/%s", i, strings.Repeat("deep/", 29)+strings.Repeat("x", 500))
		if got, err := topics.Find(topic); err != nil || len(got) != 1 {
			t.Fatalf("topic %s: %v, %v", topic, got, err)
		}
	}
	if n := topics.CachedBytes(); n > broker.MaxRouteBytes {
		t.Fatalf("topics of %d bytes are cached, the bound is %d", n, broker.MaxRouteBytes)
	}
	topics.Unsubscribe(1)
	if got, _ := topics.Find([]byte("n/7/x")); len(got) != 0 {
		t.Fatalf("a topic that went through the cache still goes to %v", got)
	}
}

// What a look-up costs does not depend on subscriptions to other topics.
func BenchmarkFind(b *testing.B) {
	for _, n := range []int{0, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("unrelated=%d", n), func(b *testing.B) {
			var topics broker.Topics
			topics.Subscribe(-1, "build/+/done")
			for i := range n {
				topics.Subscribe(i, fmt.Sprintf("other/%d/+", i))
			}
			topic := []byte("build/linux/done")
			for b.Loop() {
				if topics.Hit(topic) != 1 {
					b.Fatal("not found")
				}
			}
		})
	}
}
