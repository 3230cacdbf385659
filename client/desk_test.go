package client

import (
	"errors"
	"slices"
	"testing"

	"github.com/postbus/postbus/wire"
)

// Desk is a client on a connection without a socket and without goroutines: a test
// plays both, frame by frame, and where there are timers the clock.
type Desk struct {
	*Client
	t  testing.TB
	cn *connection
}

// NewDesk returns a client of a broker that has queues.
func NewDesk(t testing.TB) *Desk {
	c, err := newClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.stop = func() {}
	d := &Desk{Client: c, t: t}
	d.Connect()
	return d
}

// Connect makes a new connection, after Lose.
func (d *Desk) Connect() {
	d.cn = &connection{
		client: d.Client,
		inbox:  inbox{targets: make(map[uint32]receiver)},
		welcome: wire.Welcome{
			Version: 1, Features: []string{wire.FeatureQueues}, Bus: "desk",
			MaxPacket: wire.DefaultMaxPacket, MaxMessage: wire.DefaultMaxMessage, Window: 1 << 20,
		},
	}
	d.restore(d.cn)
}

// Lose ends the connection.
func (d *Desk) Lose() { d.lost(d.cn, errors.New("lost")) }

// Put hands over what the broker sent in one piece: whole frames, which are kept.
func (d *Desk) Put(frames []byte) error {
	for len(frames) > 0 {
		payload, size, err := wire.Split(frames, wire.FrameLimit(wire.DefaultMaxMessage))
		if err != nil {
			return err
		}
		if err := d.cn.handle(payload); err != nil {
			return err
		}
		frames = frames[size:]
	}
	d.cn.deliver()
	return nil
}

// Cold hands over a cold frame.
func (d *Desk) Cold(t wire.Type, body any) {
	if err := d.Put(wire.AppendCold(nil, t, body)); err != nil {
		d.t.Fatal(err)
	}
}

// Take returns the payloads of what the client has to say; they are valid until the
// next call.
func (d *Desk) Take() (payloads [][]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		d.writeSettles()
		frames := d.out.take()
		if frames == nil {
			return payloads
		}
		for len(frames) > 0 {
			payload, size, _ := splitOwn(frames)
			payloads = append(payloads, payload)
			frames = frames[size:]
		}
		d.out.wrote()
	}
}

// Settles is Take for a client that settles, and otherwise only pings.
func (d *Desk) Settles() (settles []wire.Settle) {
	for _, payload := range d.Take() {
		var s wire.Settle
		if err := s.Decode(payload); err == nil {
			s.Reason = []byte(string(s.Reason))
			settles = append(settles, s)
		} else if t, _ := wire.PeekType(payload); t != wire.TypePing {
			d.t.Fatalf("a frame of %s: %v", t, err)
		}
	}
	return settles
}

// Consume opens a consumer, whose number is returned too.
func (d *Desk) Consume(queue string, opts *ConsumeOptions) (*Consumer, uint32) {
	s, err := d.Queue(queue).newConsumer(opts)
	if err != nil {
		d.t.Fatal(err)
	}
	d.mu.Lock()
	s.request.Sub = d.freeNumber()
	d.streams[s.request.Sub] = s
	s.ask()
	d.mu.Unlock()
	d.Open(s)
	return s, s.request.Sub
}

// Subscribe opens a subscription, whose number is returned too.
func (d *Desk) Subscribe(filter string) (*Subscription, uint32) {
	s, err := d.newSubscription(filter, &SubscribeOptions{Credit: -1})
	if err != nil {
		d.t.Fatal(err)
	}
	d.mu.Lock()
	s.request.Sub = d.freeNumber()
	d.streams[s.request.Sub] = s
	s.ask()
	d.mu.Unlock()
	d.Take()
	d.Cold(wire.TypeSubscribed, &wire.Subscribed{Sub: s.request.Sub})
	return s, s.request.Sub
}

// Open confirms a consumer on the present connection.
func (d *Desk) Open(s *Consumer) {
	var body wire.Consume
	payloads := d.Take()
	if len(payloads) == 0 {
		d.t.Fatal("no CONSUME")
	}
	if err := wire.DecodeCold(payloads[len(payloads)-1], &body); err != nil || body != s.request {
		d.t.Fatalf("want %+v, got %+v, %v", s.request, body, err)
	}
	d.Cold(wire.TypeSubscribed, &wire.Subscribed{Sub: body.Sub})
}

// TryNext is Next without waiting: nil when there is nothing.
func TryNext(s *Consumer) (*Delivery, error) {
	d, err := s.take()
	if d == nil && err == nil {
		s.mu.Lock()
		s.waits--
		s.mu.Unlock()
	}
	return d, err
}

// Ready returns how many deliveries wait for Next.
func Ready(s *Consumer) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Ending returns what Next gives at the end, nil if that has not come.
func Ending(s *Consumer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Held returns the seq of what is given out and not settled.
func Held(s *Consumer) (seqs []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.held {
		seqs = append(seqs, d.Seq)
	}
	slices.Sort(seqs)
	return seqs
}

// WaitingFor returns how many calls of Next wait.
func WaitingFor(s *Consumer) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waits
}

// Flushing returns how many calls of Consumer.Flush wait for what was written.
func Flushing(c *Client) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.settles.flights.items[c.settles.flights.head:] {
		if f.verb == 0 {
			n++
		}
	}
	return n
}

// Requests returns how many QUEUE frames have no answer.
func Requests(c *Client) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.requests)
}

// Plain returns what is exported of a delivery.
func Plain(d *Delivery) Delivery {
	plain := *d
	plain.headers, plain.size = nil, 0
	plain.consumer, plain.round, plain.holding = nil, 0, 0
	return plain
}
