// Package broker is the postbus broker: one event loop that takes messages from
// unix sockets and fans them out to their subscribers.
//
//	b, err := broker.New(nil)
//	dir, err := broker.OpenDir("/run/user/1000/postbus", nil)
//	err = b.ServeDir(dir) // until Shutdown or Close
//
// A program that wants a bus of its own, without a file, takes one end of a
// socketpair from [Broker.Connect] and gives it to client.NewClient.
//
// # Inside
//
// One goroutine, the loop (loop.go), owns all state: no locks, and every message
// gets its place in one order. A turn reads what is ready (peer.go), handles the
// frames (commands.go, publish.go), writes (deliver.go) and looks at the clock.
// What other goroutines want is posted to it (Broker.post); the only lock guards
// the list of posts.
package broker
