// Package examples_test holds one scripted conversation with a broker twice, with the
// Go client and with the Python one that was written from docs/PROTOCOL.md, and wants
// the same answers.
package examples_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/wire"
)

const script = "testdata/conversation.txt"

// patience bounds a whole conversation, which takes a second or two.
const patience = 2 * time.Minute

func TestConversation(t *testing.T) {
	want, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	python := findPython(t)
	for _, network := range []string{"unixpacket", "unix"} {
		t.Run(network, func(t *testing.T) {
			spoken := speakGo(t, startBroker(t, network), string(want))
			compare(t, "the Go client", spoken, string(want))
			if python == "" {
				return
			}
			spokenToo := speakPython(t, python, startBroker(t, network))
			compare(t, "the Python client", spokenToo, string(want))
		})
	}
}

// startBroker serves a bus directory of its own until the test ends and returns
// the address of its socket on network.
func startBroker(t *testing.T, network string) string {
	t.Helper()
	b, err := broker.New(&broker.Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := broker.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.ServeDir(dir) }()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("broker: %v", err)
		}
		if err := <-served; err != broker.ErrClosed {
			t.Errorf("ServeDir returned %v, want %v", err, broker.ErrClosed)
		}
	})
	for _, a := range wire.DirAddresses(dir.Path()) {
		if a.Network == network {
			return a.String()
		}
	}
	t.Fatalf("a bus directory has no socket of network %s", network)
	return ""
}

// speakGo returns the script with what really came of each command, up to the first
// result that differs: the commands after it build on it.
func speakGo(t *testing.T, address, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	talk := newConversation(address)
	defer talk.close(ctx, nil)
	var spoken strings.Builder
	for line := range strings.Lines(script) {
		said := line
		if command, _, isCommand := strings.Cut(line, " -> "); isCommand && line[0] != '#' {
			said = command + " -> " + talk.run(ctx, command) + "\n"
		}
		spoken.WriteString(said)
		if said != line {
			break
		}
	}
	return spoken.String()
}

// speakPython does the same with the Python client.
func speakPython(t *testing.T, python, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, python, "-B", "python/conversation.py", address, script)
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Errorf("%s: %v\n%s", command, err, &stderr)
	}
	return stdout.String()
}

// findPython returns a Python that has what the client needs. Without one, that half
// of the test is left out, unless POSTBUS_INTEROP=1 insists on it.
func findPython(t *testing.T) string {
	t.Helper()
	const needs = "import sys, msgpack; sys.exit(sys.version_info < (3, 10))"
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(python, "-c", needs).Run() == nil {
			return python
		}
	}
	const without = "no Python 3.10 with the msgpack module (Debian: python3-msgpack)"
	if os.Getenv("POSTBUS_INTEROP") == "1" {
		t.Fatalf("%s, and POSTBUS_INTEROP=1 insists on it", without)
	}
	fmt.Printf("left out: the Python half of %s: %s\n", t.Name(), without)
	return ""
}

// compare reports the first line in which a conversation went otherwise than the script.
func compare(t *testing.T, who, spoken, script string) {
	t.Helper()
	got, want := strings.Split(spoken, "\n"), strings.Split(script, "\n")
	for i := range want {
		if i == len(got) || got[i] != want[i] {
			said := "nothing"
			if i < len(got) {
				said = got[i]
			}
			t.Errorf("%s, line %d of the script:\n got %.200s\nwant %.200s", who, i+1, said, want[i])
			return
		}
	}
}
