// Package bench measures a broker: how many messages it delivers, how long one
// takes, what that costs in CPU and memory, and how it compares with a bare relay.
//
// Every party is a process of its own. [Measure] starts them (the program itself, with
// the hidden commands "bench publisher", "bench subscriber" and so on), tells each
// its job in one line of JSON on stdin, lets them go together, and collects what
// each saw as JSON from its stdout:
//
//	         job, go, finish                   result
//	Measure -------------------> publisher --+
//	 |                              | socket +--> Report
//	 +-------------------------> broker, or  |
//	 |                           relay       |
//	 |                              | socket |
//	 +-------------------------> subscriber -+
//
// The endpoints are the same code whether a broker or the relay is between them.
// They speak raw frames over blocking sockets, so that what is measured is the
// middle; with Options.Endpoints "client" they are what a Go program has.
//
// Of a queue (Options.Queue) the parties are pushers and consumers, which have their
// turns: what was pushed is then taken, in one round or in many. A broker can be
// replaced by another server or by bare system calls there ([Server]); a pusher is an
// outlet with the way to it, a consumer a source, and what they do around that is the
// same. queues.sh, next to this file, installs the others and runs the whole list.
//
// It is a package rather than files of the command because its parties are called
// what the commands are called.
package bench
