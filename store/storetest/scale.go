package storetest

import "os"

// Scale returns how much a test does: full where POSTBUS_FULL=1 asks for a release's run,
// race under the race detector, which makes all some five times slower, and usual else.
func Scale(full, usual, race int) int {
	switch {
	case os.Getenv("POSTBUS_FULL") == "1":
		return full
	case raceEnabled:
		return race
	}
	return usual
}
