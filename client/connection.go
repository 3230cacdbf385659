package client

import (
	"net"
	"time"

	"github.com/postbus/postbus/wire"
)

// connection is one connection to a broker, from WELCOME on.
type connection struct {
	client  *Client
	conn    *net.UnixConn
	reader  *wire.Reader
	address string
	welcome wire.Welcome

	inbox                 // readLoop's own
	goodbye *wire.Goodbye // what the broker said, if it did; readLoop's own

	finished bool // GOODBYE is in the outbox, the last frame to write; under Client.mu
}

// serve reads and writes until the connection is of no more use, and returns why
// reading stopped. Both loops have ended when it returns.
func (cn *connection) serve() error {
	written := make(chan struct{})
	go func() {
		defer close(written)
		cn.stopReading(cn.writeLoop())
	}()
	err := cn.readLoop()
	cn.stopWriting(err)
	<-written
	_ = cn.conn.Close()
	return err
}

// readLoop takes frames off the connection and handles them, whatever the program
// does meanwhile, until that fails or the broker says GOODBYE.
func (cn *connection) readLoop() error {
	defer cn.deliver()
	for {
		payload, err := cn.reader.Next()
		if err != nil {
			return err
		}
		if err := cn.handle(payload); err != nil {
			return err
		}
		if !cn.reader.Buffered() {
			cn.deliver()
		}
	}
}

// writeLoop writes what is pending, each time all of it at once, until that fails or
// it is told to stop.
func (cn *connection) writeLoop() error {
	for {
		chunk := cn.client.takePending(cn)
		if chunk == nil {
			return nil
		}
		err := wire.WriteFrames(cn.conn, chunk, cn.welcome.MaxPacket)
		cn.client.wrotePending()
		if err != nil {
			return err
		}
	}
}

// stopReading ends readLoop after writeLoop ended. A write fails as soon as the broker
// has closed its end, while verdicts and messages that it sent before are still to be
// read; the deadline is for a broker that has not closed.
func (cn *connection) stopReading(err error) {
	wait := time.Duration(0)
	if err != nil {
		cn.client.log.Debug("write failed", "address", cn.address, "error", err)
		wait = lingerTimeout
	}
	_ = cn.conn.SetReadDeadline(time.Now().Add(wait))
}

// stopWriting ends writeLoop after readLoop ended for the reason err.
func (cn *connection) stopWriting(err error) {
	c := cn.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if fault := faultOf(err); fault != nil && cn.goodbye == nil && !cn.finished {
		c.finish(cn, &wire.Goodbye{Code: fault.Code, Text: fault.Text})
		return
	}
	if cn.finished {
		return // writeLoop ends by itself, at the latest at the deadline finish gave it
	}
	c.conn = nil
	c.work.Signal()
	_ = cn.conn.SetWriteDeadline(time.Now())
}

// takePending returns everything that is to be written and waits for it; nil means
// that the writer is to stop.
func (c *Client) takePending(cn *connection) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.conn == cn {
		if !cn.finished {
			c.writeSettles()
		}
		if chunk := c.out.take(); chunk != nil {
			return chunk
		}
		if cn.finished {
			return nil
		}
		c.idle = true
		c.work.Wait()
	}
	return nil
}

// wrotePending says that the writer has done with what takePending gave it.
func (c *Client) wrotePending() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.wrote()
}

// wakeWriter tells the writer of something pending, if it waits; mu is held.
func (c *Client) wakeWriter() {
	if c.idle {
		c.idle = false
		c.work.Signal()
	}
}

// finish makes GOODBYE the last frame the writer writes, soon or never; mu is held.
func (c *Client) finish(cn *connection, goodbye *wire.Goodbye) {
	c.writeSettles()
	c.out.pending.frames = wire.AppendCold(c.out.pending.frames, wire.TypeGoodbye, goodbye)
	cn.finished = true
	c.idle = false
	c.work.Signal()
	_ = cn.conn.SetWriteDeadline(time.Now().Add(closeTimeout))
}

// connected reports whether control frames can be sent; mu is held. When they cannot
// there is nothing to do: restore asks for everything anew.
func (c *Client) connected() bool { return c.conn != nil && !c.conn.finished }

// send appends a cold frame; mu is held, and the client is connected.
func (c *Client) send(t wire.Type, body any) {
	c.out.pending.frames = wire.AppendCold(c.out.pending.frames, t, body)
	c.wakeWriter()
}

// requestPing has everything that is pending followed by a PING; mu is held.
func (c *Client) requestPing() {
	c.out.ping = true
	c.wakeWriter()
}
