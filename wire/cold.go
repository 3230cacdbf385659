package wire

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"
)

// Version is the protocol version that this package speaks.
const Version = 1

// Hello is the body of a HELLO frame, the first of every connection.
type Hello struct {
	Version   int      `msgpack:"version"`              // the highest the client speaks
	Features  []string `msgpack:"features,omitempty"`   // those the client would use
	MaxPacket int      `msgpack:"max_packet,omitempty"` // largest packet it takes, bytes; 0: DefaultMaxPacket
	Client    string   `msgpack:"client,omitempty"`     // a name for the broker's log; proves nothing
	Session   []byte   `msgpack:"session,omitempty"`    // 16 random bytes, the same at each reconnection
	Restore   int      `msgpack:"restore,omitempty"`    // subscriptions it will open again at once
}

// Welcome is the body of a WELCOME frame, the broker's answer to HELLO.
type Welcome struct {
	Version    int      `msgpack:"version"`     // the one that both will speak
	Features   []string `msgpack:"features"`    // those of the HELLO that the broker has too
	MaxPacket  int      `msgpack:"max_packet"`  // largest packet either side sends, bytes
	MaxMessage int      `msgpack:"max_message"` // largest body, bytes
	Window     int      `msgpack:"window"`      // most PUBLISH bytes that may be unacknowledged
	Bus        string   `msgpack:"bus"`         // identifies the run of seq numbers
	Broker     string   `msgpack:"broker"`      // the broker's software version
	UID        uint32   `msgpack:"uid"`         // who the client is, as the kernel told
	GID        uint32   `msgpack:"gid"`
	PID        uint32   `msgpack:"pid"`
}

// Subscribe is the body of a SUBSCRIBE frame.
type Subscribe struct {
	Sub      uint32   `msgpack:"sub"`                // the client's number for it
	Filters  []string `msgpack:"filters"`            // a message that matches several comes once
	Policy   string   `msgpack:"policy,omitempty"`   // see Policy; "" is drop-old
	Messages int      `msgpack:"messages,omitempty"` // buffer bound in messages; 0: the broker's default
	Bytes    int      `msgpack:"bytes,omitempty"`    // buffer bound in bytes; 0: the broker's default
	NoLocal  bool     `msgpack:"no_local,omitempty"` // not what this connection publishes
	Credit   uint64   `msgpack:"credit,omitempty"`   // bytes that may be sent at first; 0: no credit is kept
}

// Subscribed is the body of a SUBSCRIBED frame.
type Subscribed struct {
	Sub uint32 `msgpack:"sub"`
	Seq uint64 `msgpack:"seq"` // the last seq given out before: the subscription sees every later one
}

// Unsubscribe is the body of an UNSUBSCRIBE frame.
type Unsubscribe struct {
	Sub   uint32 `msgpack:"sub"`
	Drain bool   `msgpack:"drain,omitempty"` // deliver what is buffered first
}

// Unsubscribed is the body of an UNSUBSCRIBED frame. No frame for that
// subscription follows it.
type Unsubscribed struct {
	Sub       uint32 `msgpack:"sub"`
	Delivered uint64 `msgpack:"delivered"` // messages sent to the client
	Dropped   uint64 `msgpack:"dropped"`   // the sum of its gaps' counts
	Discarded uint64 `msgpack:"discarded"` // buffered, and thrown away by an unsubscribe without drain
}

// ErrorBody is the body of an ERROR frame: a request or a publish was refused,
// and the connection goes on.
type ErrorBody struct {
	Code    Code   `msgpack:"code"`
	Text    string `msgpack:"text"`
	Publish uint64 `msgpack:"publish,omitempty"` // the number of the publish refused, or 0
	Sub     uint32 `msgpack:"sub,omitempty"`     // the subscription concerned, or 0
	Token   uint64 `msgpack:"token,omitempty"`   // the AWAIT concerned, or 0
}

// Goodbye is the body of a GOODBYE frame: the connection ends, and why.
type Goodbye struct {
	Code Code   `msgpack:"code,omitempty"` // 0: in order
	Text string `msgpack:"text,omitempty"`
	Seq  uint64 `msgpack:"seq,omitempty"` // from the broker: the last seq given out
}

// Await is the body of an AWAIT frame.
type Await struct {
	Token       uint64 `msgpack:"token"`
	Topic       string `msgpack:"topic"`
	Subscribers int    `msgpack:"subscribers"` // answer when at least so many would get a message
}

// Awaited is the body of an AWAITED frame.
type Awaited struct {
	Token       uint64 `msgpack:"token"`
	Subscribers int    `msgpack:"subscribers"`
}

// PublishOptions is the options map of a PUBLISH frame.
type PublishOptions struct {
	RequireSub  bool `msgpack:"require_sub,omitempty"` // refuse it when nobody is subscribed
	Redelivered bool `msgpack:"redelivered,omitempty"` // sent before, and not known to have arrived
}

// MessageInfo is the info map of a MESSAGE frame.
type MessageInfo struct {
	Redelivered bool `msgpack:"redelivered,omitempty"` // it may have been delivered before
}

