package wire_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
)

// The numbers and names are for ever: this is the table of docs/PROTOCOL.md.
func TestCodes(t *testing.T) {
	for i, want := range []string{
		"code 0", "malformed", "unknown-frame", "version", "too-large", "bad-topic", "bad-filter", "no-subscriber",
		"not-allowed", "limit", "slow", "shutdown", "timeout", "internal", "not-found", "exists", "bad-option",
		"full", "conflict", "lease-lost", "store", "draining", "code 22",
	} {
		if got := wire.Code(i).String(); got != want {
			t.Errorf("code %d is called %q, want %q", i, got, want)
		}
	}
}

func TestReasons(t *testing.T) {
	for i, want := range []string{"reason 0", "drop-old", "drop-new", "latest", "shutdown", "reconnect", "reason 6"} {
		if got := wire.Reason(i).String(); got != want {
			t.Errorf("reason %d is called %q, want %q", i, got, want)
		}
	}
}

func TestPolicies(t *testing.T) {
	for i, name := range []string{"drop-old", "drop-new", "latest", "block", "disconnect"} {
		want := wire.Policy(i + 1)
		if got, err := wire.ParsePolicy(name); got != want || err != nil || want.String() != name {
			t.Errorf("%q is policy %d, %v, called %q", name, got, err, want)
		}
	}
	if got, err := wire.ParsePolicy(""); got != wire.DropOld || err != nil {
		t.Errorf("the default is %v, %v", got, err)
	}
	if got := wire.Policy(6).String(); got != "policy 6" {
		t.Errorf("policy 6 is called %q", got)
	}
	for _, name := range []string{"drop", "Block", "policy 1", " "} {
		_, err := wire.ParsePolicy(name)
		wantCode(t, err, wire.CodeBadOption)
	}
}

func TestErrorIs(t *testing.T) {
	err := fmt.Errorf("client: %w", &wire.Error{Code: wire.CodeLimit, Text: "too many"})
	if !errors.Is(err, &wire.Error{Code: wire.CodeLimit}) || errors.Is(err, &wire.Error{Code: wire.CodeSlow}) {
		t.Error("errors.Is goes by something else than the code")
	}
	if errors.Is(err, errors.New("too many")) {
		t.Error("an error of another type is the same")
	}
	if got := (&wire.Error{Code: wire.CodeSlow}).Error(); !strings.Contains(got, "slow") {
		t.Errorf("without a text it says %q", got)
	}
}
