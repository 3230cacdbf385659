package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// execute runs the command line and returns the exit code.
func execute(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	if err == nil {
		return exitOK
	}
	var ran *runError
	if !errors.As(err, &ran) {
		err = &usageError{err} // cobra's own errors are about flags and arguments
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", cmd.CommandPath(), sentence(err))
	code := exitCode(err)
	if code == exitUsage {
		fmt.Fprintf(os.Stderr, "Usage: %s\nTry '%s --help'.\n", cmd.UseLine(), cmd.CommandPath())
	}
	return code
}

// sentence is the text of an error without the names of the packages it came
// through, which are nothing to the user of a command.
func sentence(err error) string {
	text := err.Error()
	for _, pkg := range []string{"client: ", "broker: ", "store: "} {
		text = strings.TrimPrefix(text, pkg)
		text = strings.ReplaceAll(text, ": "+pkg, ": ")
	}
	return text
}

// newRoot returns the command with all its subcommands.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "postbus",
		Short: "The message bus of this host",
		Long: `postbus carries messages between the processes of this host: a broker on a unix
socket (postbus serve) and this command to speak to it.

  postbus sub 'build/#'                 in one terminal
  postbus pub build/linux/done ok       in another

  postbus queue create jobs             work that waits until somebody does it
  postbus push jobs 'resize 17.png'
  postbus pull jobs

Nothing need be set up: these start a broker for you when none runs.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("which command? They are: %s", commandNames(cmd))
		},
	}
	var to target
	to.addFlag(root.PersistentFlags())
	root.AddCommand(
		newServe(),
		newPub(&to),
		newSub(&to),
		newPush(&to),
		newPull(&to),
		newQueue(&to),
		newSysV(&to),
		newPing(&to),
		newDemo(),
		newBench(),
		newVersion(),
		newExitCodes(),
	)
	markRunErrors(root)
	return root
}

// commandNames lists the subcommands that do something.
func commandNames(root *cobra.Command) string {
	names := ""
	for _, c := range root.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		if names != "" {
			names += ", "
		}
		names += c.Name()
	}
	return names
}

// runError is an error of a command that ran, as against one of cobra's, which
// come before.
type runError struct{ err error }

func (e *runError) Error() string { return e.err.Error() }
func (e *runError) Unwrap() error { return e.err }

// markRunErrors makes every command below c return its errors as *runError.
func markRunErrors(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if err := run(cmd, args); err != nil {
				return &runError{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		markRunErrors(sub)
	}
}
