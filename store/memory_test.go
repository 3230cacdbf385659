package store_test

import (
	"testing"

	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(testing.TB, string) store.Store { return store.NewMemory() })
}

// TestMemorySize holds what a queued message costs to its body and a little.
func TestMemorySize(t *testing.T) {
	const many, body = 200_000, 128
	s := store.NewMemory()
	data := make([]byte, body)
	before := heap()
	for seq := uint64(1); seq <= many; seq++ {
		if _, err := s.Append([]store.Entry{{Kind: store.Message, Seq: seq, Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	each := (heap() - before) / many
	t.Logf("%d bytes a message of %d", each, body)
	if each > 250 {
		t.Errorf("%d bytes a message of %d, want at most 250", each, body)
	}
	for seq := uint64(1); seq <= many; seq++ {
		if err := s.Remove([]uint64{seq}); err != nil {
			t.Fatal(err)
		}
	}
	if left := heap() - before; left > 1<<20 {
		t.Errorf("%d bytes stay taken after all was removed", left)
	}
	s.Close()
}
