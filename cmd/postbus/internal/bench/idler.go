package bench

import (
	"fmt"
	"os"
)

// idle is the role "idler": it opens subscribed connections, each to a topic of its
// own, and then only holds them.
func idle(j *job, c *control) (*result, error) {
	for i := range j.Conns {
		e, err := dialBroker(j.Network, j.Path, j.Size)
		if err != nil {
			return nil, fmt.Errorf("connection %d: %w", i+1, err)
		}
		defer e.close()
		if err := e.subscribe(fmt.Sprintf("%s/%d/%d", j.Filter, os.Getpid(), i), j.Policy); err != nil {
			return nil, fmt.Errorf("connection %d: %w", i+1, err)
		}
	}
	return nil, c.ready()
}
