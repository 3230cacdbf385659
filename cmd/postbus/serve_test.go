package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/client"
)

// TestSecondSignal stops a broker that has something for a client that does not read.
func TestSecondSignal(t *testing.T) {
	b, err := broker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dir, err := broker.OpenDir(filepath.Join(t.TempDir(), "bus"), nil)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.ServeDir(dir) }()
	c, err := client.Dial(t.Context(), &client.Options{Address: dir.Path(), NoReconnect: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Subscribe(t.Context(), "t", &client.SubscribeOptions{Credit: 1}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.PublishWait(t.Context(), "t", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	signals := make(chan os.Signal, 2)
	signals <- unix.SIGTERM
	signals <- unix.SIGTERM // as timeout(1) sends it: once more to the group
	began := time.Now()
	defer time.AfterFunc(2*sameSignal, func() { signals <- unix.SIGTERM }).Stop()
	if err := untilEnd(t.Context(), b, served, signals); err == nil || !strings.Contains(err.Error(), "second signal") {
		t.Errorf("after two signals it ended with %v", err)
	}
	if took := time.Since(began); took < 2*sameSignal {
		t.Errorf("it was cut after %v, by the first signal sent twice", took)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := manager.Read(buf); string(buf[:n]) != "READY=1" || err != nil {
		t.Errorf("the manager was told %q, %v", buf[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("without a manager: %v", err)
	}
}
