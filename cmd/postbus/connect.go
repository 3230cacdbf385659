package main

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// target says which broker a command speaks to.
type target struct {
	address string
}

func (t *target) addFlag(flags *pflag.FlagSet) {
	flags.StringVar(&t.address, "address", "",
		"the broker's `ADDRESS`: unixpacket:PATH, unix:PATH or a bus directory\n"+
			"(default $POSTBUS_ADDRESS, then the user's bus, then the system's)")
}

// options returns how to connect to the broker, under a name for its log.
func (t *target) options(name string) *client.Options {
	return &client.Options{Address: t.address, Name: name}
}

// named returns the address that was named, "" when the broker is to be looked for.
func (t *target) named() string { return cmp.Or(t.address, os.Getenv("POSTBUS_ADDRESS")) }

// searchPatience is how long a broker may take to answer, that it be known which one
// commands reach.
const searchPatience = time.Second

// state returns where the broker that commands reach keeps queues: that of the bus that is
// named, or else of the first of the user's bus and the system's that is served. While
// none is, it is the first of the two that there is, or the user's, where one would be
// started.
func (t *target) state() (string, error) {
	if name := t.named(); name != "" {
		return stateOfAddress(name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), searchPatience)
	defer cancel()
	opts := t.options("postbus")
	opts.NoReconnect = true
	if c, err := client.Dial(ctx, opts); err == nil {
		defer c.Close()
		return stateOfAddress(c.Server().Address)
	}
	user, err := userState()
	if dir := idleState(user, systemState); dir != "" {
		return dir, nil
	}
	return "", err
}

// stateOfAddress returns where the queues of the bus with this address are kept.
func stateOfAddress(address string) (string, error) {
	sockets, err := wire.ParseAddress(address)
	if err != nil {
		return "", &usageError{err}
	}
	return stateDir(filepath.Dir(sockets[0].Path))
}

// idleState chooses between the state directories of two buses that nobody serves.
func idleState(user, system string) string {
	if _, err := os.Stat(user); err == nil {
		return user
	}
	if _, err := os.Stat(system); err == nil {
		return system
	}
	return user
}

// autostarting changes opts to start a broker for this user when no address was
// named and none answers.
func autostarting(opts *client.Options) *client.Options {
	opts.Autostart = true
	// This very program, wherever it lies: a postbus in PATH may be another version.
	if self, err := os.Executable(); err == nil {
		opts.AutostartCommand = []string{self, "serve", "--autostart"}
	}
	return opts
}
