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
	Token   uint64 `msgpack:"token,omitempty"`   // the AWAIT or QUEUE concerned, or 0
	Settle  uint64 `msgpack:"settle,omitempty"`  // the number of the settle concerned, or 0

	// Lost is which messages of a settle were not settled, the first 100.
	Lost []uint64 `msgpack:"lost,omitempty"`
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

	// What follows is for queues.
	ID       string `msgpack:"id,omitempty"`       // a second one with the same id is acknowledged and dropped
	Key      string `msgpack:"key,omitempty"`      // those of one key come one after the other
	Priority int    `msgpack:"priority,omitempty"` // 0 to 9; 9 comes first
	DelayMS  int64  `msgpack:"delay_ms,omitempty"` // deliver it so much later,
	AtMS     int64  `msgpack:"at_ms,omitempty"`    // or at this time, ms since 1970 UTC
	TTLMS    int64  `msgpack:"ttl_ms,omitempty"`   // it is dropped when nobody took it for so long
}

// MessageInfo is the info map of a MESSAGE frame.
type MessageInfo struct {
	Redelivered bool `msgpack:"redelivered,omitempty"` // it may have been delivered before

	// What follows is of messages of a queue.
	Tries    int    `msgpack:"tries,omitempty"` // times delivered, this one included; absent: 1
	Key      string `msgpack:"key,omitempty"`
	ID       string `msgpack:"id,omitempty"`
	Priority int    `msgpack:"priority,omitempty"`
	Origin   string `msgpack:"origin,omitempty"` // of a dead letter: the queue it was in,
	Reason   string `msgpack:"reason,omitempty"` // and why it died
	State    string `msgpack:"state,omitempty"`  // of one peeked at
	DueMS    int64  `msgpack:"due_ms,omitempty"` // of one peeked at: when its delay or lease ends, ms since 1970 UTC
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
	return decodeMap(raw, body, t.String())
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
	r := reader{b: raw}
	if err := r.checkMap(reflect.TypeOf(body).Elem(), frame); err != nil {
		return err
	}
	dec := decoders.Get().(*msgpack.Decoder)
	defer decoders.Put(dec)
	dec.Reset(bytes.NewReader(raw))
	if err := dec.Decode(body); err != nil {
		return malformed(frame, err.Error())
	}
	return nil
}

// fieldTypes has, of each struct type that was decoded, the types of its fields by key.
var fieldTypes sync.Map

func fieldsOf(t reflect.Type) map[string]reflect.Type {
	if known, ok := fieldTypes.Load(t); ok {
		return known.(map[string]reflect.Type)
	}
	fields := make(map[string]reflect.Type, t.NumField())
	for i := range t.NumField() {
		key, _, _ := strings.Cut(t.Field(i).Tag.Get("msgpack"), ",")
		fields[key] = t.Field(i).Type
	}
	fieldTypes.Store(t, fields)
	return fields
}

// minStruct is the least that a struct in an array takes, in bytes: a queue's name. The
// library makes room for all of an array at once, hundreds of bytes for each.
const minStruct = 8

// checkMap takes a map for a struct of type t and refuses what the library would let
// pass: of a number that the field does not hold it stores what is left when the upper
// bits are cut off; it takes any bytes for a string, and an array for a struct.
func (r *reader) checkMap(t reflect.Type, frame string) error {
	fields := fieldsOf(t)
	for n := r.mapLen(); n > 0 && !r.bad; n-- {
		key := r.str()
		field := fields[string(key)]
		if field == nil {
			r.skip()
		} else if err := r.checkValue(field, frame, string(key)); err != nil {
			return err
		}
	}
	if r.bad {
		return malformed(frame, "it is not a map with strings for keys")
	}
	return nil
}

// checkValue takes the value of key, which is for a field of type t.
func (r *reader) checkValue(t reflect.Type, frame, key string) error {
	switch t.Kind() {
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v := r.uint(); r.bad || t.OverflowUint(v) {
			return malformed(frame, key+" is not a number within its range")
		}
	case reflect.Int, reflect.Int64:
		if v := r.int(); r.bad || t.OverflowInt(v) {
			return malformed(frame, key+" is not a number within its range")
		}
	case reflect.String:
		if s := r.str(); r.bad || !utf8.Valid(s) {
			return malformed(frame, key+" is not a string of UTF-8")
		}
	case reflect.Struct:
		return r.checkMap(t, frame+" "+key)
	case reflect.Pointer, reflect.Slice:
		if len(r.b) > 0 && r.b[0] == mNil { // none
			r.skip()
		} else if t.Kind() == reflect.Pointer {
			return r.checkValue(t.Elem(), frame, key)
		} else {
			return r.checkSlice(t.Elem(), frame, key)
		}
	default: // the library looks at these
		r.skip()
	}
	return nil
}

// checkSlice takes an array, or a byte string.
func (r *reader) checkSlice(elem reflect.Type, frame, key string) error {
	if elem.Kind() == reflect.Uint8 {
		r.skip()
		return nil
	}
	for n := r.arrayLen(); n > 0; n-- {
		before := len(r.b)
		if err := r.checkValue(elem, frame, key); err != nil {
			return err
		}
		if elem.Kind() == reflect.Struct && before-len(r.b) < minStruct {
			return malformed(frame, "one of its "+key+" is too short")
		}
	}
	if r.bad {
		return malformed(frame, key+" is not an array")
	}
	return nil
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
