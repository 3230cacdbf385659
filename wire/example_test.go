package wire_test

import (
	"errors"
	"fmt"
	"log"

	"github.com/postbus/postbus/wire"
)

// A publish and a ping in one buffer, as a client sends them, and as a broker takes
// them off.
func Example() {
	buf := wire.AppendPublish(nil, &wire.Publish{Topic: []byte("build/done"), Body: []byte("ok")})
	buf = wire.AppendPing(buf, 7)

	for {
		payload, size, err := wire.Split(buf, wire.FrameLimit(wire.DefaultMaxMessage))
		if errors.Is(err, wire.ErrShort) {
			break // here a broker reads more
		} else if err != nil {
			log.Fatal(err)
		}
		buf = buf[size:]
		t, err := wire.PeekType(payload)
		if err != nil {
			log.Fatal(err)
		}
		switch t {
		case wire.TypePublish:
			var p wire.Publish
			if err := p.Decode(payload); err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%v %s: %s\n", t, p.Topic, p.Body)
		case wire.TypePing:
			token, err := wire.DecodePing(payload)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(t, token)
		}
	}
	// Output:
	// PUBLISH build/done: ok
	// PING 7
}

func ExampleDecodeCold() {
	frame := wire.AppendCold(nil, wire.TypeSubscribe, &wire.Subscribe{
		Sub: 1, Filters: []string{"build/#"}, Policy: wire.Block.String(),
	})

	var s wire.Subscribe
	if err := wire.DecodeCold(frame[wire.HeaderSize:], &s); err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Sub, s.Filters, s.Policy)
	// Output: 1 [build/#] block
}

func ExampleMatch() {
	fmt.Println(wire.Match("build/+/done", "build/linux/done"))
	fmt.Println(wire.Match("build/#", "build")) // the parent is included
	fmt.Println(wire.Match("#", "@sys/clients"))
	// Output:
	// true
	// true
	// false
}

func ExampleError() {
	err := wire.CheckTopic("build//done")
	fmt.Println(errors.Is(err, &wire.Error{Code: wire.CodeBadTopic}))
	fmt.Println(err)
	// Output:
	// true
	// topic "build//done": it has an empty level: no slash at the start or end, nor two in a row
}
