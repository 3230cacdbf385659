package bench

import (
	"bytes"
	"fmt"
	"strconv"
)

// textWindow is how many bytes of pushes without an answer a text protocol's pusher has
// at most: as much as our own broker's window.
const textWindow = 2 << 20

// dialText connects to a server that does not greet.
func dialText(j *job) (*endpoint, error) { return dial(Stream, j.Path, j.Size) }

// openTextOutlet pushes to a server whose protocol is text, with the same loop as to a
// broker.
func openTextOutlet(j *job) (outlet, error) {
	e, err := dialText(j)
	if err != nil {
		return nil, err
	}
	o := &rawOutlet{endpoint: e, takeVerdict: (*rawOutlet).takeAdded}
	e.window = textWindow
	if j.Server == Beanstalkd {
		o.takeVerdict = (*rawOutlet).takeInserted
		e.window = beanstalkdWindow * len(appendFrame(nil, j, "", make([]byte, j.Size)))
	}
	o.batch = newBatch(j, min(j.WriteSize, e.window/4))
	return o, nil
}

// line returns the next line that was read, without its end, or nil.
func (e *endpoint) line() []byte {
	b := e.buf[e.from:e.to]
	i := bytes.IndexByte(b, '\n')
	if i < 1 {
		return nil
	}
	e.from += i + 1
	return b[:i-1]
}

// nextLine waits for a line. It is valid until the next call.
func (e *endpoint) nextLine() ([]byte, error) {
	for {
		if line := e.line(); line != nil {
			return line, nil
		}
		if err := e.fill(0); err != nil {
			return nil, err
		}
	}
}

// nextBytes waits for n bytes and the end of line behind them.
func (e *endpoint) nextBytes(n int) ([]byte, error) {
	for e.to-e.from < n+2 {
		if err := e.fill(0); err != nil {
			return nil, err
		}
	}
	b := e.buf[e.from : e.from+n]
	e.from += n + 2
	return b, nil
}

// takeAdded handles Redis's answer to an XADD: the entry's id, which it does not look at.
func (o *rawOutlet) takeAdded() (bool, error) {
	from := o.from
	length := o.line()
	if length == nil {
		return false, nil
	}
	if len(length) == 0 || length[0] != '$' {
		return false, fmt.Errorf("redis answers %q to a push", length)
	}
	n, err := strconv.Atoi(string(length[1:]))
	if err != nil || n < 0 {
		return false, fmt.Errorf("redis answers %q to a push", length)
	}
	if o.to-o.from < n+2 {
		o.from = from
		return false, nil
	}
	o.from += n + 2
	o.acked++
	return true, nil
}

// takeInserted handles beanstalkd's answer to a put.
func (o *rawOutlet) takeInserted() (bool, error) {
	line := o.line()
	if line == nil {
		return false, nil
	}
	if !bytes.HasPrefix(line, []byte("INSERTED ")) {
		return false, fmt.Errorf("beanstalkd answers %q to a push", line)
	}
	o.acked++
	return true, nil
}

// appendCommand appends a command as Redis's protocol (RESP) has it.
func appendCommand(dst []byte, args ...string) []byte {
	dst = fmt.Appendf(dst, "*%d\r\n", len(args))
	for _, a := range args {
		dst = fmt.Appendf(dst, "$%d\r\n%s\r\n", len(a), a)
	}
	return dst
}

// roundTripText writes a command and waits for an answer of one line.
func (e *endpoint) roundTripText(command []byte) (string, error) {
	if err := e.write(command); err != nil {
		return "", err
	}
	line, err := e.nextLine()
	return string(line), err
}
