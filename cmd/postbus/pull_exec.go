package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/postbus/postbus/client"
)

// execute runs the command for each message.
func (p *puller) execute(ctx context.Context) error {
	a, err := p.open(ctx, max(p.prefetch, 1), true)
	if err != nil {
		return err
	}
	return a.end(p.executeAll(ctx, a))
}

func (p *puller) executeAll(ctx context.Context, a *arrivals) error {
	for !p.enough() {
		d, err := a.next(ctx, func() error { return nil })
		if err != nil {
			return err
		}
		err = p.runCommand(d)
		var exit *exec.ExitError
		var settled error
		p.seen++
		if p.enough() {
			a.stop(nil)
		}
		switch {
		case err == nil:
			settled = d.Ack()
		case errors.As(err, &exit):
			p.failed++
			p.say("message %d, delivered the %s time: the command ended with %v", d.Seq, ordinal(d.Tries), exit)
			settled = d.Nack(p.retryDelay)
		default:
			a.stop(nil) // else it comes straight back here
			return errors.Join(err, d.Nack(0))
		}
		if errors.Is(settled, client.ErrLeaseLost) {
			p.say("message %d may come again: its lease was lost while the command ran", d.Seq)
		}
		if err := p.settled(settled); err != nil {
			return err
		}
	}
	return nil
}

// ordinal writes a number as in "the 3rd time".
func ordinal(n int) string {
	suffix := "th"
	if n/10%10 != 1 && n%10 <= 3 && n%10 > 0 {
		suffix = []string{"st", "nd", "rd"}[n%10-1]
	}
	return strconv.Itoa(n) + suffix
}

// runCommand runs the command for a message. Its error is an *exec.ExitError when the
// command has failed, else it could not be run.
func (p *puller) runCommand(d *client.Delivery) error {
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Stdin = bytes.NewReader(d.Body)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), commandEnv(p.queue, d)...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("run the command: %w", err)
	}
	return err
}

// commandEnv is what a command's environment says of its message. Text that an
// environment cannot hold, with a NUL byte in it, is left out.
func commandEnv(queue string, d *client.Delivery) []string {
	redelivered := ""
	if d.Redelivered {
		redelivered = "1"
	}
	var env []string
	for _, v := range [][2]string{
		{"QUEUE", queue},
		{"TOPIC", d.Topic},
		{"SEQ", strconv.FormatUint(d.Seq, 10)},
		{"TRIES", strconv.Itoa(d.Tries)},
		{"REDELIVERED", redelivered},
		{"KEY", d.Key},
		{"ID", d.ID},
		{"PRIORITY", strconv.Itoa(d.Priority)},
		{"TIME", d.Time.UTC().Format(time.RFC3339Nano)},
		{"UID", strconv.FormatUint(uint64(d.From.UID), 10)},
		{"GID", strconv.FormatUint(uint64(d.From.GID), 10)},
		{"PID", strconv.FormatUint(uint64(d.From.PID), 10)},
	} {
		if bytes.IndexByte([]byte(v[1]), 0) < 0 {
			env = append(env, "POSTBUS_"+v[0]+"="+v[1])
		}
	}
	return env
}
