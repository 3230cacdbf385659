// Package postbus is the message bus of one Linux host.
//
// A broker (package broker, or the command postbus serve) listens on unix sockets
// in a bus directory and fans the messages of topics out to their subscribers. A
// program speaks to it through package client:
//
//	c, err := client.Dial(ctx, nil)
//	sub, err := c.Subscribe(ctx, "build/#", nil)
//	err = c.Publish(ctx, "build/linux/done", []byte("ok"), nil)
//	m, err := sub.Next(ctx)
//
// What must wait until somebody has done it goes to a queue, which the broker keeps in
// memory, in System V message queues or on disk (package store):
//
//	jobs := c.Queue("jobs")
//	_, err = jobs.Declare(ctx, &client.QueueOptions{Level: "disk"})
//	_, err = jobs.Push(ctx, []byte("resize 17.png"), nil)
//	worker, err := jobs.Consume(ctx, nil)
//	d, err := worker.Next(ctx)
//	err = d.Ack()
//
// Package wire holds what both put on the socket; docs/PROTOCOL.md describes it,
// docs/QUEUES.md what queues promise, docs/ARCHITECTURE.md how the parts fit together.
package postbus
