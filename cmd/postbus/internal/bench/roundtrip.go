package bench

import (
	"fmt"

	"github.com/postbus/postbus/wire"
)

// Topics of the round trip, behind the prefix: there, and back.
const (
	thereTopic = "there"
	backTopic  = "back"
)

// partner is one of the two clients of a round trip: it sends to one topic and
// receives from the other, on one connection.
type partner interface {
	send(body []byte) error

	// receive waits for the next message and returns its body, valid until the next call.
	receive() ([]byte, error)

	close()
}

// meet connects a partner and waits until the other is there too.
func meet(j *job, c *control) (partner, error) {
	open := newRawPartner
	if j.Endpoints == clientEndpoints {
		open = newClientPartner
	}
	p, err := open(j)
	if err != nil {
		return nil, err
	}
	return p, c.ready()
}

// echo is the role "echo": it sends each message back until one is marked as the
// last.
func echo(j *job, c *control) (*result, error) {
	p, err := meet(j, c)
	if err != nil {
		return nil, err
	}
	defer p.close()
	for r := (&result{}); ; {
		body, err := p.receive()
		if err != nil {
			return nil, err
		}
		t, _, err := readBody(body)
		if err != nil {
			return nil, err
		}
		if err := p.send(body); err != nil {
			return nil, err
		}
		r.Received++
		if t.last() {
			return r, nil
		}
	}
}

// warmup is how many round trips go before those that count.
const warmup = 200

// ping is the role "ping": it sends a message, waits until it is back, and times
// that.
func ping(j *job, c *control) (*result, error) {
	p, err := meet(j, c)
	if err != nil {
		return nil, err
	}
	defer p.close()
	body := make([]byte, j.Size)
	r := &result{Start: now()}
	end := r.Start + int64(j.Duration)
	for last := false; !last; {
		n := r.Published
		if j.Messages > 0 {
			last = n+1 >= uint64(j.Messages+warmup)
		} else {
			last = n > warmup && now() >= end
		}
		t := newTag(0, n)
		if last {
			t |= lastTag
		}
		took, err := roundTrip(p, body, t)
		if err != nil {
			return nil, err
		}
		if n >= warmup {
			r.Latency.add(took)
		}
		r.Published++
	}
	r.End, r.Received = now(), r.Published
	return r, nil
}

// roundTrip sends body with tag t and returns how long it took to come back, in
// nanoseconds.
func roundTrip(p partner, body []byte, t tag) (int64, error) {
	sent := now()
	stampBody(body, t, sent)
	if err := p.send(body); err != nil {
		return 0, err
	}
	back, err := p.receive()
	if err != nil {
		return 0, err
	}
	took := now() - sent
	if got, _, err := readBody(back); err != nil || got != t {
		return 0, fmt.Errorf("message %d came back as another one: does a second bench run on this broker?", t.number())
	}
	return took, nil
}

// rawPartner is a partner on an endpoint.
type rawPartner struct {
	*endpoint
	frame []byte // what it sends; the body is its end
}

// newRawPartner connects; topic and filter are not used by a relay, which just copies
// what one of a pair sends to the other.
func newRawPartner(j *job) (partner, error) {
	p := &rawPartner{frame: appendFrame(nil, j, j.Topics[0], make([]byte, j.Size))}
	var err error
	if j.Relay {
		p.endpoint, err = dialRelay(j.Network, j.Path, j.Size)
		return p, err
	}
	if p.endpoint, err = dialBroker(j.Network, j.Path, j.Size); err != nil {
		return nil, err
	}
	return p, p.subscribe(j.Filter, j.Policy)
}

func (p *rawPartner) send(body []byte) error {
	copy(p.frame[len(p.frame)-len(body):], body)
	return p.write(p.frame)
}

func (p *rawPartner) receive() ([]byte, error) {
	for {
		payload, err := p.next()
		if err != nil {
			return nil, err
		}
		t, err := wire.PeekType(payload)
		if err != nil {
			return nil, err
		}
		switch t {
		case wire.TypeMessage:
			var m wire.Message
			err := m.Decode(payload)
			return m.Body, err
		case wire.TypeAck, wire.TypeTarget:
		default:
			return nil, unexpected(t, payload)
		}
	}
}