// AppendCold appends a whole frame [t, body] where body is one of the structs of
// this file.
func AppendCold(dst []byte, t Type, body any) []byte {
	start := len(dst)
	dst = append(beginFrame(dst), 0x92, byte(t))
	dst = appendMap(dst, body)
	return endFrame(dst, start)
}

// AppendOptions appends the encoded map of a PublishOptions or MessageInfo.
func AppendOptions(dst []byte, options any) []byte { return appendMap(dst, options) }

func appendMap(dst []byte, body any) []byte {
	buf := bytes.NewBuffer(dst)
	enc := msgpack.GetEncoder()
	defer msgpack.PutEncoder(enc)
	enc.Reset(buf)
	enc.UseCompactInts(true)
	if err := enc.Encode(body); err != nil {
		// Only a type that msgpack cannot encode gets here: a mistake in this package.
		panic(fmt.Sprintf("wire: encode %T: %v", body, err))
	}
	return buf.Bytes()
}

// DecodeCold reads the body of a cold frame's payload into the struct that body
// points to. Unknown keys are passed over. The result shares nothing with payload.
func DecodeCold(payload []byte, body any) error {
	if len(payload) > MaxCold {
		return lengthError(int64(len(payload)), MaxCold)
	}
	t, err := PeekType(payload)
	if err != nil {
		return err
	}
	r := reader{b: payload}
	r.head(2, t)
	raw := r.rawMap()
	if err := r.end(t.String()); err != nil {
		return err
	}
	if err := decodeMap(raw, body, t.String()); err != nil {
		return err
	}
	return checkNumbers(raw, body, t.String())
}

// DecodeOptions reads the raw map of a hot frame; nil leaves options as it is.
func DecodeOptions(raw []byte, options any) error {
	if raw == nil {
		return nil
	}
	return decodeMap(raw, options, "options map")
}

var decoders = sync.Pool{New: func() any { return msgpack.NewDecoder(nil) }}

// decodeMap hands a map that reader has walked to the library, which therefore
// meets no length beyond the payload and no deep nesting.
func decodeMap(raw []byte, body any, frame string) error {
	if raw == nil {
		return malformed(frame, "its body is not a map")
	}
	dec := decoders.Get().(*msgpack.Decoder)
	defer decoders.Put(dec)
	dec.Reset(bytes.NewReader(raw))
	if err := dec.Decode(body); err != nil {
		return malformed(frame, err.Error())
	}
	return nil
}

// checkNumbers refuses a number in raw that the field of body for it does not
// hold: the library stores what is left when the upper bits are cut off.
func checkNumbers(raw []byte, body any, frame string) error {
	fields := reflect.ValueOf(body).Elem()
	names := make([]string, fields.NumField())
	for i := range names {
		names[i], _, _ = strings.Cut(fields.Type().Field(i).Tag.Get("msgpack"), ",")
	}
	r := reader{b: raw}
	for n := r.mapLen(); n > 0 && !r.bad; n-- {
		key := r.str()
		value := reader{b: r.b}
		r.skip()
		for i, name := range names {
			if name == string(key) && !value.fits(fields.Field(i)) {
				return malformed(frame, name+" is not a number within its range")
			}
		}
	}
	if r.bad {
		return malformed(frame, "its keys are not strings")
	}
	return nil
}

// fits reports whether the next value, if field is for a number, is one that
// field holds.
func (r *reader) fits(field reflect.Value) bool {
	switch {
	case field.CanUint():
		v := r.uint()
		return !r.bad && !field.OverflowUint(v)
	case field.CanInt():
		v := r.int()
		return !r.bad && !field.OverflowInt(v)
	}
	return true
}

// AppendHeaders appends headers as a msgpack map, or nothing when there are none.
func AppendHeaders(dst []byte, headers map[string]string) []byte {
	if len(headers) == 0 {
		return dst
	}
	return appendMap(dst, headers)
}

// CheckHeaders reports whether raw (the Headers of a Publish) is a map of strings
// to strings within MaxHeaders bytes. It allocates only for its error.
func CheckHeaders(raw []byte) error {
	if raw == nil {
		return nil
	}
	if len(raw) > MaxHeaders {
		return &Error{Code: CodeTooLarge, Text: fmt.Sprintf(
			"headers of %d bytes are above the limit of %d: put large data in the body", len(raw), MaxHeaders)}
	}
	r := reader{b: raw}
	n := r.mapLen()
	for n *= 2; n > 0 && !r.bad; n-- {
		if !utf8.Valid(r.str()) {
			return malformed("headers", "they are not valid UTF-8")
		}
	}
	if r.bad || len(r.b) != 0 {
		return malformed("headers", "they are not a map of strings to strings")
	}
	return nil
}

// DecodeHeaders returns raw as a map, nil for none.
func DecodeHeaders(raw []byte) (map[string]string, error) {
	if raw == nil {
		return nil, nil
	}
	if err := CheckHeaders(raw); err != nil {
		return nil, err
	}
	r := reader{b: raw}
	n := r.mapLen()
	headers := make(map[string]string, n)
	for ; n > 0; n-- {
		k := r.str()
		headers[string(k)] = string(r.str())
	}
	return headers, nil
}
