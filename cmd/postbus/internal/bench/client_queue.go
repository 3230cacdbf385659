package bench

import (
	"context"
	"errors"

	"github.com/postbus/postbus/client"
)

// clientPusher pushes through the client.
type clientPusher struct {
	clientOutlet
	queue *client.Queue
}

func openClientPusher(j *job) (outlet, error) {
	c, err := dialClient(j)
	if err != nil {
		return nil, err
	}
	return &clientPusher{clientOutlet{client: c, body: make([]byte, j.Size)}, c.Queue(j.Queue)}, nil
}

func (o *clientPusher) send(n int, first tag, at int64, step float64) error {
	for k := range n {
		stampBody(o.body, first+tag(k), at+int64(float64(k)*step))
		if err := o.queue.PushAsync(context.Background(), o.body, nil); err != nil {
			return err
		}
	}
	return nil
}

// clientSource takes through the client.
type clientSource struct {
	consumer *consumer
	client   *client.Client
	open     *client.Consumer
}

func openClientSource(j *job, k *consumer) (source, error) {
	c, err := dialClient(j)
	if err != nil {
		return nil, err
	}
	return &clientSource{consumer: k, client: c}, nil
}

func (s *clientSource) begin() (err error) {
	j := s.consumer.job
	s.open, err = s.client.Queue(j.Queue).Consume(context.Background(), &client.ConsumeOptions{Prefetch: j.Prefetch})
	return err
}

func (s *clientSource) end() error {
	return s.open.Close()
}

// step takes a few messages, acknowledges each, and waits for those acks at the end of
// many only: they go out by themselves.
func (s *clientSource) step() error {
	ctx, cancel := context.WithTimeout(context.Background(), stepTime)
	defer cancel()
	n := 0
	for n < s.consumer.job.Prefetch {
		d, err := s.open.Next(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
		if s.consumer.claim(1) == 0 {
			break
		}
		t, _, err := readBody(d.Body)
		if err == nil {
			err = s.consumer.account(t)
		}
		if err == nil {
			err = d.Ack()
		}
		if err != nil {
			return err
		}
		if n++; s.consumer.counters.claimedAll() {
			break
		}
	}
	if n == 0 {
		return nil
	}
	if err := s.open.Flush(context.Background()); err != nil {
		return err
	}
	s.consumer.confirm(n)
	return nil
}

func (s *clientSource) close() { _ = s.client.Close() }
