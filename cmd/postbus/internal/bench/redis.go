package bench

import (
	"fmt"
	"strconv"
	"time"
)

// redisGroup is the consumer group of the stream.
const redisGroup = "bench"

// makeStream makes the stream and its group, empty.
func makeStream(j *job) error {
	e, err := dialText(j)
	if err != nil {
		return err
	}
	defer e.close()
	answer, err := e.roundTripText(appendCommand(nil, "XGROUP", "CREATE", j.Queue, redisGroup, "0", "MKSTREAM"))
	if err == nil && answer != "+OK" {
		err = fmt.Errorf("redis answers %q to XGROUP CREATE", answer)
	}
	return err
}

// redisSource takes from a stream with XREADGROUP and acknowledges with XACK; an XDEL
// then removes the entries, as an ack does in a queue. Two reads of half the prefetch
// are on the way, so that the server need not wait for this side.
type redisSource struct {
	*endpoint
	consumer *consumer
	read     []byte   // the XREADGROUP command
	due      []due    // answers, in the order they will come
	entries  [][]byte // ids of the entries of one answer
	tags     []tag    // and the tags in their bodies
	ids      [][]byte // room for entries
	out      []byte
}

// due is an answer that a command on the way will get: entries, or how many entries
// an XACK or XDEL concerned.
type due struct {
	entries bool
	count   int
	gone    bool // with it they are acknowledged and removed
}

func openRedisSource(j *job, k *consumer) (source, error) {
	e, err := dialText(j)
	if err != nil {
		return nil, err
	}
	read := appendCommand(nil, "XREADGROUP", "GROUP", redisGroup, strconv.Itoa(j.Index),
		"COUNT", strconv.Itoa(max(1, j.Prefetch/2)), "STREAMS", j.Queue, ">")
	return &redisSource{endpoint: e, consumer: k, read: read}, nil
}

func (s *redisSource) begin() error {
	s.due = append(s.due, due{entries: true}, due{entries: true})
	return s.write(append(s.read[:len(s.read):len(s.read)], s.read...))
}

// end takes the answers that are on the way: all of them without entries.
func (s *redisSource) end() error {
	for len(s.due) > 0 {
		if n, err := s.takeAnswer(); err != nil || n > 0 {
			return fmt.Errorf("%d entries came that nobody pushed: %w", n, err)
		}
	}
	return nil
}

func (s *redisSource) step() error {
	wasRead := s.due[0].entries
	n, err := s.takeAnswer()
	if err != nil || !wasRead {
		return err
	}
	s.out = s.out[:0]
	if n > 0 {
		if err := s.appendAcks(n); err != nil {
			return err
		}
	} else {
		time.Sleep(time.Millisecond) // the others have the rest
	}
	s.due = append(s.due, due{entries: true})
	return s.write(append(s.out, s.read...))
}

// takeAnswer waits for the next answer and returns how many entries it has, which are
// then in s.entries and s.tags.
func (s *redisSource) takeAnswer() (int, error) {
	d := s.due[0]
	s.due = s.due[:copy(s.due, s.due[1:])]
	if d.entries {
		return s.takeEntries()
	}
	n, err := s.number(':')
	if err == nil && n != d.count {
		err = fmt.Errorf("redis acknowledged or removed %d of %d entries", n, d.count)
	}
	if err == nil && d.gone {
		s.consumer.confirm(n)
	}
	return 0, err
}

// takeEntries reads XREADGROUP's answer.
func (s *redisSource) takeEntries() (int, error) {
	streams, err := s.number('*')
	if err != nil || streams < 1 {
		return 0, err
	}
	if _, err := s.number('*'); err != nil {
		return 0, err
	}
	if _, err := s.bulk(); err != nil {
		return 0, err
	}
	n, err := s.number('*')
	if err != nil {
		return 0, err
	}
	s.entries, s.tags = s.entries[:0], s.tags[:0]
	for i := range n {
		if err := s.takeEntry(i); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// takeEntry reads one entry: its id, and a field and its value.
func (s *redisSource) takeEntry(i int) error {
	if _, err := s.number('*'); err != nil {
		return err
	}
	id, err := s.bulk()
	if err != nil {
		return err
	}
	if i == len(s.ids) {
		s.ids = append(s.ids, nil)
	}
	s.ids[i] = append(s.ids[i][:0], id...)
	s.entries = append(s.entries, s.ids[i])
	if _, err := s.number('*'); err != nil {
		return err
	}
	if _, err := s.bulk(); err != nil {
		return err
	}
	body, err := s.bulk()
	if err != nil {
		return err
	}
	t, _, err := readBody(body)
	s.tags = append(s.tags, t)
	return err
}

// number waits for a line of that kind and returns its number.
func (s *redisSource) number(kind byte) (int, error) {
	line, err := s.nextLine()
	if err != nil {
		return 0, err
	}
	if len(line) < 2 || line[0] != kind {
		return 0, fmt.Errorf("redis answers %q where %c and a number are due", line, kind)
	}
	return strconv.Atoi(string(line[1:]))
}

// bulk waits for a string. It is valid until the next call.
func (s *redisSource) bulk() ([]byte, error) {
	n, err := s.number('$')
	if err != nil || n < 0 {
		return nil, err
	}
	return s.nextBytes(n)
}

// appendAcks appends the commands that acknowledge and remove the n entries, as many in
// one as the job says.
func (s *redisSource) appendAcks(n int) error {
	if got := s.consumer.claim(n); got != n {
		return fmt.Errorf("%d entries came where %d were left", n, got)
	}
	for _, t := range s.tags {
		if err := s.consumer.account(t); err != nil {
			return err
		}
	}
	for from := 0; from < n; from += s.consumer.job.AckBatch {
		ids := s.entries[from:min(n, from+s.consumer.job.AckBatch)]
		s.out = appendStrings(s.out, ids, "XACK", s.consumer.job.Queue, redisGroup)
		s.out = appendStrings(s.out, ids, "XDEL", s.consumer.job.Queue)
		s.due = append(s.due, due{count: len(ids)}, due{count: len(ids), gone: true})
	}
	return nil
}

// appendStrings appends the command that begins with args and ends with more.
func appendStrings(dst []byte, more [][]byte, args ...string) []byte {
	head := func(dst []byte, kind byte, n int) []byte {
		return append(strconv.AppendInt(append(dst, kind), int64(n), 10), "\r\n"...)
	}
	dst = head(dst, '*', len(args)+len(more))
	for _, a := range args {
		dst = append(append(head(dst, '$', len(a)), a...), "\r\n"...)
	}
	for _, m := range more {
		dst = append(append(head(dst, '$', len(m)), m...), "\r\n"...)
	}
	return dst
}
