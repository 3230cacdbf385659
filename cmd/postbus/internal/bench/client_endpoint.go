package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// The endpoints of --endpoints client: what a program in Go has. They wait without a
// deadline; a run that takes too long is ended by the parent.

// dialClient connects a client to the job's socket.
func dialClient(j *job) (*client.Client, error) {
	network := "unix"
	if j.Network == Packet {
		network = "unixpacket"
	}
	address := wire.Address{Network: network, Path: j.Path}
	c, err := client.Dial(context.Background(), &client.Options{
		Address: address.String(), Name: "postbus bench", NoReconnect: true,
	})
	if err != nil {
		return nil, err
	}
	if limit := c.Server().MaxMessage; j.Size > limit {
		return nil, errors.Join(sizeError(j.Size, limit), c.Close())
	}
	return c, nil
}

// clientOutlet publishes through the client.
type clientOutlet struct {
	client *client.Client
	topics []string
	next   int // topic
	body   []byte
}

func openClientOutlet(j *job) (outlet, error) {
	c, err := dialClient(j)
	if err != nil {
		return nil, err
	}
	return &clientOutlet{client: c, topics: j.Topics, body: make([]byte, j.Size)}, nil
}

// many is how often the clock is looked at.
func (o *clientOutlet) many() int { return 64 }

func (o *clientOutlet) send(n int, first tag, at int64, step float64) error {
	for k := range n {
		stampBody(o.body, first+tag(k), at+int64(float64(k)*step))
		if err := o.client.Publish(context.Background(), o.topics[o.next], o.body, nil); err != nil {
			return err
		}
		o.next = (o.next + 1) % len(o.topics)
	}
	return nil
}

func (o *clientOutlet) flush() error { return o.client.Flush(context.Background()) }

func (o *clientOutlet) close() { _ = o.client.Close() }

// subscribeClients is the role "subscriber" with a client for each connection.
func subscribeClients(j *job, c *control) (*result, error) {
	s := &clientSubscriber{job: j}
	defer s.close()
	for range j.Conns {
		if err := s.connect(); err != nil {
			return nil, err
		}
	}
	if err := c.ready(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-c.finish
		if j.Policy != wire.Block { // the last message may be among those dropped
			time.AfterFunc(time.Second, cancel)
		}
	}()
	errs := make([]error, len(s.subs))
	var wg sync.WaitGroup
	for i, sub := range s.subs {
		wg.Go(func() { errs[i] = s.receive(ctx, sub) })
	}
	wg.Wait()
	return &s.result, errors.Join(errs...)
}

// clientSubscriber is a process's subscriptions.
type clientSubscriber struct {
	job     *job
	clients []*client.Client
	subs    []*client.Subscription

	mu     sync.Mutex
	result result // of those that have ended
}

func (s *clientSubscriber) connect() error {
	c, err := dialClient(s.job)
	if err != nil {
		return err
	}
	s.clients = append(s.clients, c)
	sub, err := c.Subscribe(context.Background(), s.job.Filter, &client.SubscribeOptions{Policy: s.job.Policy})
	s.subs = append(s.subs, sub)
	return err
}

func (s *clientSubscriber) close() {
	for _, c := range s.clients {
		_ = c.Close()
	}
}

// receive takes one subscription's messages until all have come or ctx ends.
func (s *clientSubscriber) receive(ctx context.Context, sub *client.Subscription) error {
	var r result
	count := newTally(s.job.Publishers)
	for !count.complete() {
		m, err := sub.Next(ctx)
		var gap *client.Gap
		if errors.As(err, &gap) {
			r.Told += gap.Count
			continue
		}
		if err != nil && ctx.Err() != nil {
			break
		}
		if err != nil {
			return err
		}
		t, sent, err := readBody(m.Body)
		if err == nil {
			err = count.take(t)
		}
		if err != nil {
			return err
		}
		// A clock read for each message would be much of its cost.
		if s.job.Latency || t.last() || count.received%64 == 0 {
			r.End = now()
		}
		if s.job.Latency {
			r.Latency.add(r.End - sent)
		}
	}
	if s.job.Policy == wire.Block && count.missing > 0 {
		return fmt.Errorf("%d messages are missing in between, under a policy that drops none", count.missing)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Received += count.received
	s.result.Told += r.Told
	s.result.End = max(s.result.End, r.End)
	s.result.Latency.merge(&r.Latency)
	return nil
}

// clientPartner is one side of a round trip through the client.
type clientPartner struct {
	client *client.Client
	sub    *client.Subscription
	topic  string
}

func newClientPartner(j *job) (partner, error) {
	c, err := dialClient(j)
	if err != nil {
		return nil, err
	}
	sub, err := c.Subscribe(context.Background(), j.Filter, &client.SubscribeOptions{Policy: j.Policy})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &clientPartner{client: c, sub: sub, topic: j.Topics[0]}, nil
}

func (p *clientPartner) send(body []byte) error {
	return p.client.Publish(context.Background(), p.topic, body, nil)
}

func (p *clientPartner) receive() ([]byte, error) {
	m, err := p.sub.Next(context.Background())
	if err != nil {
		return nil, err
	}
	return m.Body, nil
}

// close waits until what was sent is out: the last message, for the other side.
func (p *clientPartner) close() {
	_ = p.client.Flush(context.Background())
	_ = p.client.Close()
}
