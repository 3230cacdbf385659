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

	// Of a bench of queues.
	Server     Server     `json:"server,omitempty"`
	Queue      string     `json:"queue,omitempty"` // its name, in whatever server
	Level      wire.Level `json:"level,omitempty"` // that each push is to reach
	State      string     `json:"state,omitempty"` // the broker's state directory
	MsgIDs     []int      `json:"msg_ids,omitempty"`
	Fill       int        `json:"fill,omitempty"` // messages pushed in a round before the first
	Rounds     int        `json:"rounds,omitempty"`
	OneAtATime bool       `json:"one_at_a_time,omitempty"`
	Prefetch   int        `json:"prefetch,omitempty"`
	AckBatch   int        `json:"ack_batch,omitempty"`
	Keep       bool       `json:"keep,omitempty"`     // a consumer's messages, from round to round
	Counters   string     `json:"counters,omitempty"` // the file of the consumers' counters
}

// result is what a child process saw.
type result struct {
	Start     int64     `json:"start,omitempty"` // of now
	End       int64     `json:"end,omitempty"`
	Published uint64    `json:"published,omitempty"`
	Received  uint64    `json:"received,omitempty"` // all connections together
	Told      uint64    `json:"told,omitempty"`     // counts of gaps
	Latency   histogram `json:"latency"`
	Heap      int64     `json:"heap,omitempty"` // live bytes of the broker's
}
