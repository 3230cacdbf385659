// Command workqueue pushes jobs to a queue, has two workers do them, of which one job
// fails at first and another always, and removes the queue again.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/postbus/postbus/client"
)

func main() {
	ctx := context.Background()
	c, err := client.Dial(ctx, &client.Options{Autostart: true}) // with postbus in PATH
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := run(ctx, c.Queue("example-pictures")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, jobs *client.Queue) error {
	if _, err := jobs.Declare(ctx, &client.QueueOptions{Level: "disk", MaxTries: 3}); err != nil {
		return err
	}
	for _, name := range []string{"one.png", "two.png", "busy.png", "broken.png"} {
		receipt, err := jobs.Push(ctx, []byte(name), &client.PushOptions{ID: name}) // pushed twice, kept once
		if err != nil {
			return err
		}
		fmt.Printf("%s is kept at level %s\n", name, receipt.Level)
	}

	var workers sync.WaitGroup
	for range 2 {
		consumer, err := jobs.Consume(ctx, &client.ConsumeOptions{Prefetch: 1, ExtendLeases: true})
		if err != nil {
			return err
		}
		defer consumer.Close()
		workers.Go(func() { work(ctx, consumer) })
	}
	if err := jobs.Drain(ctx); err != nil { // takes no more, and waits until the workers have emptied it
		return err
	}
	for d, err := range jobs.Peek(ctx, &client.PeekOptions{State: "dead"}) {
		if err != nil {
			return err
		}
		fmt.Printf("%s is a dead letter: %s\n", d.Body, d.Reason)
	}
	err := jobs.Delete(ctx) // the end of its consumers
	workers.Wait()
	return err
}

// work does what consumer gets until its queue is gone.
func work(ctx context.Context, consumer *client.Consumer) {
	for d, err := range consumer.Deliveries(ctx) {
		if errors.Is(err, client.ErrNotFound) {
			return
		}
		if err != nil { // a *client.LeasesLost tells what may come twice, and the loop goes on
			log.Print(err)
			continue
		}
		switch err = resize(string(d.Body), d.Tries); {
		case err == nil:
			if err = d.AckWait(ctx); err == nil { // now it never comes again; d.Ack does not wait
				fmt.Printf("%s is done\n", d.Body)
			}
		case errors.Is(err, errBusy):
			err = d.Nack(10 * time.Millisecond) // later, at most MaxTries times
		default:
			err = d.Reject(err.Error()) // never: a dead letter
		}
		if err != nil { // such as client.ErrLeaseLost: somebody else has it
			log.Print(err)
		}
	}
}

var errBusy = errors.New("busy")

// resize stands for the work. It must bear to be done twice: a queue delivers at least once.
func resize(name string, try int) error {
	switch {
	case name == "busy.png" && try == 1:
		return errBusy
	case name == "broken.png":
		return errors.New("not a picture")
	}
	return nil
}
