package store_test

import (
	"bytes"
	"testing"

	"github.com/postbus/postbus/store"
)

// FuzzChunk decodes anything, and what was encoded also with bytes behind it.
func FuzzChunk(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(store.EncodeChunk(1, 0, 1, []byte("body")))
	f.Add(store.EncodeChunk(store.MaxSeq, 9, 10, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		if seq, index, total, chunk, ok := store.DecodeChunk(data); ok {
			again := store.EncodeChunk(seq, index, total, chunk)
			// Two bytes of the header are for later, and under the checksum.
			if len(data) < len(again) || !bytes.Equal(again[:14], data[:14]) && bytes.Equal(data[14:16], []byte{0, 0}) {
				t.Errorf("%x was taken for %x", data, again)
			}
		}
		b := append(store.EncodeChunk(7, 2, 3, data), data...)
		if seq, index, total, chunk, ok := store.DecodeChunk(b); !ok || seq != 7 || index != 2 || total != 3 || !bytes.Equal(chunk, data) {
			t.Errorf("decoded %d %d %d %x %v", seq, index, total, chunk, ok)
		}
	})
}

// FuzzLog replays anything behind one good record.
func FuzzLog(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(store.AppendLog(nil, store.Entry{Kind: store.Mark, Seq: 3, Data: []byte("id")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		first := store.Entry{Kind: store.Settings, Data: data}
		log := append(store.AppendLog([]byte(store.LogMagic), first), data...)
		n, size := 0, len(store.LogMagic)
		good, _ := store.Replay(log, func(e store.Entry) {
			if n == 0 && (e.Kind != store.Settings || !bytes.Equal(e.Data, data)) {
				t.Errorf("the first is %v", e)
			}
			n++
			size = len(store.AppendLog(log[:size:size], e))
		})
		if n == 0 || good != size {
			t.Errorf("%d records end at %d, want %d", n, good, size)
		}
	})
}
