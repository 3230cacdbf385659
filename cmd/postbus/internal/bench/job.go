package bench

import (
	"time"

	"github.com/postbus/postbus/wire"
)

// job is what a child process is told to do.
type job struct {
	Network    Network       `json:"network"`
	Path       string        `json:"path"`            // the socket
	Paths      []string      `json:"paths,omitempty"` // a relay's sockets, for its role see relay
	Relay      bool          `json:"relay,omitempty"` // a relay is at the other end, no broker
	Endpoints  string        `json:"endpoints,omitempty"`
	Index      int           `json:"index"`      // of this publisher
	Publishers int           `json:"publishers"` // in all
	Conns      int           `json:"conns"`      // of this subscriber process
	Topics     []string      `json:"topics,omitempty"`
	Filter     string        `json:"filter,omitempty"`
	Policy     wire.Policy   `json:"policy,omitempty"`
	Size       int           `json:"size"`
	WriteSize  int           `json:"write_size,omitempty"`
	ReadSize   int           `json:"read_size,omitempty"`
	Messages   int           `json:"messages,omitempty"`
	Duration   time.Duration `json:"duration,omitempty"`
	Rate       float64       `json:"rate,omitempty"` // of this publisher, a second
	Latency    bool          `json:"latency,omitempty"`
	CPUProfile string        `json:"cpu_profile,omitempty"`
}

// result is what a child process saw.
type result struct {
	Start     int64     `json:"start,omitempty"` // of now
	End       int64     `json:"end,omitempty"`
	Published uint64    `json:"published,omitempty"`
	Received  uint64    `json:"received,omitempty"` // all connections together
	Told      uint64    `json:"told,omitempty"`     // counts of gaps
	Latency   histogram `json:"latency"`
}
