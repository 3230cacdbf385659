package client

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/postbus/postbus/wire"
)

// Client is a connection to a broker, made again when it is lost. Its methods may be
// called by several goroutines.
type Client struct {
	opts    Options
	log     hclog.Logger
	session [16]byte           // the same on each connection, so that the broker knows it again
	place   place              // where the broker was found, and is looked for again
	stop    context.CancelFunc // ends a reconnection
	done    chan struct{}      // closed when both goroutines have ended for good

	mu       sync.Mutex // guards what follows; taken before a feed's, never after
	work     sync.Cond  // the writer waits for something pending
	idle     bool       // the writer waits
	conn     *connection
	server   Server
	closing  bool  // Close was called
	err      error // set when the client has ended
	out      outbox
	topic    []byte // the last that was published to
	verdicts fifo[verdict]
	pongs    fifo[pong]
	refused  RefusedError // what nobody has been told of
	streams  map[uint32]stream
	lastSub  uint32
	awaits   map[uint64]*await
	requests map[uint64]*request
	lastWait uint64  // the last token of an await or a request
	queues   bool    // the broker has them
	settles  settles // of the present connection
}

// Server is what the client knows of its broker.
type Server struct {
	Address    string // such as unixpacket:/run/postbus/bus.sock; "" for one given to NewClient
	Version    string // of the broker's software
	Bus        string // names the run of seq numbers; another one begins anew
	MaxMessage int    // the largest body, bytes
	Self       Peer   // this client as the broker sees it
}

// pong is somebody waiting for the PONG with a token, or a later one.
type pong struct {
	token  uint64
	answer *reply[struct{}]
}

// await is a question for the subscribers of a topic. It outlives the callers that
// give up, as it does in the broker, and serves the next that asks the same.
type await struct {
	topic  string
	count  int
	answer *reply[int]
}

// Dial finds a broker as Options.Address says, connects to it and waits until it has
// answered: 5 seconds at most if ctx has no deadline. ctx is for Dial only and may end
// afterwards.
//
// Its errors are ErrNoBroker, which lists what was tried; ErrNotAllowed where this
// user may not use the socket (fs.ErrPermission is inside), or somebody else has
// taken the place of the user's broker; ErrVersion; ErrLimit when the broker takes no
// more connections; and ErrBadOption.
func Dial(ctx context.Context, opts *Options) (*Client, error) {
	c, err := newClient(opts)
	if err != nil {
		return nil, err
	}
	cn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.start(cn)
	return c, nil
}

// NewClient makes a client of a connection, such as that of a broker in this process,
// and waits until the broker has answered. The connection is the client's from now on,
// and is closed when NewClient fails. When it is lost the client ends with
// ErrDisconnected. Of the options, Name, Window and Logger matter.
func NewClient(ctx context.Context, conn *net.UnixConn, opts *Options) (*Client, error) {
	c, err := newClient(opts)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	c.opts.NoReconnect = true
	ctx, cancel := withDialTimeout(ctx)
	defer cancel()
	cn, err := c.greet(ctx, conn, "")
	if errors.Is(err, io.EOF) {
		return nil, disconnected(err)
	}
	if err != nil {
		return nil, err
	}
	c.start(cn)
	return c, nil
}

func newClient(opts *Options) (*Client, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{
		opts:     o,
		log:      o.Logger,
		done:     make(chan struct{}),
		streams:  make(map[uint32]stream),
		awaits:   make(map[uint64]*await),
		requests: make(map[uint64]*request),
	}
	c.work.L = &c.mu
	_, _ = rand.Read(c.session[:]) // it never fails, as of Go 1.24
	return c, nil
}

// start makes the client live on its first connection.
func (c *Client) start(cn *connection) {
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.restore(cn)
	go c.run(ctx, cn)
}

// Server returns what is known of the broker: of the last one, while the connection is
// lost.
func (c *Client) Server() Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server
}

