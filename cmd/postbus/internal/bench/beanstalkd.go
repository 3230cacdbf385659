package bench

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
)

// beanstalkdWindow is how many commands of a connection may be without an answer. It
// writes each answer by itself, and a socket's buffer has room for fewer than 300 such;
// when it is full the server reads no more commands, and waits for ever for a client that
// waits for room to write them.
const beanstalkdWindow = 128

// beanstalkdSource takes from the tube "default" and acknowledges with delete. It has
// half a window of reserves on the way, at most the job's prefetch.
type beanstalkdSource struct {
	*endpoint
	consumer *consumer
	out      []byte
	reserves int // on the way
	deletes  int
}

func openBeanstalkdSource(j *job, k *consumer) (source, error) {
	e, err := dialText(j)
	if err != nil {
		return nil, err
	}
	return &beanstalkdSource{endpoint: e, consumer: k}, nil
}

func (s *beanstalkdSource) begin() error { return nil }
func (s *beanstalkdSource) end() error   { return nil }

// step sends what fills the window of reserves, then takes one answer, and all that
// came with it.
func (s *beanstalkdSource) step() error {
	if n := s.consumer.claim(min(s.consumer.job.Prefetch, beanstalkdWindow/2) - s.reserves - s.deletes); n > 0 {
		for range n {
			s.out = append(s.out, "reserve\r\n"...)
		}
		s.reserves += n
	}
	if len(s.out) > 0 {
		if err := s.write(s.out); err != nil {
			return err
		}
		s.out = s.out[:0]
	}
	if s.reserves+s.deletes == 0 {
		time.Sleep(time.Millisecond) // the others have the rest
		return nil
	}
	line, err := s.nextLine()
	for err == nil && line != nil {
		if err = s.take(line); err == nil {
			line = s.line()
		}
	}
	return err
}

// take handles an answer: RESERVED <id> <bytes> and a body, or DELETED.
func (s *beanstalkdSource) take(line []byte) error {
	if bytes.Equal(line, []byte("DELETED")) {
		s.deletes--
		s.consumer.confirm(1)
		return nil
	}
	fields := bytes.Fields(line)
	if len(fields) != 3 || string(fields[0]) != "RESERVED" {
		return fmt.Errorf("beanstalkd answers %q", line)
	}
	size, err := strconv.Atoi(string(fields[2]))
	if err != nil {
		return err
	}
	s.out = append(append(append(s.out, "delete "...), fields[1]...), "\r\n"...)
	body, err := s.nextBytes(size)
	if err != nil {
		return err
	}
	t, _, err := readBody(body)
	if err == nil {
		err = s.consumer.account(t)
	}
	s.reserves--
	s.deletes++
	return err
}
