package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// inputBuffer holds what one read(2) gives, in bytes: several times what a pipe holds.
const inputBuffer = 256 << 10

// settleEvery is after how many reads the input is interrupted to settle, though
// more is there: some megabytes.
const settleEvery = 64

// errStopped ends the reading of an input that was told to stop.
var errStopped = errors.New("stopped reading")

// input is standard input, read until told to stop.
type input struct {
	file *os.File
	fd   int // file's; its method Fd would make it blocking for all who share it
	stop *wakeup

	// settle is called before a wait for more, and now and then. Its error ends
	// the reading.
	settle func() error
	reads  int
}

func (in *input) Read(p []byte) (int, error) {
	in.reads++
	ready, stopped, err := in.stop.poll(in.fd, unix.POLLIN, 0)
	if err == nil && (!ready || in.reads%settleEvery == 0) {
		err = in.settle()
	}
	if err == nil && !ready && !stopped {
		ready, err = in.stop.wait(in.fd, unix.POLLIN)
		stopped = !ready
	}
	if err != nil {
		return 0, err
	}
	if stopped {
		return 0, errStopped
	}
	n, err := in.file.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read standard input: %w", err)
	}
	return n, err
}

// A source gives one message body at a time, valid until the next call, and at
// the end io.EOF.
type source func() ([]byte, error)

// oneBody is the source of a single body.
func oneBody(body []byte) source {
	done := false
	return func() ([]byte, error) {
		if done {
			return nil, io.EOF
		}
		done = true
		return body, nil
	}
}

// wholeInput is the source of all of in as a single body of at most limit bytes.
func wholeInput(in io.Reader, limit int) source {
	var one source
	return func() ([]byte, error) {
		if one == nil {
			body, err := io.ReadAll(io.LimitReader(in, int64(limit)+1))
			if err != nil {
				return nil, err
			}
			if len(body) > limit {
				return nil, fmt.Errorf("standard input has more than %d bytes, %s; -l publishes each line on its own", limit, limitIs)
			}
			one = oneBody(body)
		}
		return one()
	}
}

const limitIs = "the broker's message limit (postbus serve --max-message raises it)"

// records is a source of what lies between delimiters. A last record without
// delimiter counts; an empty one counts but for that.
type records struct {
	in    *bufio.Reader
	delim byte
	noun  string // what a record is called in an error
	limit int    // largest record, bytes
	long  []byte // a record longer than in's buffer
	n     int    // records given
}

func newRecords(in io.Reader, delim byte, noun string, limit int) *records {
	return &records{in: bufio.NewReaderSize(in, inputBuffer), delim: delim, noun: noun, limit: limit}
}

func (r *records) next() ([]byte, error) {
	record, err := r.in.ReadSlice(r.delim)
	if err == bufio.ErrBufferFull {
		record, err = r.readLong(record)
	}
	switch {
	case err == nil:
		record = record[:len(record)-1]
	case err != io.EOF:
		return nil, err
	case len(record) == 0:
		return nil, io.EOF
	}
	r.n++
	if len(record) > r.limit {
		return nil, fmt.Errorf("%s %d has more than %d bytes, %s", r.noun, r.n, r.limit, limitIs)
	}
	return record, nil
}

// readLong gathers a record that begins with begin; past the limit it stops.
func (r *records) readLong(begin []byte) ([]byte, error) {
	r.long = append(r.long[:0], begin...)
	for len(r.long) <= r.limit {
		more, err := r.in.ReadSlice(r.delim)
		r.long = append(r.long, more...)
		if err != bufio.ErrBufferFull {
			return r.long, err
		}
	}
	return append(r.long, r.delim), nil // next takes the delimiter off again
}
