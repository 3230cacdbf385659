package main

import (
	"os"

	"github.com/spf13/pflag"

	"github.com/postbus/postbus/client"
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