// Ping sends a question to the broker, behind everything published so far, and waits
// for its answer. That does not mean that the publishes have been acknowledged.
func (c *Client) Ping(ctx context.Context) error {
	c.mu.Lock()
	if err := c.gone(); err != nil {
		c.mu.Unlock()
		return err
	}
	answer := newReply[struct{}]()
	c.pongs.push(pong{token: c.out.pings + 1, answer: answer})
	c.requestPing()
	c.mu.Unlock()
	_, err := answer.wait(ctx, "ping")
	return err
}

// AwaitSubscribers waits until a message to topic would be taken by at least n
// subscriptions, and returns by how many. The broker keeps at most 64 such questions
// of a client open, also those whose caller has given up; above that the error is
// ErrLimit.
func (c *Client) AwaitSubscribers(ctx context.Context, topic string, n int) (int, error) {
	if err := wire.CheckTopic(topic); err != nil {
		return 0, withSentinel(err)
	}
	c.mu.Lock()
	if err := c.gone(); err != nil {
		c.mu.Unlock()
		return 0, err
	}
	answer := c.await(topic, n)
	c.mu.Unlock()
	return answer.wait(ctx, "wait for %d subscribers of %q", n, topic)
}

// await returns the answer to an open question, or asks a new one; mu is held.
func (c *Client) await(topic string, n int) *reply[int] {
	for _, a := range c.awaits {
		if a.topic == topic && a.count == n {
			return a.answer
		}
	}
	c.lastWait++
	a := &await{topic: topic, count: n, answer: newReply[int]()}
	c.awaits[c.lastWait] = a
	if c.connected() {
		c.sendAwait(c.lastWait, a)
	}
	return a.answer
}

func (c *Client) sendAwait(token uint64, a *await) {
	c.send(wire.TypeAwait, &wire.Await{Token: token, Topic: a.topic, Subscribers: a.count})
}

// awaited settles a question; mu is held.
func (c *Client) awaited(token uint64, subscribers int, err error) {
	if a := c.awaits[token]; a != nil {
		delete(c.awaits, token)
		a.answer.settle(subscribers, err)
	}
}

// Done returns a channel that is closed when the client has ended for good: after
// Close, or when its connection was lost and is not made again.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns nil while the client lives, and then why it ended: ErrClosed after
// Close, else ErrDisconnected, ErrProtocol or another reason with the cause inside.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// gone returns the error of those who come too late, or nil; mu is held.
func (c *Client) gone() error {
	if c.err == nil && c.closing {
		return ErrClosed
	}
	return c.err
}

// Drain ends the client in order: it drains every subscription and consumer, flushes
// what was published, and closes. What it brought for the subscriptions can still be
// read afterwards, and then ErrDrained. It does not need anybody to read meanwhile,
// but for consumers it waits until what was given out is settled. The client is closed
// in any case, at the latest when ctx ends; the error is the first that occurred.
func (c *Client) Drain(ctx context.Context) error {
	var errs []error
	for _, s := range c.startDrain() {
		errs = append(errs, s.Drain(ctx))
	}
	errs = append(errs, c.Flush(ctx))
	errs = append(errs, c.Close())
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// startDrain begins to drain all streams, and returns those that now end.
func (c *Client) startDrain() (streams []stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		if s.startDrain() {
			streams = append(streams, s)
		}
	}
	return streams
}

// Close ends the client. What was published or settled is still written if that takes
// less than half a second, but Close does not wait for the broker's answers: Flush or
// Drain do.
// Calls that wait return ErrClosed, and so does Next on every subscription.
//
// It may be called any number of times, from anywhere, and returns when the client's
// goroutines have ended. The first call returns an ErrUnacknowledged if the broker
// has not answered everything, and a *RefusedError if something was refused that
// nobody was told of; later calls return nil.
func (c *Client) Close() error {
	c.mu.Lock()
	first := !c.closing
	c.closing = true
	if first {
		c.stop()
		if c.connected() {
			c.finish(c.conn, &wire.Goodbye{})
		}
	}
	c.mu.Unlock()
	<-c.done
	if !first {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.takeRefused(), c.takeUnanswered())
}
