package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/client"
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
	bytes  atomic.Int64 // read so far
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
	in.bytes.Add(int64(n))
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read standard input: %w", err)
	}
	return n, err
}

// withInput calls f with standard input, whose reading ends with ctx and with the
// connection of c. settle is called with a context that ends likewise, whenever the
// input has nothing more for now.
func withInput(ctx context.Context, c *client.Client, settle func(context.Context) error,
	f func(ctx context.Context, in *input) error) error {
	stop, err := newWakeup()
	if err != nil {
		return err
	}
	defer stop.close()
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-c.Done():
			cancel(c.Err())
		case <-ctx.Done():
		}
		stop.wake()
	})
	in := &input{file: os.Stdin, fd: unix.Stdin, stop: stop, settle: func() error { return settle(ctx) }}
	err = f(ctx, in)
	if errors.Is(err, errStopped) {
		err = context.Cause(ctx)
	}
	cancel(nil)
	watch.Wait()
	return err
}

// bodies says where the bodies of messages come from.
type bodies struct {
	body  []byte // nil: from standard input
	lines bool
	nul   bool
}

func (b *bodies) addFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&b.lines, "lines", "l", false, "each line of standard input is a message, without its newline")
	cmd.Flags().BoolVarP(&b.nul, "null", "0", false, "each NUL-terminated piece of standard input is a message")
	cmd.MarkFlagsMutuallyExclusive("lines", "null")
}

// many reports whether there may be more than one.
func (b *bodies) many() bool { return b.lines || b.nul }

func (b *bodies) check() error {
	if b.body != nil && b.many() {
		return usagef("-l and -0 read standard input: leave out the body %q", b.body)
	}
	return nil
}

// source returns them; those from in are of limit bytes at most.
func (b *bodies) source(in io.Reader, limit int) source {
	switch {
	case b.body != nil:
		return oneBody(b.body)
	case b.lines:
		return newRecords(in, '\n', b.noun(), limit).next
	case b.nul:
		return newRecords(in, 0, b.noun(), limit).next
	}
	return wholeInput(in, limit)
}

// noun is what one of them is called in an error.
func (b *bodies) noun() string {
	switch {
	case b.lines:
		return "line"
	case b.nul:
		return "piece"
	}
	return "message"
}

// parseHeaders reads headers given as KEY=VALUE; nil for none.
func parseHeaders(given []string) (map[string]string, error) {
	var headers map[string]string
	for _, header := range given {
		key, value, ok := strings.Cut(header, "=")
		if !ok || key == "" || !utf8.ValidString(header) {
			return nil, usagef("--header %q: write it as KEY=VALUE, in UTF-8", header)
		}
		if headers == nil {
			headers = make(map[string]string)
		}
		headers[key] = value
	}
	return headers, nil
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
