package bench_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/postbus/postbus/cmd/postbus/internal/bench"
)

// TestMain lets the test program be what the command is for bench: the program that
// it starts its parties from.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "bench" {
		if err := bench.Child(os.Args[2], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// Under the race detector each of the many processes would wait a second at its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}
