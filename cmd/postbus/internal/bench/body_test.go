package bench

import "testing"

func TestBody(t *testing.T) {
	body := make([]byte, MinSize)
	want := newTag(maxPublisher, 1<<48-1) | lastTag
	stampBody(body, want, -5)
	got, at, err := readBody(body)
	if err != nil || got != want || at != -5 {
		t.Fatalf("read %x, %d, %v", got, at, err)
	}
	if got.publisher() != maxPublisher || got.number() != 1<<48-1 || !got.last() {
		t.Errorf("publisher %d, number %d, last %v", got.publisher(), got.number(), got.last())
	}
	if _, _, err := readBody(body[1:]); err == nil {
		t.Error("a body that is too short was read")
	}
}

func TestTally(t *testing.T) {
	c := newTally(2)
	for _, tag := range []tag{newTag(0, 0), newTag(1, 0), newTag(1, 3), newTag(0, 1) | lastTag} {
		if err := c.take(tag); err != nil {
			t.Fatal(err)
		}
	}
	if c.received != 4 || c.missing != 2 || c.complete() {
		t.Errorf("received %d, missing %d, complete %v; want 4, 2, false", c.received, c.missing, c.complete())
	}
	for name, tag := range map[string]tag{"again": newTag(1, 3), "back": newTag(1, 2), "stranger": newTag(2, 0)} {
		if c.take(tag) == nil {
			t.Errorf("%s: taken without an error", name)
		}
	}
	if err := c.take(newTag(1, 4) | lastTag); err != nil || !c.complete() {
		t.Errorf("after both last messages: %v, complete %v", err, c.complete())
	}
}

func TestSpread(t *testing.T) {
	for connections, processes := range map[int]int{1: 1, 8: 8, 64: 64, 65: 1, 126: 2, 1000: 8, 2000: 16, 100_000: 64} {
		each := spread(connections)
		sum := 0
		for _, n := range each {
			sum += n
		}
		if len(each) != processes || sum != connections {
			t.Errorf("%d connections: %d in %d processes, want %d processes", connections, sum, len(each), processes)
		}
	}
}
