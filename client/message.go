package client

import (
	"fmt"
	"slices"
	"time"

	"github.com/postbus/postbus/wire"
)

// Message is one message as a subscription got it.
//
// It belongs to the receiver for as long as it is kept, and is not changed any more:
// several goroutines may read it. But it is part of larger memory: Body lies in the
// buffer the connection was read with, 256 KiB, and the Message itself in a block of
// its neighbours, 16 KiB. To keep few of many messages for long, keep their Clone.
type Message struct {
	// Seq is the broker's number for the message: it rises from message to message,
	// and is the same for all who get it.
	Seq uint64

	// Time is when the broker accepted it.
	Time time.Time

	// From is who published it, from the kernel.
	From Peer

	// Redelivered says that it may have been delivered before: its publisher lost
	// its connection before it knew that the message had arrived.
	Redelivered bool

	Topic string
	Body  []byte

	headers []byte // encoded
	size    int    // of its frame, bytes
}

// Peer is a process as the kernel knows it.
type Peer struct {
	UID, GID uint32 // at the time it connected

	// PID is for information only: it may be another process's by now, and is 0 for
	// one outside the broker's pid namespace.
	PID uint32
}

// Headers returns the headers it was published with, nil for none. They are decoded
// anew by each call; the map is the caller's.
func (m *Message) Headers() map[string]string {
	headers, err := wire.DecodeHeaders(m.headers)
	if err != nil {
		return nil // the broker refuses such headers
	}
	return headers
}

// Clone returns a copy that shares no memory with other messages.
func (m *Message) Clone() *Message {
	clone := *m
	clone.Body = slices.Clone(m.Body)
	clone.headers = slices.Clone(m.headers)
	return &clone
}

// Reason says why messages are missing at a Gap.
type Reason = wire.Reason

// The reasons for a Gap.
const (
	ReasonDropOld   = wire.ReasonDropOld   // policy DropOld, buffer full
	ReasonDropNew   = wire.ReasonDropNew   // policy DropNew, buffer full
	ReasonLatest    = wire.ReasonLatest    // policy Latest: a newer message of the same topic came
	ReasonShutdown  = wire.ReasonShutdown  // the broker stopped before it could deliver these
	ReasonReconnect = wire.ReasonReconnect // the connection was lost; none or some are missing
)

// Gap tells that messages are missing at this place of a subscription. It is the
// error of a Next, and not the end: the next call goes on behind it.
type Gap struct {
	// First and Last bound the seq of the missing messages. With ReasonReconnect
	// they are 0 where not known: both after another broker took over and counts
	// anew, Last when the subscription is not opened again.
	First, Last uint64

	// Count is how many are missing. With ReasonReconnect it is 0: nobody counted,
	// and it may be that none are.
	Count uint64

	Reason Reason
}

// Error says what is missing, and why.
func (g *Gap) Error() string {
	switch {
	case g.Reason != ReasonReconnect:
		return fmt.Sprintf("client: %d messages missing, seq %d to %d: %s", g.Count, g.First, g.Last, g.Reason)
	case g.Last == 0:
		return "client: messages may be missing: the connection was lost"
	}
	return fmt.Sprintf("client: messages may be missing, seq %d to %d: the connection was lost", g.First, g.Last)
}
