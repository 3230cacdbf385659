// Command pubsub subscribes to build/#, publishes to build/done and prints what comes.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/postbus/postbus/client"
)

func main() {
	ctx := context.Background()
	c, err := client.Dial(ctx, &client.Options{Autostart: true}) // with postbus in PATH
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	builds, err := c.Subscribe(ctx, "build/#", nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Publish(ctx, "build/done", []byte("ok"), nil); err != nil { // pipelined
		log.Fatal(err)
	}
	m, err := builds.Next(ctx) // or range builds.Messages(ctx); a *client.Gap tells what was missed
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s, from uid %d\n", m.Topic, m.Body, m.From.UID)
}
