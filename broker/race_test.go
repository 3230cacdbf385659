//go:build race

package broker

// RaceEnabled reports whether the race detector slows the tests down.
const RaceEnabled = true
