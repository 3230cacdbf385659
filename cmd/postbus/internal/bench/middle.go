package bench

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// middle is what stands between the endpoints and is measured: a broker or a relay.
type middle struct {
	pid   int
	relay bool
	paths []string // a relay's sockets
	path  string   // a broker's
}

// in, out and pair are where the endpoints of each kind connect to.
func (m *middle) in() string   { return m.socket(relayIn) }
func (m *middle) out() string  { return m.socket(relayOut) }
func (m *middle) pair() string { return m.socket(relayPair) }

func (m *middle) socket(kind int) string {
	if m.relay {
		return m.paths[kind]
	}
	return m.path
}

// startRelay starts a relay with its sockets in dir.
func (p *party) startRelay(o *Options, dir string) (*middle, error) {
	m := &middle{relay: true}
	for i := range numRelaySockets {
		m.paths = append(m.paths, filepath.Join(dir, fmt.Sprintf("relay%d.sock", i)))
	}
	c, err := p.startRole("relay", "the relay", &job{
		Network: o.Network, Paths: m.paths, ReadSize: o.ReadSize,
	})
	if err != nil {
		return nil, err
	}
	if _, err := p.hear(c); err != nil {
		return nil, err
	}
	m.pid = c.cmd.Process.Pid
	return m, c.tell(goLine)
}

// startBroker starts a broker on the bus directory dir, as anybody would, and waits
// until it serves.
func (p *party) startBroker(o *Options, dir string) (*middle, error) {
	path := brokerSocket(o.Network, wire.DirAddresses(dir))
	var c *child
	var err error
	if o.CPUProfile != "" {
		c, err = p.startRole("broker", "the broker", &job{Path: dir, Size: o.Size, CPUProfile: o.CPUProfile})
	} else {
		args := []string{"serve", "--dir", dir}
		if o.Size > wire.DefaultMaxMessage {
			args = append(args, "--max-message", strconv.Itoa(o.Size))
		}
		c, err = p.start("the broker", nil, args...)
	}
	if err != nil {
		return nil, err
	}
	pid, err := p.await(c, o.Network, path, o.Size)
	if err != nil {
		return nil, err
	}
	return &middle{path: path, pid: pid}, nil
}

// findBroker returns the existing broker at an address.
func findBroker(o *Options) (*middle, error) {
	addresses, err := wire.ParseAddress(o.Address)
	if err != nil {
		return nil, &UsageError{err.Error()}
	}
	path := brokerSocket(o.Network, addresses)
	if path == "" {
		return nil, usage("address %q has no socket of type %s: give the bus directory, or choose that socket's network", o.Address, o.Network)
	}
	pid, err := probe(o.Network, path, o.Size)
	var refused *wire.Error
	if err != nil && !errors.As(err, &refused) {
		return nil, fmt.Errorf("%w: %w", client.ErrNoBroker, err)
	}
	return &middle{path: path, pid: pid}, err
}

// brokerSocket returns the path of the address with that network's socket type.
func brokerSocket(n Network, addresses []wire.Address) string {
	name := "unix"
	if n == Packet {
		name = "unixpacket"
	}
	for _, a := range addresses {
		if a.Network == name {
			return a.Path
		}
	}
	return ""
}

// probe says hello at path and returns the process that answers.
func probe(n Network, path string, size int) (pid int, err error) {
	e, err := dial(n, path, size)
	if err != nil {
		return 0, err
	}
	defer e.close()
	const patience = 10 // seconds
	if err := unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience}); err != nil {
		return 0, os.NewSyscallError("setsockopt", err)
	}
	if err := e.greet(size); err != nil {
		return 0, fmt.Errorf("say hello at %s: %w", path, err)
	}
	cred, err := unix.GetsockoptUcred(e.fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt", err)
	}
	return int(cred.Pid), nil
}

// memory returns what process pid has in memory, in bytes: all, and its own (not
// backed by files, which is what its data is).
func memory(pid int) (all, own int64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			all = kib << 10
		case "RssAnon":
			own = kib << 10
		}
	}
	return all, own, nil
}
