package wire

import "fmt"

// Code says what was wrong. The numbers are for ever; new ones are only added.
type Code uint16

// The error codes, in ERROR and GOODBYE frames.
const (
	CodeMalformed    Code = 1  // the bytes are not a frame of this protocol
	CodeUnknownFrame Code = 2  // a frame type that this side does not take
	CodeVersion      Code = 3  // no protocol version in common
	CodeTooLarge     Code = 4  // a frame or message above the limit
	CodeBadTopic     Code = 5  // not a topic
	CodeBadFilter    Code = 6  // not a filter
	CodeNoSubscriber Code = 7  // "require subscriber", and nobody got it
	CodeNotAllowed   Code = 8  // this peer may not do that
	CodeLimit        Code = 9  // a limit of the broker's is reached
	CodeSlow         Code = 10 // a subscription with policy "disconnect" was full
	CodeShutdown     Code = 11 // the broker stops, or starts again
	CodeTimeout      Code = 12 // the peer took too long: no HELLO, half a frame, or nothing read
	CodeInternal     Code = 13 // the broker's fault
	CodeNotFound     Code = 14 // no such subscription, or queue
	CodeExists       Code = 15 // that subscription number is in use
	CodeBadOption    Code = 16 // an option's value is not one of those allowed
	CodeFull         Code = 17 // a queue is full, and rejects what is pushed then
	CodeConflict     Code = 18 // a queue of that name is there with other settings
	CodeLeaseLost    Code = 19 // a message is not leased to this consumer, or not any more
	CodeStore        Code = 20 // a queue's store did not keep it
	CodeDraining     Code = 21 // a queue that is being drained takes no pushes
)

var codeNames = [...]string{
	"", "malformed", "unknown-frame", "version", "too-large", "bad-topic", "bad-filter", "no-subscriber",
	"not-allowed", "limit", "slow", "shutdown", "timeout", "internal", "not-found", "exists", "bad-option",
	"full", "conflict", "lease-lost", "store", "draining",
}

// String returns the code's short name, such as "bad-topic".
func (c Code) String() string {
	if int(c) < len(codeNames) && c != 0 {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint16(c))
}

// Error is the one error that crosses the socket.
type Error struct {
	Code Code
	Text string // a sentence for a person: the thing, the limit, the remedy
}

// Error returns the text, or the code's name where there is none.
func (e *Error) Error() string {
	if e.Text == "" {
		return e.Code.String()
	}
	return e.Text
}

// Is reports whether target is an *Error with the same code, so that
// errors.Is(err, &wire.Error{Code: wire.CodeBadTopic}) works.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

func malformed(thing, why string) error {
	return &Error{Code: CodeMalformed, Text: thing + " refused: " + why}
}

// Policy says what happens when a subscription's buffer is full.
type Policy uint8

// The policies. The zero Policy stands for the default, DropOld.
const (
	DropOld    Policy = 1 // the oldest buffered message goes (the default)
	DropNew    Policy = 2 // the arriving message goes
	Latest     Policy = 3 // of each topic only the newest is buffered; then as DropOld
	Block      Policy = 4 // publishers to it wait
	Disconnect Policy = 5 // the subscriber's connection is ended
)

var policyNames = [...]string{"", "drop-old", "drop-new", "latest", "block", "disconnect"}

// String returns the policy's name on the wire and on the command line.
func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("policy %d", uint8(p))
}

// ParsePolicy returns the policy of that name; "" is DropOld.
func ParsePolicy(name string) (Policy, error) {
	if name == "" {
		return DropOld, nil
	}
	for p, n := range policyNames {
		if n == name {
			return Policy(p), nil
		}
	}
	return 0, &Error{Code: CodeBadOption, Text: fmt.Sprintf(
		"policy %q is unknown: use drop-old, drop-new, latest, block or disconnect", name)}
}

// Reason says why messages are missing at a gap.
type Reason uint8

// The reasons. The broker sends the first four; ReasonReconnect is a client
// library's own, for what may have been missed while it was not connected.
const (
	ReasonDropOld   Reason = 1 // policy drop-old, buffer full
	ReasonDropNew   Reason = 2 // policy drop-new, buffer full
	ReasonLatest    Reason = 3 // policy latest: a newer message of the same topic came
	ReasonShutdown  Reason = 4 // the broker stopped before it could deliver these
	ReasonReconnect Reason = 5 // the connection was lost and made again
)

var reasonNames = [...]string{"", "drop-old", "drop-new", "latest", "shutdown", "reconnect"}

// String returns the reason's name.
func (r Reason) String() string {
	if int(r) < len(reasonNames) && r != 0 {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}
