package main

import (
	"net"
	"os"
)

// notify tells the service manager that started this process, if one did, of a
// change of state, such as "READY=1" (sd_notify(3)). A name that begins with @ is
// an abstract one, which net writes the same way.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
