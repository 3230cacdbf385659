package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/postbus/postbus/client"
)

// A printer appends what is printed for one of its kind.
type printer[T any] func(dst []byte, v T) []byte

// A formatter is the printer of messages.
type formatter = printer[*client.Message]

// terminated prints bodies, each followed by end.
func terminated(end string) formatter {
	return func(dst []byte, m *client.Message) []byte {
		return append(append(dst, m.Body...), end...)
	}
}

const (
	formatHelp = formatParts + formatOthers

	formatParts = `FORMAT is text in which these stand for a part of the message:

  %t topic     %b body      %s seq       %T local time (RFC 3339)
  %u uid       %g gid       %p pid       of the publisher, as the kernel told
  %h headers, as a JSON object
`
	formatOthers = `  %n newline   %0 NUL byte  %% percent sign
  \n newline   \t tab       \\ backslash

Nothing is added after it: end it with %n to get lines.`
)

// verbs are the parts of a message that a format can name.
var verbs = map[byte]formatter{
	't': func(dst []byte, m *client.Message) []byte { return append(dst, m.Topic...) },
	'b': func(dst []byte, m *client.Message) []byte { return append(dst, m.Body...) },
	's': func(dst []byte, m *client.Message) []byte { return strconv.AppendUint(dst, m.Seq, 10) },
	'T': func(dst []byte, m *client.Message) []byte { return m.Time.Local().AppendFormat(dst, time.RFC3339Nano) },
	'u': func(dst []byte, m *client.Message) []byte { return strconv.AppendUint(dst, uint64(m.From.UID), 10) },
	'g': func(dst []byte, m *client.Message) []byte { return strconv.AppendUint(dst, uint64(m.From.GID), 10) },
	'p': func(dst []byte, m *client.Message) []byte { return strconv.AppendUint(dst, uint64(m.From.PID), 10) },
	'h': func(dst []byte, m *client.Message) []byte { return appendJSON(dst, jsonHeaders(m)) },
}

// escapes are what a format writes for bytes that are hard to type.
var escapes = map[string]string{"%n": "\n", "%0": "\x00", "%%": "%", `\n`: "\n", `\t`: "\t", `\\`: `\`}

// parseFormat returns the formatter of a FORMAT.
func parseFormat(format string) (formatter, error) { return parseFormatOf("sub", format, verbs) }

// parseFormatOf returns the printer of a FORMAT with these verbs, given to a command.
func parseFormatOf[T any](command, format string, verbs map[byte]printer[T]) (printer[T], error) {
	var parts []printer[T]
	var text []byte
	endText := func() {
		if len(text) > 0 {
			literal := text
			parts = append(parts, func(dst []byte, _ T) []byte { return append(dst, literal...) })
			text = nil
		}
	}
	for i := 0; i < len(format); i++ {
		if format[i] != '%' && format[i] != '\\' {
			text = append(text, format[i])
			continue
		}
		if i+1 == len(format) {
			return nil, fmt.Errorf("format %q ends in the middle of %q: write %q for the character itself",
				format, format[i:], format[i:]+format[i:])
		}
		name := format[i : i+2]
		i++
		verb, isVerb := verbs[name[1]]
		literal, isEscape := escapes[name]
		switch {
		case isEscape:
			text = append(text, literal...)
		case isVerb && name[0] == '%':
			endText()
			parts = append(parts, verb)
		default:
			return nil, fmt.Errorf("format %q: %s is unknown: see postbus %s --help", format, name, command)
		}
	}
	endText()
	return func(dst []byte, v T) []byte {
		for _, part := range parts {
			dst = part(dst, v)
		}
		return dst
	}, nil
}

// jsonMessage is a message as sub --json prints it.
type jsonMessage struct {
	Topic       string            `json:"topic"`
	Seq         uint64            `json:"seq"`
	Time        string            `json:"time"`
	From        jsonPeer          `json:"from"`
	Headers     map[string]string `json:"headers,omitempty"`
	Body        *string           `json:"body,omitempty"`   // when it is valid UTF-8
	Body64      *string           `json:"body64,omitempty"` // else
	Redelivered bool              `json:"redelivered,omitempty"`
}

type jsonPeer struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	PID uint32 `json:"pid"`
}

// jsonLine prints a message as one JSON object and a newline.
func jsonLine(dst []byte, m *client.Message) []byte {
	return append(appendJSON(dst, newJSONMessage(m)), '\n')
}

func newJSONMessage(m *client.Message) jsonMessage {
	out := jsonMessage{
		Topic:       m.Topic,
		Seq:         m.Seq,
		Time:        m.Time.UTC().Format(time.RFC3339Nano),
		From:        jsonPeer{m.From.UID, m.From.GID, m.From.PID},
		Headers:     m.Headers(),
		Redelivered: m.Redelivered,
	}
	var body string
	if utf8.Valid(m.Body) {
		body = string(m.Body)
		out.Body = &body
	} else {
		body = base64.StdEncoding.EncodeToString(m.Body)
		out.Body64 = &body
	}
	return out
}

// jsonGap is a gap as sub --json prints it; null stands for what nobody knows.
type jsonGap struct {
	Gap struct {
		First  *uint64 `json:"first"`
		Last   *uint64 `json:"last"`
		Count  *uint64 `json:"count"`
		Reason string  `json:"reason"`
	} `json:"gap"`
}

// gapLine prints a gap as one JSON object and a newline.
func gapLine(dst []byte, g *client.Gap) []byte {
	known := func(n uint64) *uint64 {
		if n == 0 {
			return nil
		}
		return &n
	}
	var out jsonGap
	out.Gap.First, out.Gap.Last, out.Gap.Count = known(g.First), known(g.Last), known(g.Count)
	out.Gap.Reason = g.Reason.String()
	return append(appendJSON(dst, out), '\n')
}

func jsonHeaders(m *client.Message) map[string]string {
	if headers := m.Headers(); headers != nil {
		return headers
	}
	return map[string]string{}
}

// appendJSON appends v, made of types that JSON can always express. Unlike
// json.Marshal it leaves <, > and & as they are: this is not for a web page.
func appendJSON(dst []byte, v any) []byte {
	buf := bytes.NewBuffer(dst)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("postbus: %T as JSON: %v", v, err))
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}
