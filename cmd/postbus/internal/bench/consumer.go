package bench

import (
	"fmt"
)

// consumer takes a queue's messages in rounds, acknowledges each, and ends a round when
// all consumers together have taken what it is to be and know that the acks are kept.
type consumer struct {
	job      *job
	counters *counters
	result   result

	last []uint64 // per pusher: one more than the number of the last message taken
}

// source is a consumer's way to a queue.
type source interface {
	// begin has the queue delivered; end gives back what was delivered and not taken.
	begin() error
	end() error

	// step waits for messages for a moment at most, acknowledges those that it may take
	// (consumer.claim), and tells of acks that are kept (consumer.confirm).
	step() error

	close()
}

// openSources says how each server is taken from.
var openSources = map[Server]func(*job, *consumer) (source, error){
	Postbus:    openRawSource,
	Redis:      openRedisSource,
	Beanstalkd: openBeanstalkdSource,
	MsgQ:       openMsgSource,
}

// consume is the role "consumer".
func consume(j *job, c *control) (*result, error) {
	k := &consumer{job: j, last: make([]uint64, j.Publishers)}
	var err error
	if k.counters, err = openCounters(j.Counters); err != nil {
		return nil, err
	}
	defer k.counters.close()
	open := openSources[j.Server]
	if j.Server == Postbus && j.Endpoints == clientEndpoints {
		open = openClientSource
	}
	s, err := open(j, k)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := c.ready(); err != nil {
		return nil, err
	}
	for range j.Rounds - 1 {
		if err := k.round(s); err != nil {
			return nil, err
		}
		if err := c.tell(&k.result); err != nil {
			return nil, err
		}
		<-c.goes
	}
	return &k.result, k.round(s)
}

// round takes until the target is reached.
func (k *consumer) round(s source) error {
	k.result = result{Start: now()}
	if err := s.begin(); err != nil {
		return err
	}
	for !k.counters.reached() {
		if err := s.step(); err != nil {
			return err
		}
	}
	return s.end()
}

// claim returns how many of n delivered messages may be taken.
func (k *consumer) claim(n int) int { return k.counters.claim(n) }

// confirm counts n messages whose acks are kept.
func (k *consumer) confirm(n int) {
	k.result.End = now()
	k.result.Received += uint64(n)
	k.counters.confirm(n)
}

// account checks one message that is about to be acknowledged: each pusher's come in
// order. That all come is for the counters to tell.
func (k *consumer) account(t tag) error {
	p, n := t.publisher(), t.number()
	if p >= len(k.last) {
		return fmt.Errorf("a message of pusher %d came, and there are only %d", p, len(k.last))
	}
	if n < k.last[p] {
		return fmt.Errorf("message %d of pusher %d came twice or out of order: the one before it was %d", n, p, k.last[p]-1)
	}
	k.last[p] = n + 1
	return nil
}
