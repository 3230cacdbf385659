package queue_test

import (
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/postbus/postbus/broker/internal/queue"
)

// The property test's size is rapid's flags' and variables': -rapid.checks and
// RAPID_CHECKS, -rapid.steps and RAPID_STEPS.
func TestMain(m *testing.M) {
	checks := 500
	if raceEnabled {
		checks = 80
	}
	if os.Getenv("POSTBUS_FULL") == "1" {
		checks *= 10
	}
	for name, n := range map[string]int{"checks": checks, "steps": 100} {
		if os.Getenv("RAPID_"+strings.ToUpper(name)) == "" {
			if err := flag.Set("rapid."+name, strconv.Itoa(n)); err != nil {
				panic(err)
			}
		}
	}
	flag.Parse()
	os.Exit(m.Run())
}

// Whatever is done to a queue, crashes included, a plain model of it says the same.
func TestQueueIsAsItsModel(t *testing.T) {
	model := func(t *rapid.T) {
		w := newWorld(t)
		t.Repeat(w.actions())
	}
	t.Run("wide", func(t *testing.T) { rapid.Check(t, model) })
	t.Run("tight", func(t *testing.T) {
		defer queue.Tighten()()
		rapid.Check(t, model)
	})
}
