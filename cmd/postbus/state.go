package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/pflag"

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

// stateFlag is the state directory of the bus that a command is about.
type stateFlag struct {
	dir string
}

func (s *stateFlag) addFlag(flags *pflag.FlagSet) {
	flags.StringVar(&s.dir, "state", "", "the broker's state directory `DIR` (default that of the broker that commands\n"+
		"reach, or would, as postbus serve has it)")
}

// path returns the directory, absolute; it need not be there.
func (s *stateFlag) path(to *target) (string, error) {
	if s.dir != "" {
		return filepath.Abs(s.dir)
	}
	return to.state()
}

// ownPath is path for what this user keeps, whoever serves the bus and whether or not
// somebody does: where no bus is named it is the user's.
func (s *stateFlag) ownPath(to *target) (string, error) {
	if s.dir == "" && to.named() == "" {
		return userState()
	}
	return s.path(to)
}

// looked says where a command has looked that found nothing, and where else there may be
// something.
func (s *stateFlag) looked(to *target, dir string) string {
	if s.dir != "" || to.named() != "" {
		return dir
	}
	for _, other := range []func() (string, error){userState, func() (string, error) { return systemState, nil }} {
		if path, err := other(); err == nil && path != dir {
			if _, err := os.Stat(path); err == nil {
				return fmt.Sprintf("%s (for %s say --state %s)", dir, path, path)
			}
		}
	}
	return dir + " (for another directory say --state)"
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
