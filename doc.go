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
// Package wire holds what both put on the socket; docs/PROTOCOL.md describes it,
// docs/ARCHITECTURE.md how the parts fit together.
package postbus
