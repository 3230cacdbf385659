package wire

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Bounds of topics and filters.
const (
	MaxTopic  = 1024 // bytes
	MaxLevels = 32
)

// CheckTopic reports whether topic may be published to: at most 1024 bytes of
// UTF-8 and 32 levels split by "/", none of them empty, no control character, no
// "+" or "#". Names that begin with "@" are topics too; that they are the
// broker's own is not decided here.
func CheckTopic(topic string) error {
	if why := badName(topic); why != "" {
		return &Error{Code: CodeBadTopic, Text: fmt.Sprintf("topic %s: %s", quote(topic), why)}
	}
	if strings.ContainsAny(topic, "+#") {
		return &Error{Code: CodeBadTopic, Text: fmt.Sprintf(
			"topic %s has a wildcard: + and # stand in filters only", quote(topic))}
	}
	return nil
}

// CheckFilter reports whether filter may be subscribed to: a topic in which a
// whole level may be "+" and the last may be "#" (MQTT 5, section 4.7.1).
func CheckFilter(filter string) error {
	why := badName(filter)
	if why == "" {
		why = badWildcard(filter)
	}
	if why != "" {
		return &Error{Code: CodeBadFilter, Text: fmt.Sprintf("filter %s: %s", quote(filter), why)}
	}
	return nil
}

func badWildcard(filter string) string {
	for level, rest, more := "", filter, true; more; {
		level, rest, more = strings.Cut(rest, "/")
		if len(level) > 1 && strings.ContainsAny(level, "+#") {
			return "a wildcard must be a whole level, as in a/+/b or a/#"
		}
		if level == "#" && more {
			return "# must be the last level"
		}
	}
	return ""
}

// badName says what is wrong with a topic or filter, wildcards apart.
func badName(name string) string {
	if name == "" {
		return "it is empty"
	}
	if len(name) > MaxTopic {
		return fmt.Sprintf("it has %d bytes, the limit is %d", len(name), MaxTopic)
	}
	levels, start := 1, 0
	ascii := true
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '/':
			if i == start {
				return "it has an empty level: no slash at the start or end, nor two in a row"
			}
			start = i + 1
			levels++
		case c < 0x20 || c == 0x7f:
			return "it has a control character"
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	if start == len(name) {
		return "it has an empty level: no slash at the start or end, nor two in a row"
	}
	if levels > MaxLevels {
		return fmt.Sprintf("it has %d levels, the limit is %d", levels, MaxLevels)
	}
	if !ascii {
		return badUnicode(name)
	}
	return ""
}

func badUnicode(name string) string {
	if !utf8.ValidString(name) {
		return "it is not valid UTF-8"
	}
	for _, c := range name {
		if c >= 0x80 && c < 0xa0 { // the C1 controls
			return "it has a control character"
		}
	}
	return ""
}

// quote shows a name in an error, shortened where it is very long.
func quote(name string) string {
	if len(name) > 80 {
		return fmt.Sprintf("%q…", name[:80])
	}
	return fmt.Sprintf("%q", name)
}

// Match reports whether topic, a valid topic, matches filter, a valid filter:
// "+" stands for one level, a final "#" for any number of them, the parent
// included (MQTT 5, section 4.7.1). A wildcard at the first level matches no
// topic that begins with "@" (as MQTT's section 4.7.2 has it for "$").
func Match(filter, topic string) bool {
	if topic[0] == '@' && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !fmore || !tmore {
			return fmore == tmore || (!tmore && frest == "#")
		}
		filter, topic = frest, trest
	}
}
