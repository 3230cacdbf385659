package client

import (
	"errors"
	"fmt"

	"github.com/postbus/postbus/wire"
)

// Errors of making a connection.
var (
	// ErrNoBroker says that no broker answered. The text lists each address that
	// was tried and why it failed.
	ErrNoBroker = errors.New("client: no broker answered")

	// ErrVersion says that client and broker have no protocol version in common.
	ErrVersion = errors.New("client: no protocol version in common")
)

// Errors of a client, subscription or consumer that has ended.
var (
	// ErrClosed says that the program closed the client, the subscription or the
	// consumer.
	ErrClosed = errors.New("client: closed")

	// ErrDrained is the last that Next returns after Drain: on a subscription when
	// every message was given out, on a consumer at once.
	ErrDrained = errors.New("client: drained")

	// ErrDisconnected says that the connection was lost and not made again: because
	// of NoReconnect, on a connection given to NewClient, or after ReconnectFor.
	ErrDisconnected = errors.New("client: connection lost")

	// ErrProtocol says that one side sent what the other does not take for frames
	// of the protocol.
	ErrProtocol = errors.New("client: protocol broken")

	// ErrUnacknowledged says that a client ended before the broker had answered
	// everything it published, so that these messages may be lost. Flush or Drain
	// before Close waits for the answers.
	ErrUnacknowledged = errors.New("client: ended with publishes unacknowledged")
)

// Errors that say why a request or a message was refused. A *wire.Error with the
// broker's own words is inside when the broker refused it.
var (
	ErrNotAllowed   = errors.New("client: not allowed")
	ErrNoSubscriber = errors.New("client: no subscriber")
	ErrTooLarge     = errors.New("client: too large")
	ErrBadTopic     = errors.New("client: bad topic")
	ErrBadFilter    = errors.New("client: bad filter")
	ErrBadOption    = errors.New("client: bad option")
	ErrLimit        = errors.New("client: limit reached")
	ErrSlow         = errors.New("client: subscription too slow") // policy Disconnect
	ErrShutdown     = errors.New("client: broker is stopping")
	ErrTimeout      = errors.New("client: too slow for the broker") // it gave up waiting for this client
	ErrBroker       = errors.New("client: broker failed")
)

// Errors of queues, with a *wire.Error inside when the broker said so.
var (
	// ErrNotFound says that there is no queue of that name, or not any more.
	ErrNotFound = errors.New("client: no such queue")

	// ErrQueueFull says that a queue holds as much as it may, and rejects pushes then.
	ErrQueueFull = errors.New("client: queue full")

	// ErrConflict says that the queue is not as it would have to be: it was declared
	// with other settings, which the broker's words name, or its Drain was ended by a
	// Resume.
	ErrConflict = errors.New("client: conflict")

	// ErrStore says that a queue could not keep a message, or what became of it: no
	// space, or what it is kept in is damaged.
	ErrStore = errors.New("client: queue's store failed")

	// ErrDraining says that the queue is being drained and takes no pushes.
	ErrDraining = errors.New("client: queue is draining")

	// ErrLeaseLost says that a delivery is not this consumer's any more: its lease ran
	// out or ended with the connection, and it may have been delivered again.
	ErrLeaseLost = errors.New("client: lease lost")

	// ErrSettled says that the program has settled this delivery before.
	ErrSettled = errors.New("client: delivery settled already")

	// ErrUnsupported says that the broker is older than what was asked of it.
	ErrUnsupported = errors.New("client: broker has no queues")
)

// sentinels names the error for each code of the protocol.
var sentinels = map[wire.Code]error{
	wire.CodeMalformed:    ErrProtocol,
	wire.CodeUnknownFrame: ErrProtocol,
	wire.CodeVersion:      ErrVersion,
	wire.CodeTooLarge:     ErrTooLarge,
	wire.CodeBadTopic:     ErrBadTopic,
	wire.CodeBadFilter:    ErrBadFilter,
	wire.CodeNoSubscriber: ErrNoSubscriber,
	wire.CodeNotAllowed:   ErrNotAllowed,
	wire.CodeLimit:        ErrLimit,
	wire.CodeSlow:         ErrSlow,
	wire.CodeShutdown:     ErrShutdown,
	wire.CodeTimeout:      ErrTimeout,
	wire.CodeInternal:     ErrBroker,
	wire.CodeNotFound:     ErrNotFound,
	wire.CodeExists:       ErrBroker,
	wire.CodeBadOption:    ErrBadOption,
	wire.CodeFull:         ErrQueueFull,
	wire.CodeConflict:     ErrConflict,
	wire.CodeLeaseLost:    ErrLeaseLost,
	wire.CodeStore:        ErrStore,
	wire.CodeDraining:     ErrDraining,
}

// withSentinel puts the sentinel of a *wire.Error's code in front of it.
func withSentinel(err error) error {
	var coded *wire.Error
	if !errors.As(err, &coded) {
		return err
	}
	if sentinel, ok := sentinels[coded.Code]; ok {
		return fmt.Errorf("%w: %w", sentinel, err)
	}
	return err
}

// refusal is the error for a code and text that the broker sent.
func refusal(code wire.Code, text string) error {
	return withSentinel(&wire.Error{Code: code, Text: text})
}

// broken is the error for a frame that the broker should not have sent.
func broken(format string, args ...any) error {
	return &wire.Error{Code: wire.CodeMalformed, Text: fmt.Sprintf(format, args...)}
}

// RefusedError tells of messages that Publish accepted and the broker refused.
// Flush, Drain and Close return it, each refusal once.
type RefusedError struct {
	Count uint64 // how many were refused
	Topic string // of the first of them
	First error  // why that one was refused; errors.Is and As look into it
}

// Error returns a sentence with the number, and the first topic and reason.
func (e *RefusedError) Error() string {
	if e.Count == 1 {
		return fmt.Sprintf("client: a message to %q was refused: %v", e.Topic, e.First)
	}
	return fmt.Sprintf("client: %d messages were refused, the first, to %q: %v", e.Count, e.Topic, e.First)
}

// Unwrap returns the reason of the first refusal.
func (e *RefusedError) Unwrap() error { return e.First }

// maxLeaseErrorSeqs bounds LeaseError.Seqs.
const maxLeaseErrorSeqs = 1000

// LeaseError tells of deliveries that were settled in vain: their leases had run out, or
// the queue did not keep it. They may be delivered again. Consumer.Flush, Drain and
// Close return it, each delivery once.
type LeaseError struct {
	Queue string

	// Count is how many they are. Where the broker refused more than it named, of what
	// it was told at once, all that it may have been are counted.
	Count int

	Seqs  []uint64 // of the first 1000 of them
	First error    // why the first of them was refused; errors.Is and As look into it
}

// Error returns a sentence with the number, the first ten seqs and the first reason.
func (e *LeaseError) Error() string {
	return fmt.Sprintf("client: %d deliveries of queue %q were settled in vain, seq %d: %v", e.Count, e.Queue, e.Seqs[:min(len(e.Seqs), 10)], e.First)
}

// Unwrap returns the reason of the first.
func (e *LeaseError) Unwrap() error { return e.First }

// add counts one message that was settled in vain.
func (e *LeaseError) add(seq uint64, reason error) {
	if e.Count == 0 {
		e.First = reason
	}
	e.Count++
	if len(e.Seqs) < maxLeaseErrorSeqs {
		e.Seqs = append(e.Seqs, seq)
	}
}
