package wire_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
)

func framePublish(topic string, headers, body []byte) []byte {
	return wire.AppendPublish(nil, &wire.Publish{Topic: []byte(topic), Headers: headers, Body: body})
}

// The shortcut for frames that begin alike reads and writes what the full way does,
// and leaves everything else to it.
func TestAlike(t *testing.T) {
	headers := wire.AppendHeaders(nil, map[string]string{"k": "v"})
	first := framePublish("build/linux", nil, []byte("one"))
	head, topic, ok := wire.PublishHead(first[wire.HeaderSize:])
	if !ok || string(topic) != "build/linux" {
		t.Fatalf("PublishHead = %q, %q, %v", head, topic, ok)
	}
	msg := wire.Message{Seq: 1, Time: 2, UID: 3, GID: 4, PID: 5, Topic: topic, Body: []byte("one")}
	like := wire.AppendMessage(nil, &msg)
	like = like[:wire.BodyOffset(like, msg.Body)]
	for _, c := range []struct {
		name  string
		frame []byte
		body  string
		alike bool
	}{
		{"empty", framePublish("build/linux", nil, nil), "", true},
		{"longest of bin 8", framePublish("build/linux", nil, []byte(strings.Repeat("x", 255))), strings.Repeat("x", 255), true},
		{"shortest of bin 16", framePublish("build/linux", nil, []byte(strings.Repeat("x", 256))), strings.Repeat("x", 256), true},
		{"longest of bin 16", framePublish("build/linux", nil, make([]byte, 65535)), string(make([]byte, 65535)), true},
		{"bin 32", framePublish("build/linux", nil, make([]byte, 65536)), "", false},
		{"headers", framePublish("build/linux", headers, []byte("x")), "", false},
		{"another topic", framePublish("build/linuy", nil, []byte("x")), "", false},
		{"a longer topic", framePublish("build/linux/x", nil, []byte("x")), "", false},
		{"a ping", wire.AppendPing(nil, 7), "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			more := append(bytes.Clone(c.frame), first...)
			got, n, frames := wire.Restamp([]byte("before"), more, head, like, 99, 1<<20)
			want := []byte("before")
			if c.alike {
				for i, body := range []string{c.body, "one"} {
					m := msg
					m.Seq, m.Body = uint64(99+i), []byte(body)
					want = wire.AppendMessage(want, &m)
				}
				if n != len(more) || frames != 2 {
					t.Errorf("took %d frames, %d bytes of %d", frames, n, len(more))
				}
			} else if n != 0 || frames != 0 {
				t.Errorf("took %d frames, %d bytes", frames, n)
			}
			if !bytes.Equal(got, want) {
				t.Error("Restamp and AppendMessage differ")
			}
			refuseDamaged(t, c.frame, head, like)
			if _, _, frames := wire.Restamp(nil, more, head, like, 1, 1); c.alike && frames != 1 {
				t.Errorf("took %d frames, with a limit of 1 byte", frames)
			}
		})
	}
}

// refuseDamaged checks that a frame cut short, or too long, is not taken.
func refuseDamaged(t *testing.T, frame, head, like []byte) {
	t.Helper()
	if _, n, _ := wire.Restamp(nil, frame[:len(frame)-1], head, like, 1, 1<<20); n != 0 {
		t.Error("a frame that is not whole was taken")
	}
	long := bytes.Clone(frame)
	long[0]++
	if _, n, _ := wire.Restamp(nil, append(long, 0), head, like, 1, 1<<20); n != 0 {
		t.Error("a frame with a byte too many was taken")
	}
}

// BodyOffset is right at each size where the body's header changes, and PublishHead
// leaves headers to the full way.
func TestBodyOffset(t *testing.T) {
	for _, body := range []int{0, 255, 256, 65535, 65536} {
		m := wire.Message{Topic: []byte("a"), Body: make([]byte, body)}
		frame := wire.AppendMessage(nil, &m)
		rest := frame[wire.BodyOffset(frame, m.Body):]
		if want := wire.AppendPublish(nil, &wire.Publish{Topic: m.Topic, Body: m.Body}); !bytes.HasSuffix(want, rest) || len(rest)+10 != len(want) {
			t.Errorf("BodyOffset is wrong for a body of %d bytes", body)
		}
	}
	if _, _, ok := wire.PublishHead(framePublish("a", wire.AppendHeaders(nil, map[string]string{"k": "v"}), nil)[wire.HeaderSize:]); ok {
		t.Error("a head with headers was taken for plain")
	}
}
