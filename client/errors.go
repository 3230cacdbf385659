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

// Errors of a client or subscription that has ended.
var (
	// ErrClosed says that the program closed the client or the subscription.
	ErrClosed = errors.New("client: closed")

	// ErrDrained is the last that Next returns on a subscription after Drain, when
	// every message was given out.
	ErrDrained = errors.New("client: subscription drained")

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
	wire.CodeNotFound:     ErrBroker,
	wire.CodeExists:       ErrBroker,
	wire.CodeBadOption:    ErrBadOption,
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
