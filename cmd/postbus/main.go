// Command postbus is the message bus of one host: the broker (postbus serve) and
// the shell's way to it (postbus pub, postbus sub). Its own help is its manual:
// postbus help, postbus COMMAND --help, postbus help exit-codes.
package main

import "os"

func main() {
	os.Exit(execute(os.Args[1:]))
}
