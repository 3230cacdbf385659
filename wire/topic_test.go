package wire_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/postbus/postbus/wire"
)

// The examples of MQTT 5, section 4.7, in its order, with "@" for its "$". An
// example whose topic or filter has an empty level stands in
// TestEmptyLevelsRefused.
var mqttExamples = []struct {
	section, filter, topic string
	want                   bool
}{
	// "If a Client subscribes to sport/tennis/player1/#, it would receive …"
	{"4.7.1.2", "sport/tennis/player1/#", "sport/tennis/player1", true},
	{"4.7.1.2", "sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
	{"4.7.1.2", "sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
	// "sport/# also matches the singular sport, since # includes the parent level."
	{"4.7.1.2", "sport/#", "sport", true},
	// "# is valid and will receive every Application Message."
	{"4.7.1.2", "#", "sport", true},
	{"4.7.1.2", "#", "sport/tennis/player1/score/wimbledon", true},
	{"4.7.1.2", "sport/tennis/#", "sport/tennis", true},
	{"4.7.1.2", "sport/tennis/#", "sport/golf", false},

	// "sport/tennis/+ matches … player1 and player2, but not player1/ranking."
	{"4.7.1.3", "sport/tennis/+", "sport/tennis/player1", true},
	{"4.7.1.3", "sport/tennis/+", "sport/tennis/player2", true},
	{"4.7.1.3", "sport/tennis/+", "sport/tennis/player1/ranking", false},
	// "sport/+ does not match sport but it does match sport/" (see TestEmptyLevelsRefused).
	{"4.7.1.3", "sport/+", "sport", false},
	{"4.7.1.3", "+", "sport", true},
	{"4.7.1.3", "+/tennis/#", "sport/tennis/player1", true},
	{"4.7.1.3", "+/tennis/#", "sport/tennis", true},
	{"4.7.1.3", "+/tennis/#", "sport/golf/player1", false},
	{"4.7.1.3", "sport/+/player1", "sport/tennis/player1", true},
	{"4.7.1.3", "sport/+/player1", "sport/tennis/player2", false},
	// "/finance matches +/+ and /+, but not +" is about an empty level; the same
	// with a level in its place:
	{"4.7.1.3", "+/+", "money/finance", true},
	{"4.7.1.3", "money/+", "money/finance", true},
	{"4.7.1.3", "+", "money/finance", false},

	// "The Server MUST NOT match Topic Filters starting with a wildcard character
	// with Topic Names beginning with a $ character."
	{"4.7.2", "#", "@SYS/monitor/Clients", false},
	{"4.7.2", "+/monitor/Clients", "@SYS/monitor/Clients", false},
	{"4.7.2", "@SYS/#", "@SYS/monitor/Clients", true},
	{"4.7.2", "@SYS/#", "@SYS", true},
	{"4.7.2", "@SYS/monitor/+", "@SYS/monitor/Clients", true},
	{"4.7.2", "+", "@SYS", false},
	{"4.7.2", "sport/+", "sport/@SYS", true},
	{"4.7.2", "sport/#", "sport/@SYS", true},
	{"4.7.2", "#", "sport/@SYS", true},

	// "Topic Names and Topic Filters are case sensitive", "can include the space
	// character": ACCOUNTS and Accounts are two topics.
	{"4.7.3", "ACCOUNTS", "ACCOUNTS", true},
	{"4.7.3", "ACCOUNTS", "Accounts", false},
	{"4.7.3", "Accounts payable", "Accounts payable", true},
	{"4.7.3", "Accounts/+", "Accounts/accounts payable", true},
	// MQTT-4.7.3-4, no normalization: U+00C5 is not A, U+030A.
	{"4.7.3", "\u00c5", "\u00c5", true},
	{"4.7.3", "\u00c5", "A\u030a", false},
	// "Each non-wildcarded level … has to match … character for character": a
	// level that is only a prefix does not.
	{"4.7.3", "sport/tennis/#", "sport/tennisball", false},
	{"4.7.3", "sport/tennis", "sport/tennis/player1", false},
	{"4.7.3", "sport/tennis/player1", "sport/tennis", false},
}

func TestMatchMQTT(t *testing.T) {
	for _, tt := range mqttExamples {
		t.Run(tt.section+" "+tt.filter+" "+tt.topic, func(t *testing.T) {
			if err := wire.CheckFilter(tt.filter); err != nil {
				t.Fatal(err)
			}
			if err := wire.CheckTopic(tt.topic); err != nil {
				t.Fatal(err)
			}
			if got := wire.Match(tt.filter, tt.topic); got != tt.want {
				t.Errorf("Match(%q, %q) = %v", tt.filter, tt.topic, got)
			}
		})
	}
}

// MQTT 5 allows empty levels, and postbus does not: these are its examples with them.
func TestEmptyLevelsRefused(t *testing.T) {
	for _, topic := range []string{
		"sport/",          // 4.7.1.3: sport/+ matches it
		"/finance",        // 4.7.1.3: +/+ and /+ match it; 4.7.3: another topic than finance
		"/",               // 4.7.3: a topic of its own
		"sport//player1",  // 4.7.1.1: "adjacent Topic level separators indicate a zero-length topic level"
		"//", "sport///a", // several
	} {
		wantCode(t, wire.CheckTopic(topic), wire.CodeBadTopic)
		wantCode(t, wire.CheckFilter(topic), wire.CodeBadFilter)
	}
	for _, filter := range []string{"/+", "+/", "/#", "sport//#", "//+", "+//+"} {
		wantCode(t, wire.CheckFilter(filter), wire.CodeBadFilter)
	}
}

func TestCheckNames(t *testing.T) {
	deep := strings.Repeat("a/", wire.MaxLevels-1) + "a"
	long := strings.Repeat("x", wire.MaxTopic)
	for name, tt := range map[string]struct {
		name          string
		topic, filter bool // valid as one
	}{
		"one level":             {"a", true, true},
		"space":                 {" ", true, true},
		"own":                   {"@sys/clients", true, true},
		"UTF-8":                 {"größe/地/🚌", true, true},
		"replacement character": {"a\ufffd", true, true},
		"zero-width no-break":   {"\ufeffa", true, true}, // MQTT-1.5.4-3: never stripped
		"U+00A0, after C1":      {"a\u00a0", true, true},
		"1024 bytes":            {long, true, true},
		"32 levels":             {deep, true, true},

		"empty":          {"", false, false},
		"1025 bytes":     {long + "x", false, false},
		"33 levels":      {deep + "/a", false, false},
		"NUL":            {"a\x00b", false, false}, // MQTT-4.7.3-2
		"newline":        {"a\n", false, false},
		"unit separator": {"a\x1f", false, false},
		"DEL":            {"a\x7f", false, false},
		"first C1":       {"a\u0080", false, false},
		"last C1":        {"a\u009f", false, false},
		"lone byte":      {"a\xff", false, false},
		"overlong":       {"\xc0\xaf", false, false},
		"surrogate":      {"\xed\xa0\x80", false, false}, // MQTT-1.5.4-1
		"cut rune":       {"a/\xe5\x9c", false, false},

		"plus":                 {"+", false, true},
		"hash":                 {"#", false, true}, // 4.7.1.2: valid
		"plus in the middle":   {"sport/+/player1", false, true},
		"plus and hash":        {"+/tennis/#", false, true}, // 4.7.1.3: valid
		"hash under own":       {"@sys/#", false, true},
		"32 levels with hash":  {deep[:len(deep)-1] + "#", false, true},
		"hash in a level":      {"sport/tennis#", false, false},          // 4.7.1.2: not valid
		"hash not last":        {"sport/tennis/#/ranking", false, false}, // 4.7.1.2: not valid
		"hash first":           {"#/a", false, false},
		"two hashes":           {"a/##", false, false},
		"plus in a level":      {"sport+", false, false}, // 4.7.1.3: not valid
		"plus before a letter": {"+sport", false, false},
		"plus and hash in one": {"a/+#", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			wantValid(t, wire.CheckTopic(tt.name), wire.CodeBadTopic, tt.topic)
			wantValid(t, wire.CheckFilter(tt.name), wire.CodeBadFilter, tt.filter)
		})
	}
}

func wantValid(t *testing.T, err error, code wire.Code, valid bool) {
	t.Helper()
	if !valid {
		wantCode(t, err, code)
	} else if err != nil {
		t.Error(err)
	}
}

// wantCode checks that err is the protocol's error with that code.
func wantCode(t *testing.T, err error, code wire.Code) {
	t.Helper()
	if !errors.Is(err, &wire.Error{Code: code}) {
		t.Errorf("got error %v, want %v", err, code)
	}
}

// naiveMatch is section 4.7 said as plainly as possible.
func naiveMatch(filter, topic string) bool {
	first := strings.Split(filter, "/")[0]
	if strings.HasPrefix(topic, "@") && (first == "+" || first == "#") {
		return false
	}
	return naiveLevels(strings.Split(filter, "/"), strings.Split(topic, "/"))
}

func naiveLevels(filter, topic []string) bool {
	if len(filter) == 0 {
		return len(topic) == 0
	}
	if filter[0] == "#" {
		return true
	}
	if len(topic) == 0 || (filter[0] != "+" && filter[0] != topic[0]) {
		return false
	}
	return naiveLevels(filter[1:], topic[1:])
}

func FuzzMatch(f *testing.F) {
	for _, tt := range mqttExamples {
		f.Add(tt.filter, tt.topic)
	}
	f.Fuzz(func(t *testing.T, filter, topic string) {
		if wire.CheckFilter(filter) != nil || wire.CheckTopic(topic) != nil {
			return
		}
		if got, want := wire.Match(filter, topic), naiveMatch(filter, topic); got != want {
			t.Errorf("Match(%q, %q) = %v, want %v", filter, topic, got, want)
		}
		if !wire.Match(topic, topic) {
			t.Errorf("%q does not match itself", topic)
		}
	})
}
