package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/postbus/postbus/store"
)

// demoJobs is how many messages wait in a queue while its broker is killed: some kernel
// queues of the smallest size.
const demoJobs = 1000

// demoQueue is the queue that they wait in.
const demoQueue = "jobs"

// killedBroker shows that the messages of a queue outlive their broker.
func (d *demo) killedBroker(ctx context.Context) (err error) {
	d.title("A queue kept in the kernel survives kill -9 of its broker")
	second := troupe{self: d.self, bus: d.bus + "-2"}
	state := filepath.Join(second.bus, "state")
	defer func() {
		second.dismiss()
		if left := store.DeleteSysV(state, demoQueue); !errors.Is(left, store.ErrNotFound) { // it was never made
			err = errors.Join(err, left)
		}
	}()
	serve, err := second.serve(ctx)
	if err != nil {
		return err
	}
	d.printf("  process %-8d%s\n", serve.pid(), serve.line)
	if _, err := second.run(ctx, nil, "queue", "create", demoQueue, "--level", "kernel"); err != nil {
		return err
	}
	jobs := numbered(demoJobs)
	push, err := second.run(ctx, bytes.NewReader(jobs), "push", "-l", demoQueue)
	if err != nil {
		return err
	}
	d.printf("  process %-8d%s   pushed %d messages\n", push.pid(), push.line, demoJobs)
	if err := serve.cmd.Process.Kill(); err != nil {
		return err
	}
	serve.wait() // its error is that it was killed
	waiting, segments, err := inKernel(state)
	if err != nil {
		return err
	}
	d.printf("  process %-8dis killed (SIGKILL); %d messages are in %d System V queues of the kernel (ipcs -q)\n\n",
		serve.pid(), waiting, segments)
	if serve, err = second.serve(ctx); err != nil {
		return err
	}
	pull, err := second.run(ctx, nil, "pull", "-n", fmt.Sprint(demoJobs), demoQueue)
	if err != nil {
		return err
	}
	d.printf("  process %-8d%s\n", serve.pid(), serve.line)
	d.printf("  process %-8d%s   received %d messages, in order\n", pull.pid(), pull.line, bytes.Count(pull.stdout.Bytes(), []byte("\n")))
	d.check(waiting == demoJobs, "%d of %d messages were in the kernel while no broker ran", waiting, demoJobs)
	d.check(bytes.Equal(pull.stdout.Bytes(), jobs), "the queue was to give all messages in order after its broker was killed")
	return nil
}

// inKernel counts what is in the kernel queues that the queues in state have.
func inKernel(state string) (messages, queues int, err error) {
	host, err := store.HostQueues()
	if err != nil {
		return 0, 0, err
	}
	files, err := store.SysVKeyFiles(state)
	if err != nil {
		return 0, 0, err
	}
	for i := range host {
		for f := range files {
			if _, claim := files[f].Claim(&host[i]); claim == store.Owned && host[i].Messages > 0 {
				messages += host[i].Messages
				queues++
			}
		}
	}
	return messages, queues, nil
}
