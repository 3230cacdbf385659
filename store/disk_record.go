package store

import (
	"encoding/binary"
	"hash/crc32"
)

// A segment file is a header, twice, and records up to its end; behind them it is zero.
//
//	   0  header: "postbus1", id u32, size of the file u64, salt u64, end of the segment
//	      before u64, highest Seq u64, highest Seq of a message u64, CRC-32C u32
//	 512  the same header again
//	1024  records, each padded with zeros to a multiple of 8:
//	      CRC-32C u32, length of data u32, seq u64, synced u32, kind u8, 3 zeros, data
//
// Numbers are little-endian. A record's CRC covers what follows it, and before that the
// salt of its segment and its offset: what an older life of the file, or a body made to
// look like a record, left behind is never taken for one. synced says up to which offset
// this segment was known to be durable when the record was written. So a hole before
// that offset is damage, and one behind every such offset is a write that was cut off.
const (
	segmentMagic  = "postbus1"
	headerSize    = 56 // without its CRC
	headerCopy    = 512
	segmentData   = 1024
	recordHeader  = 24
	recordAlign   = 8
	removeManyMax = 1024 // seqs in one record
)

// Kinds of records beside those of entries.
const (
	recRemove     Kind = 0x11 // message seq
	recRemoveMany Kind = 0x12 // the messages whose seqs, u64 each, are the data
	recForget     Kind = 0x13 // marks up to seq
	recNote       Kind = 0x14 // nothing, but for its synced
	recHole       Kind = 0x15 // stands where damage was set aside; its data is not covered by the CRC
)

// recordLen is what a record with n bytes of data takes.
func recordLen(n int) int64 {
	return (recordHeader + int64(n) + recordAlign - 1) &^ (recordAlign - 1)
}

// record is a record as it was read; data is a part of the buffer it was read from.
type record struct {
	kind   Kind
	seq    uint64
	synced int64
	data   []byte
	size   int64 // all of it
}

// recordMask is what the CRC of the record at off is disguised with: a record is one
// only where it was written, and only for who knows the segment's salt. The constants
// are those of splitmix64's kind: every bit of the result hangs on every bit given.
func recordMask(salt uint64, off int64) uint32 {
	x := salt ^ uint64(off)*0x9e3779b97f4a7c15
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	return uint32(x ^ x>>32)
}

func recordSum(salt uint64, off int64, kind Kind, head, data []byte) uint32 {
	c := crc32.Update(recordMask(salt, off), castagnoli, head[4:recordHeader])
	if kind == recHole {
		return c
	}
	return crc32.Update(c, castagnoli, data)
}

// appendRecord appends the record that will stand at off.
func appendRecord(dst []byte, salt uint64, off, synced int64, kind Kind, seq uint64, data []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, recordHeader)...)
	head := dst[start:]
	binary.LittleEndian.PutUint32(head[4:], uint32(len(data)))
	binary.LittleEndian.PutUint64(head[8:], seq)
	binary.LittleEndian.PutUint32(head[16:], uint32(synced))
	head[20] = byte(kind)
	binary.LittleEndian.PutUint32(head, recordSum(salt, off, kind, head, data))
	dst = append(dst, data...)
	pad := int(recordLen(len(data))) - recordHeader - len(data)
	return append(dst, make([]byte, pad)...)
}

// recordSize is what the record whose header b begins with takes, if it may be one.
func recordSize(b []byte) (int64, bool) {
	if len(b) < recordHeader || b[21]|b[22]|b[23] != 0 || !knownKind(Kind(b[20])) {
		return 0, false
	}
	return recordLen(int(binary.LittleEndian.Uint32(b[4:]))), true
}

func knownKind(k Kind) bool {
	return k >= Message && k <= Settings || k >= recRemove && k <= recHole
}

// parseRecord reads the record at the start of b, which stands at off.
func parseRecord(b []byte, salt uint64, off int64) (record, bool) {
	size, ok := recordSize(b)
	if !ok || size > int64(len(b)) {
		return record{}, false
	}
	n := int64(binary.LittleEndian.Uint32(b[4:]))
	r := record{
		kind:   Kind(b[20]),
		seq:    binary.LittleEndian.Uint64(b[8:]),
		synced: int64(binary.LittleEndian.Uint32(b[16:])),
		data:   b[recordHeader : recordHeader+n],
		size:   size,
	}
	ok = recordSum(salt, off, r.kind, b, r.data) == binary.LittleEndian.Uint32(b)
	return r, ok
}

// wholeRecords returns b without the part of a record at its end.
func wholeRecords(b []byte) []byte {
	n := int64(0)
	for {
		size, ok := recordSize(b[n:])
		if !ok || size > int64(len(b))-n {
			return b[:n]
		}
		n += size
	}
}

// segmentHeader opens a segment file.
type segmentHeader struct {
	id      uint32
	size    int64
	salt    uint64
	before  int64  // end of the segment before; 0 in the first of a store
	high    uint64 // highest Seq of an entry before
	message uint64 // highest Seq of a message before
}

// encode returns the first segmentData bytes of the file.
func (h segmentHeader) encode() []byte {
	b := make([]byte, 0, segmentData)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, h.id)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.size))
	b = binary.LittleEndian.AppendUint64(b, h.salt)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.before))
	b = binary.LittleEndian.AppendUint64(b, h.high)
	b = binary.LittleEndian.AppendUint64(b, h.message)
	b = append(b, make([]byte, headerSize-len(b))...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	all := make([]byte, segmentData)
	copy(all, b)
	copy(all[headerCopy:], b)
	return all
}

// parseHeader reads either copy of the header; whole says that both are good.
func parseHeader(b []byte) (h segmentHeader, ok, whole bool) {
	if len(b) < segmentData {
		b = append(append([]byte(nil), b...), make([]byte, segmentData-len(b))...)
	}
	h, first := parseHeaderCopy(b)
	h2, second := parseHeaderCopy(b[headerCopy:])
	if !first {
		h = h2
	}
	return h, first || second, first && second
}

func parseHeaderCopy(b []byte) (segmentHeader, bool) {
	u64 := binary.LittleEndian.Uint64
	if string(b[:8]) != segmentMagic || crc32.Checksum(b[:headerSize], castagnoli) != binary.LittleEndian.Uint32(b[headerSize:]) {
		return segmentHeader{}, false
	}
	return segmentHeader{
		id: binary.LittleEndian.Uint32(b[8:]), size: int64(u64(b[12:])), salt: u64(b[20:]),
		before: int64(u64(b[28:])), high: u64(b[36:]), message: u64(b[44:]),
	}, true
}
