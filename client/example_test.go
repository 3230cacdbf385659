package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/client"
)

// connectExample returns a client of a broker in this process, so that the examples run
// anywhere. A program calls client.Dial instead.
func connectExample() (*client.Client, func()) {
	b, err := broker.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	conn, err := b.Connect()
	if err != nil {
		log.Fatal(err)
	}
	bus, err := client.NewClient(context.Background(), conn, nil)
	if err != nil {
		log.Fatal(err)
	}
	return bus, func() {
		_ = bus.Close()
		_ = b.Close()
	}
}

func ExampleDial() {
	ctx := context.Background()
	bus, err := client.Dial(ctx, &client.Options{Autostart: true})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()
	if _, err := bus.PublishWait(ctx, "build/linux/done", []byte("ok"), nil); err != nil {
		log.Fatal(err)
	}
}

// A broker and its client in one process, without a file: for a program that brings its
// own bus, and for tests.
func ExampleNewClient() {
	ctx := context.Background()
	b, err := broker.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	conn, err := b.Connect()
	if err != nil {
		log.Fatal(err)
	}
	bus, err := client.NewClient(ctx, conn, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()
	fmt.Println(bus.Ping(ctx))
	// Output: <nil>
}

// Publish is for streams: it does not wait for each message. Flush tells what became of
// them.
func ExampleClient_Publish() {
	bus, done := connectExample()
	defer done()
	ctx := context.Background()
	for i := range 3 {
		if err := bus.Publish(ctx, "count", fmt.Append(nil, i), nil); err != nil {
			log.Fatal(err)
		}
	}
	_ = bus.Publish(ctx, "nobody/listens", nil, &client.PublishOptions{RequireSubscriber: true})

	err := bus.Flush(ctx)
	fmt.Println(errors.Is(err, client.ErrNoSubscriber))
	var refused *client.RefusedError
	if errors.As(err, &refused) {
		fmt.Println(refused.Count, refused.Topic)
	}
	// Output:
	// true
	// 1 nobody/listens
}

// PublishWait is for messages of which it matters that somebody got them.
func ExampleClient_PublishWait() {
	bus, done := connectExample()
	defer done()
	ctx := context.Background()
	if _, err := bus.Subscribe(ctx, "build/#", nil); err != nil {
		log.Fatal(err)
	}
	receipt, err := bus.PublishWait(ctx, "build/linux/done", []byte("ok"), nil)
	fmt.Println(receipt.Subscribers, err)
	// Output: 1 <nil>
}

func ExampleSubscription_Messages() {
	bus, done := connectExample()
	defer done()
	ctx := context.Background()
	builds, err := bus.Subscribe(ctx, "build/+/done", nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, system := range []string{"linux", "plan9"} {
		if err := bus.Publish(ctx, "build/"+system+"/done", []byte("ok"), nil); err != nil {
			log.Fatal(err)
		}
	}
	for message, err := range builds.Messages(ctx) {
		if gap, ok := errors.AsType[*client.Gap](err); ok {
			fmt.Println("missed", gap.Count)
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s\n", message.Topic, message.Body)
		if message.Topic == "build/plan9/done" {
			break
		}
	}
	// Output:
	// build/linux/done: ok
	// build/plan9/done: ok
}

// A slow subscriber of the newest value of each topic: what it had no time for is told.
func ExampleGap() {
	bus, done := connectExample()
	defer done()
	ctx := context.Background()
	levels, err := bus.Subscribe(ctx, "tank/level", &client.SubscribeOptions{
		Policy: client.Latest,
		Credit: 1, // one message here; the others wait in the broker
	})
	if err != nil {
		log.Fatal(err)
	}
	for i := range 100 {
		if err := bus.Publish(ctx, "tank/level", fmt.Append(nil, i), nil); err != nil {
			log.Fatal(err)
		}
	}
	if err := bus.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	if err := levels.Drain(ctx); err != nil {
		log.Fatal(err)
	}
	for message, err := range levels.Messages(ctx) {
		if gap, ok := errors.AsType[*client.Gap](err); ok {
			fmt.Printf("missed %d: %v\n", gap.Count, gap.Reason)
			continue
		}
		fmt.Printf("%s\n", message.Body)
	}
	// Output:
	// 0
	// missed 98: latest
	// 99
}

// A worker: what it has done is acked, what it cannot do now comes again later, and
// what nobody can do is set aside.
func ExampleQueue_Consume() {
	bus, done := connectExample()
	defer done()
	ctx := context.Background()
	jobs := bus.Queue("jobs")
	if _, err := jobs.Declare(ctx, nil); err != nil {
		log.Fatal(err)
	}
	for _, job := range []string{"resize 17.png", "fly", "resize 18.png"} {
		if err := jobs.PushAsync(ctx, []byte(job), nil); err != nil {
			log.Fatal(err)
		}
	}
	work, err := jobs.Consume(ctx, &client.ConsumeOptions{ExtendLeases: true})
	if err != nil {
		log.Fatal(err)
	}
	for job, err := range work.Deliveries(ctx) {
		if lost, ok := errors.AsType[*client.LeasesLost](err); ok {
			log.Print(lost) // these may come again
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		if string(job.Body) == "fly" {
			err = job.Reject("no wings")
		} else {
			fmt.Printf("done: %s\n", job.Body)
			err = job.Ack()
		}
		if err != nil {
			log.Print(err) // its lease is lost: somebody else does it
		}
		if string(job.Body) == "resize 18.png" {
			break
		}
	}
	if err := work.Drain(ctx); err != nil {
		log.Fatal(err)
	}
	for dead, err := range jobs.Peek(ctx, &client.PeekOptions{State: "dead"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("dead: %s: %s\n", dead.Body, dead.Reason)
	}
	// Output:
	// done: resize 17.png
	// done: resize 18.png
	// dead: fly: rejected: no wings
}

// With an id, a message that may have been pushed already can be pushed again.
func ExampleQueue_Push() {
	bus, done := connectExample()
	defer done()
	ctx := context.Background()
	orders := bus.Queue("orders")
	if _, err := orders.Declare(ctx, nil); err != nil {
		log.Fatal(err)
	}
	for range 2 {
		receipt, err := orders.Push(ctx, []byte("two of these"), &client.PushOptions{ID: "order 4711"})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("kept:", receipt.Level)
	}
	info, err := orders.Info(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("waiting:", info.Ready)
	// Output:
	// kept: memory
	// kept: memory
	// waiting: 1
}
