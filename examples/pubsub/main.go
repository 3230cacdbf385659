// Command pubsub subscribes to build/#, publishes to build/done and prints what comes.
// It wants a broker: postbus serve.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/postbus/postbus/client"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	c, err := client.Dial(ctx, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	builds, err := c.Subscribe(ctx, "build/#", nil)
	if err != nil {
		return err
	}
	if err := c.Publish(ctx, "build/done", []byte("ok"), nil); err != nil {
		return err
	}
	m, err := builds.Next(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s\n", m.Topic, m.Body)
	return nil
}
