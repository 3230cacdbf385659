package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"

	"github.com/postbus/postbus/wire"
)

// systemState is where the queues of the system's bus are kept (the file system
// hierarchy has /var/lib for what programs must find again after a reboot; /run is
// empty then).
const systemState = "/var/lib/postbus"

// userState returns where the queues of the user's bus are kept, as the XDG base
// directory specification has it.
func userState() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) { // others are to be ignored
		return filepath.Join(dir, "postbus"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("where to keep queues: neither XDG_STATE_HOME nor HOME is set: use --state: %w", err)
	}
	return filepath.Join(home, ".local", "state", "postbus"), nil
}

// stateDir returns where the queues of the bus in directory bus are kept.
func stateDir(bus string) (string, error) {
	bus, err := filepath.Abs(bus)
	switch {
	case err != nil:
		return "", err
	case bus == wire.SystemDir:
		return systemState, nil
	case bus == filepath.Clean(wire.UserDir()):
		return userState()
	}
	return filepath.Join(bus, "state"), nil
}

// makeState makes the directory that queues are kept in, and returns its absolute
// path. Without it a broker serves all but the queues that outlive it: then it is an
// error only if the directory was named.
func (s *serving) makeState(log hclog.Logger) (string, error) {
	dir := s.state
	var err error
	if dir == "" {
		dir, err = stateDir(s.busDir())
	}
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	switch {
	case err == nil:
		return dir, nil
	case s.state != "":
		return "", fmt.Errorf("--state: %w", err)
	}
	log.Warn("no directory to keep queues in: there are queues of level memory only", "error", err)
	return "", nil
}
