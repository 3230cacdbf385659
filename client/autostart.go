package client

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
)

// autostart starts a broker of the user's own and connects to it. Any number of clients
// may do that at once: the brokers take a lock, and all but one leave again.
func (c *Client) autostart(ctx context.Context, failed *searchError) (*connection, error) {
	command := c.opts.AutostartCommand
	if err := startDetached(command); err != nil {
		failed.remedy = fmt.Sprintf("and none could be started: %v", err)
		return nil, failed
	}
	c.log.Info("started a broker", "command", command)
	pause := newBackoff(retryMin, retryMax)
	for pause.wait(ctx) == nil {
		cn, err := c.try(ctx, c.place)
		var absent *searchError
		if err == nil || !errors.As(err, &absent) {
			return cn, err
		}
		failed.attempts = absent.attempts
	}
	failed.remedy = fmt.Sprintf("%q was started, but did not answer in time: run it by hand to see why", command)
	return nil, failed
}

// detach is the shell's way to start a command that is not this process's child: the
// shell ends at once, and the command belongs to init. A child would be a zombie from
// its end until this process waits for it, and a goroutine that waits would outlive
// Close; and of many brokers started at once all but one end soon.
const detach = `"$@" </dev/null >/dev/null 2>&1 &`

// startDetached starts a command in a session of its own, so that no signal from this
// process's terminal reaches it, with / for its directory, so that it keeps none busy.
func startDetached(command []string) error {
	program, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	if program, err = filepath.Abs(program); err != nil {
		return err
	}
	shell := exec.Command("/bin/sh", append([]string{"-c", detach, "sh", program}, command[1:]...)...)
	shell.Dir = "/"
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := shell.Run(); err != nil {
		return fmt.Errorf("start %q: %w", command, err)
	}
	return nil
}
