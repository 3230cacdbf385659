// Package client speaks to a postbus broker: it publishes messages to topics and
// subscribes to them, and it pushes messages to queues and works them off.
//
//	bus, err := client.Dial(ctx, nil)
//	if err != nil {
//		return err
//	}
//	defer bus.Close()
//
//	builds, err := bus.Subscribe(ctx, "build/#", nil)
//	if err != nil {
//		return err
//	}
//	if _, err := bus.PublishWait(ctx, "build/linux/done", []byte("ok"), nil); err != nil {
//		return err
//	}
//	for message, err := range builds.Messages(ctx) {
//		...
//	}
//
// # Publishing
//
// [Client.Publish] puts a message into a buffer and returns; whatever gathers there
// while a write is under way goes out in the next single write. The broker answers
// every publish, in order, and until then the client keeps it. [Client.Flush] waits
// for these answers and reports what was refused; [Client.PublishWait] waits for that
// of one message and returns its [Receipt]. When as much is unanswered as the broker
// allows (its window), Publish waits: this is how a subscription with the policy
// [Block] slows its publishers down.
//
// # Subscribing
//
// [Subscription.Next] and [Subscription.Messages] give messages in the broker's order.
// The client goes on reading its connection whether or not the program calls them:
// a subscription that is never read holds up neither the others nor the answers to
// publishes. What it may hold in this process has a bound ([SubscribeOptions].Credit);
// beyond it messages wait in the broker, under the subscription's policy.
//
// Messages that were dropped are told where they are missing: Next returns a [*Gap]
// as its error, and the next call goes on behind it. A program that can do without
// the missing messages goes on; it cannot fail to see them by accident.
//
// # Queues
//
// A message pushed to a queue waits there until somebody has settled it:
//
//	jobs := bus.Queue("jobs")
//	if _, err := jobs.Push(ctx, []byte("resize 17.png"), nil); err != nil {
//		return err
//	}
//	work, err := jobs.Consume(ctx, nil)
//	if err != nil {
//		return err
//	}
//	for job, err := range work.Deliveries(ctx) {
//		...
//		err = job.Ack() // or Nack: again, later; or Reject: never
//	}
//
// The [Receipt] of [Queue.Push] tells at which [Level] the message is kept. A delivery is
// leased to its consumer until it is settled or the lease runs out, and comes again
// then: a queue delivers at least once. [Delivery.Ack] does not wait; [Consumer.Flush]
// does, for all of them, and [Delivery.AckWait] for one.
//
// # Losing the connection
//
// A client that lost its connection makes it again, with back-off, opens its
// subscriptions and consumers again and sends once more what was not answered (marked
// as [Message].Redelivered for those who get it). Each subscription that may have
// missed something is told so by a Gap with [ReasonReconnect], each consumer whose
// leases are gone by a [*LeasesLost]. Calls that wait go on waiting across this, until
// their context ends, but for those that change a queue as a whole: they return
// [ErrDisconnected]. [Options].NoReconnect turns it off. [Client.Done] and [Client.Err]
// tell when a client has ended for good.
//
// # Concurrency
//
// All methods of this package's types may be called from any number of goroutines.
// Options are copied on entry. A client has two goroutines, one that reads the
// connection (and makes it again) and one that writes to it; [Client.Close] returns
// when both have ended.
package client
