package wire

import (
	"encoding/binary"
	"math"
)

// reader walks a msgpack payload. The first thing that is wrong sets bad, empties
// it, and every later read returns zero; end then tells.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.b, r.bad = nil, true }

// end returns an error if anything was wrong or something is left over.
func (r *reader) end(frame string) error {
	if r.bad || len(r.b) != 0 {
		return malformed(frame, "its fields are not those of docs/PROTOCOL.md")
	}
	return nil
}

// head takes the array's length and the frame type.
func (r *reader) head(fields int, t Type) {
	if len(r.b) < 2 || r.b[0] != 0x90|byte(fields) || r.b[1] != byte(t) {
		r.fail()
		return
	}
	r.b = r.b[2:]
}

// take returns the next n bytes.
func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// size takes an n-byte big-endian length or number.
func (r *reader) size(n int) uint64 {
	b := r.take(n)
	if b == nil {
		return 0
	}
	switch n {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	}
	return binary.BigEndian.Uint64(b)
}

// lead takes one byte.
func (r *reader) lead() byte {
	if len(r.b) == 0 {
		r.fail()
		return mNil
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

// uint takes a non-negative integer in any of msgpack's forms.
func (r *reader) uint() uint64 {
	switch c := r.lead(); {
	case c < 0x80:
		return uint64(c)
	case c >= mU8 && c <= mU64:
		return r.size(1 << (c - mU8))
	case c >= 0xd0 && c <= mI64: // signed forms: some encoders use them for positives
		n := 1 << (c - 0xd0)
		v := r.size(n)
		if v>>(8*n-1) != 0 {
			break
		}
		return v
	}
	r.fail()
	return 0
}

func (r *reader) uint32() uint32 {
	v := r.uint()
	if v > math.MaxUint32 {
		r.fail()
		return 0
	}
	return uint32(v)
}

// int takes an integer in any of msgpack's forms.
func (r *reader) int() int64 {
	if len(r.b) > 0 {
		c := r.b[0]
		if c >= 0xe0 {
			r.b = r.b[1:]
			return int64(int8(c))
		}
		if c >= 0xd0 && c <= mI64 {
			r.b = r.b[1:]
			n := 1 << (c - 0xd0)
			shift := 64 - 8*n
			return int64(r.size(n)<<shift) >> shift
		}
	}
	v := r.uint()
	if v > math.MaxInt64 {
		r.fail()
		return 0
	}
	return int64(v)
}

// str takes a string, without copying.
func (r *reader) str() []byte {
	switch c := r.lead(); {
	case c&0xe0 == 0xa0:
		return r.take(int(c & 0x1f))
	case c >= mStr8 && c <= mStr32:
		return r.take(int(r.size(1 << (c - mStr8))))
	}
	r.fail()
	return nil
}

// bin takes a byte string, without copying. A body is bin, never str: the two
// differ in msgpack, and what is sent as one must not come out as the other.
func (r *reader) bin() []byte {
	if c := r.lead(); c >= mBin8 && c <= mBin32 {
		return r.take(int(r.size(1 << (c - mBin8))))
	}
	r.fail()
	return nil
}

// rawMap takes a map and returns its encoding, or nil for nil.
func (r *reader) rawMap() []byte {
	if len(r.b) == 0 {
		r.fail()
		return nil
	}
	c := r.b[0]
	if c == mNil {
		r.b = r.b[1:]
		return nil
	}
	if c&0xf0 != 0x80 && c != 0xde && c != 0xdf {
		r.fail()
		return nil
	}
	from := r.b
	r.skip()
	if r.bad {
		return nil
	}
	n := len(from) - len(r.b)
	return from[:n:n]
}

// mapLen takes the head of a map and returns how many pairs follow.
func (r *reader) mapLen() uint64 {
	if c := r.lead(); c&0xf0 == 0x80 {
		return uint64(c & 0x0f)
	} else if c == 0xde || c == 0xdf {
		return r.size(2 << (c - 0xde))
	}
	r.fail()
	return 0
}

// arrayLen takes the head of an array and returns how many values follow.
func (r *reader) arrayLen() uint64 {
	if c := r.lead(); c&0xf0 == 0x90 {
		return uint64(c & 0x0f)
	} else if c == 0xdc || c == 0xdd {
		return r.size(2 << (c - 0xdc))
	}
	r.fail()
	return 0
}

// maxDepth bounds how deep arrays and maps may be nested in a frame.
const maxDepth = 8

// skip passes over one value of any kind. It keeps the number of values still
// open at each depth on a small stack, so that no input makes it recurse.
func (r *reader) skip() {
	var open [maxDepth]uint64
	depth := 0
	for {
		children := r.skipOne()
		if r.bad {
			return
		}
		if children > uint64(len(r.b)) { // each takes a byte at least
			r.fail()
			return
		}
		if children > 0 {
			if depth == maxDepth {
				r.fail()
				return
			}
			open[depth] = children
			depth++
			continue
		}
		for depth > 0 {
			open[depth-1]--
			if open[depth-1] > 0 {
				break
			}
			depth--
		}
		if depth == 0 {
			return
		}
	}
}

// skipOne passes over one value's own bytes and returns how many values it holds.
func (r *reader) skipOne() (children uint64) {
	c := r.lead()
	switch {
	case c < 0x80, c >= 0xe0, c == mNil, c == 0xc2, c == 0xc3: // fixint, nil, bool
	case c < 0x90:
		return 2 * uint64(c&0x0f)
	case c < 0xa0:
		return uint64(c & 0x0f)
	case c < 0xc0:
		r.take(int(c & 0x1f))
	case c >= mBin8 && c <= mBin32:
		r.take(int(r.size(1 << (c - mBin8))))
	case c >= 0xc7 && c <= 0xc9: // ext 8, 16, 32: a length, a type, data
		n := r.size(1 << (c - 0xc7))
		r.take(1)
		r.take(int(n))
	case c == 0xca, c == 0xcb: // float 32, 64
		r.take(4 << (c - 0xca))
	case c >= mU8 && c <= mU64:
		r.take(1 << (c - mU8))
	case c >= 0xd0 && c <= mI64:
		r.take(1 << (c - 0xd0))
	case c >= 0xd4 && c <= 0xd8: // fixext 1, 2, 4, 8, 16
		r.take(1 + 1<<(c-0xd4))
	case c >= mStr8 && c <= mStr32:
		r.take(int(r.size(1 << (c - mStr8))))
	case c == 0xdc, c == 0xdd: // array 16, 32
		return r.size(2 << (c - 0xdc))
	case c == 0xde, c == 0xdf: // map 16, 32
		return 2 * r.size(2<<(c-0xde))
	default: // 0xc1 is never used
		r.fail()
	}
	return 0
}
