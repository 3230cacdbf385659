// Package wire is the postbus protocol: frames, codes, topics and addresses, for
// the broker and for clients alike. docs/PROTOCOL.md describes it for everybody.
//
// A frame is a 4-byte little-endian length and a payload, one msgpack array that
// begins with the frame's [Type]. Two kinds of them are written differently:
//
//   - The hot frames, [Publish], [Message], [Ack], [Gap], [Credit], [Settle] and
//     those of one number, are arrays of fixed fields. AppendPublish and its like
//     append one to a buffer; the Decode methods read one as views into its payload.
//     Neither copies or allocates.
//   - The cold frames, [Hello] to [Awaited] and [Queue] to [Consume], are maps that
//     can grow by a key. [AppendCold] and [DecodeCold] go through msgpack's
//     reflection.
//
// [Split] takes frames off a buffer, [Reader] off a connection of either socket
// type, and [WriteFrames] writes them to one. Whatever a peer sends is refused
// with an [*Error], which names a permanent [Code], and takes memory only in
// proportion to the bytes that have arrived.
//
// [CheckTopic], [CheckFilter] and [Match] are the rules of topics, [CheckQueueName]
// is that of queues, and [ParseAddress] finds the sockets of a bus.
//
// To append two frames and to take them off again:
//
//	buf = wire.AppendPublish(buf, &wire.Publish{Topic: []byte("a/b"), Body: body})
//	buf = wire.AppendPing(buf, 1)
//	for {
//		payload, size, err := wire.Split(buf, wire.FrameLimit(wire.DefaultMaxMessage))
//		if err != nil {
//			break // ErrShort: read more
//		}
//		buf = buf[size:]
//		switch t, _ := wire.PeekType(payload); t {
//		case wire.TypePublish:
//			var p wire.Publish
//			err = p.Decode(payload)
//			…
//		}
//	}
package wire
