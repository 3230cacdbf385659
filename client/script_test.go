package client_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// script plays the broker on one connection, frame by frame.
type script struct {
	t      testing.TB
	conn   *net.UnixConn
	reader *wire.Reader
}

func newScript(t testing.TB, conn *net.UnixConn) *script {
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	s := &script{t: t, conn: conn, reader: wire.NewReader(conn, true)}
	s.reader.SetLimits(wire.FrameLimit(wire.DefaultMaxMessage), wire.DefaultMaxPacket)
	return s
}

// scripted returns a client and the script at the other end of its connection.
func scripted(t testing.TB, welcome *wire.Welcome) (*client.Client, *script) {
	t.Helper()
	checkGoroutines(t)
	conn, other := socketpair(t)
	s := newScript(t, other)
	greeted := make(chan struct{})
	go func() {
		defer close(greeted)
		s.greet(welcome)
	}()
	c, err := client.NewClient(testContext(t), conn, nil)
	<-greeted
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, s
}

func socketpair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conn, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// listener is a bus whose broker is scripts.
type listener struct {
	*net.UnixListener
	t    testing.TB
	path string
}

func listen(t testing.TB, network string) *listener {
	t.Helper()
	return listenAt(t, network, filepath.Join(t.TempDir(), "sock"))
}

func listenAt(t testing.TB, network, path string) *listener {
	t.Helper()
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &listener{l, t, path}
}

func (l *listener) address() string { return l.Addr().Network() + ":" + l.path }

func (l *listener) accept() *script {
	conn, err := l.AcceptUnix()
	if err != nil {
		l.t.Error(err)
		panic(err)
	}
	return newScript(l.t, conn)
}

// dial returns a client of l and the script it is connected to.
func (l *listener) dial(o client.Options, welcome *wire.Welcome) (*client.Client, *script) {
	l.t.Helper()
	o.Address = l.address()
	accepted := make(chan *script)
	go func() {
		s := l.accept()
		s.greet(welcome)
		accepted <- s
	}()
	c := dial(l.t, &o)
	return c, <-accepted
}

// greet reads HELLO and answers it; zero fields of welcome get values that do.
func (s *script) greet(welcome *wire.Welcome) wire.Hello {
	s.t.Helper()
	var hello wire.Hello
	s.expect(wire.TypeHello, &hello)
	w := wire.Welcome{Version: 1, Features: hello.Features, MaxPacket: wire.DefaultMaxPacket, MaxMessage: wire.DefaultMaxMessage, Window: 1 << 20, Bus: "one"}
	if welcome != nil {
		w.Bus = welcome.Bus
		w.Window = max(welcome.Window, 1024)
		if welcome.Features != nil {
			w.Features = welcome.Features
		}
	}
	s.cold(wire.TypeWelcome, &w)
	return hello
}

// next returns the next frame's payload.
func (s *script) next() (wire.Type, []byte) {
	s.t.Helper()
	payload, err := s.reader.Next()
	if err != nil {
		s.t.Errorf("script: %v", err)
		panic(err)
	}
	t, err := wire.PeekType(payload)
	if err != nil {
		s.t.Errorf("script: %v", err)
		panic(err)
	}
	return t, payload
}

// expect takes the next frame, which must be of type t, and decodes it into body if
// that is not nil.
func (s *script) expect(t wire.Type, body any) []byte {
	s.t.Helper()
	got, payload := s.next()
	if got != t {
		s.t.Errorf("script: want %s, got %s", t, got)
		panic("script is out of step")
	}
	if body != nil {
		if err := wire.DecodeCold(payload, body); err != nil {
			s.t.Error(err)
		}
	}
	return payload
}

// publish takes the next frame, which must be a PUBLISH.
func (s *script) publish() (p wire.Publish, options wire.PublishOptions, size int) {
	s.t.Helper()
	payload := s.expect(wire.TypePublish, nil)
	if err := p.Decode(payload); err != nil {
		s.t.Error(err)
	}
	if err := wire.DecodeOptions(p.Options, &options); err != nil {
		s.t.Error(err)
	}
	return p, options, wire.HeaderSize + len(payload)
}

// open confirms the next frame, which must be a SUBSCRIBE.
func (s *script) open(seq uint64) wire.Subscribe {
	s.t.Helper()
	var body wire.Subscribe
	s.expect(wire.TypeSubscribe, &body)
	s.cold(wire.TypeSubscribed, &wire.Subscribed{Sub: body.Sub, Seq: seq})
	return body
}

// openConsumer confirms the next frame, which must be a CONSUME.
func (s *script) openConsumer() wire.Consume {
	s.t.Helper()
	var body wire.Consume
	s.expect(wire.TypeConsume, &body)
	s.cold(wire.TypeSubscribed, &wire.Subscribed{Sub: body.Sub})
	return body
}

// settle takes the next frame, which must be a SETTLE.
func (s *script) settle() (body wire.Settle) {
	s.t.Helper()
	if err := body.Decode(s.expect(wire.TypeSettle, nil)); err != nil {
		s.t.Error(err)
	}
	return body
}

// request takes the next frame, which must be a QUEUE with that op.
func (s *script) request(op string) (body wire.Queue) {
	s.t.Helper()
	s.expect(wire.TypeQueue, &body)
	if body.Op != op {
		s.t.Errorf("script: want %s, got %+v", op, body)
	}
	return body
}

// answer answers a QUEUE.
func (s *script) answer(q wire.Queue, body wire.Queued) {
	body.Token = q.Token
	s.cold(wire.TypeQueued, &body)
}

// fail refuses a QUEUE.
func (s *script) fail(q wire.Queue, code wire.Code, text string) {
	s.cold(wire.TypeError, &wire.ErrorBody{Token: q.Token, Code: code, Text: text})
}

// pong answers the next frame, which must be a PING.
func (s *script) pong() {
	s.t.Helper()
	token, err := wire.DecodePing(s.expect(wire.TypePing, nil))
	if err != nil {
		s.t.Error(err)
	}
	s.send(wire.AppendPong(nil, token))
}

func (s *script) cold(t wire.Type, body any) { s.send(wire.AppendCold(nil, t, body)) }

func (s *script) ack(upTo uint64, subscribers uint32) {
	s.send(wire.AppendAck(nil, wire.Ack{UpTo: upTo, Subscribers: subscribers}))
}

func (s *script) message(sub uint32, seq uint64, topic, body string) int {
	frame := wire.AppendMessage(nil, &wire.Message{Seq: seq, Topic: []byte(topic), Body: []byte(body)})
	s.send(append(wire.AppendTarget(nil, sub), frame...))
	return len(frame)
}

func (s *script) send(frames []byte) {
	s.t.Helper()
	if err := wire.WriteFrames(s.conn, frames, wire.DefaultMaxPacket); err != nil {
		s.t.Errorf("script: %v", err)
	}
}

// closed reads to the end, which must come without another frame.
func (s *script) closed() {
	s.t.Helper()
	if payload, err := s.reader.Next(); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		s.t.Errorf("script: want the end, got %x, %v", payload, err)
	}
}
