package bench

import (
	"math"

	"github.com/postbus/postbus/wire"
)

// pusher fills a queue in rounds: it sends as fast as the server's window allows and
// ends a round when every push is acknowledged.
type pusher struct {
	publisher
}

// openOutlets says how each server is pushed to.
var openOutlets = map[Server]func(*job) (outlet, error){
	Postbus:    openRawOutlet,
	Redis:      openTextOutlet,
	Beanstalkd: openTextOutlet,
	MsgQ:       openMsgOutlet,
}

// push is the role "pusher".
func push(j *job, c *control) (*result, error) {
	open := openOutlets[j.Server]
	j.Topics = []string{j.Queue}
	if j.Server == Postbus {
		j.Topics[0] = wire.QueueTopic + j.Queue
		if j.Endpoints == clientEndpoints {
			open = openClientPusher
		}
	}
	out, err := open(j)
	if err != nil {
		return nil, err
	}
	defer out.close()
	p := &pusher{publisher{outlet: out, job: j}}
	if err := c.ready(); err != nil {
		return nil, err
	}
	if j.Fill > 0 {
		r, err := p.round(j.Fill, math.MaxInt64)
		if err == nil {
			err = c.tell(r)
		}
		if err != nil {
			return nil, err
		}
		<-c.goes
	}
	for range j.Rounds - 1 {
		r, err := p.round(j.Messages, int64(j.Duration))
		if err == nil {
			err = c.tell(r)
		}
		if err != nil {
			return nil, err
		}
		<-c.goes
	}
	return p.round(j.Messages, int64(j.Duration))
}

// round pushes at most that many messages and begins no push after limit nanoseconds.
func (p *pusher) round(messages int, limit int64) (*result, error) {
	r := &result{Start: now()}
	end := limit
	if limit < math.MaxInt64 {
		end += r.Start
	}
	many := p.many()
	if p.job.OneAtATime {
		many = 1
	}
	for at := r.Start; int(r.Published) < messages && at < end; at = now() {
		n := min(many, messages-int(r.Published))
		err := p.next(n, at, 0)
		if err == nil && p.job.OneAtATime {
			if err = p.flush(); err == nil {
				r.Latency.add(now() - at)
			}
		}
		if err != nil {
			return nil, err
		}
		r.Published += uint64(n)
	}
	err := p.flush()
	r.End = now()
	return r, err
}
