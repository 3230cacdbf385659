package main

import (
	"strconv"
	"time"

	"github.com/postbus/postbus/client"
)

// deliveryHelp is formatHelp for messages of a queue.
const deliveryHelp = formatParts + `  %r tries     %k key       %i id        %P priority
` + formatOthers

// deliveryVerbs are the parts of a delivery that a format can name.
var deliveryVerbs = func() map[byte]printer[*client.Delivery] {
	all := map[byte]printer[*client.Delivery]{
		'r': func(dst []byte, d *client.Delivery) []byte { return strconv.AppendInt(dst, int64(d.Tries), 10) },
		'k': func(dst []byte, d *client.Delivery) []byte { return append(dst, d.Key...) },
		'i': func(dst []byte, d *client.Delivery) []byte { return append(dst, d.ID...) },
		'P': func(dst []byte, d *client.Delivery) []byte { return strconv.AppendInt(dst, int64(d.Priority), 10) },
	}
	for name, verb := range verbs {
		all[name] = ofMessage(verb)
	}
	return all
}()

// ofMessage prints of a delivery what f prints of its message.
func ofMessage(f formatter) printer[*client.Delivery] {
	return func(dst []byte, d *client.Delivery) []byte { return f(dst, &d.Message) }
}

// jsonDelivery is a message of a queue as pull and queue peek print it.
type jsonDelivery struct {
	Queue string `json:"queue"`
	jsonMessage
	Tries    int    `json:"tries"`
	Key      string `json:"key,omitempty"`
	ID       string `json:"id,omitempty"`
	Priority int    `json:"priority,omitempty"`

	State  string `json:"state,omitempty"` // of one that was looked at
	Due    string `json:"due,omitempty"`   // the end of its delay or lease
	Reason string `json:"reason,omitempty"`
	Origin string `json:"origin,omitempty"`
}

// jsonDeliveryLine prints a message of this queue as one JSON object and a newline.
func jsonDeliveryLine(queue string) printer[*client.Delivery] {
	return func(dst []byte, d *client.Delivery) []byte {
		out := jsonDelivery{
			Queue: queue, jsonMessage: newJSONMessage(&d.Message),
			Tries: d.Tries, Key: d.Key, ID: d.ID, Priority: d.Priority,
			State: d.State, Reason: d.Reason, Origin: elsewhere(d, queue),
		}
		if !d.Due.IsZero() {
			out.Due = d.Due.UTC().Format(time.RFC3339Nano)
		}
		return append(appendJSON(dst, out), '\n')
	}
}

// elsewhere returns the queue that a dead letter was in, "" if it is still there.
func elsewhere(d *client.Delivery, queue string) string {
	if d.Origin == queue {
		return ""
	}
	return d.Origin
}
