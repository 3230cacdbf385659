package client

import (
	"context"
	"fmt"
)

// reply is what a call waits for: an answer of the broker's, or the client's end.
// It is settled once, with Client.mu held; any number of callers may wait for it.
type reply[T any] struct {
	done  chan struct{}
	value T
	err   error
}

func newReply[T any]() *reply[T] { return &reply[T]{done: make(chan struct{})} }

func (r *reply[T]) settle(value T, err error) {
	r.value, r.err = value, err
	close(r.done)
}

// wait returns the answer, or where the context ends first its error, with what was
// waited for as fmt.Sprintf has it.
func (r *reply[T]) wait(ctx context.Context, what string, args ...any) (T, error) {
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
	}
	select {
	case <-r.done: // both at once: the answer is worth more
		return r.value, r.err
	default:
		var none T
		return none, interrupted(ctx, what, args...)
	}
}

// interrupted is the error for a call whose context ended.
func interrupted(ctx context.Context, what string, args ...any) error {
	return fmt.Errorf("client: %s: %w", fmt.Sprintf(what, args...), context.Cause(ctx))
}
