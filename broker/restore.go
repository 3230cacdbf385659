package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/postbus/postbus/broker/internal/queue"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// stored is a queue as its store has it, read before the loop takes it over.
type stored struct {
	store store.Store
	note  note
	core  *queue.Queue
	found bool   // there was something
	junk  int    // messages that are none of this version
	mark  uint64 // the last message whose mark is there
}

// openStore opens the store of a queue and reads what is in it; a new one has nothing.
// It waits for the disk.
func openStore(dir, name string, s *wire.QueueSettings, now time.Time) (*stored, error) {
	st, err := openLevel(dir, name, s)
	if err != nil {
		return nil, err
	}
	k := &stored{store: st, note: note{Settings: *s}}
	if err := k.restore(now.UnixNano()); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return k, nil
}

func openLevel(dir, name string, s *wire.QueueSettings) (store.Store, error) {
	switch store.Level(s.Level) {
	case store.LevelKernel:
		return store.OpenSysV(dir, name, nil)
	case store.LevelDisk:
		return store.OpenDisk(dir, name, &store.DiskOptions{
			MaxBytes: diskBytes(s), SyncInterval: time.Duration(s.SyncMS) * time.Millisecond,
		})
	}
	return store.NewMemory(), nil
}

// diskBytes bounds the files of a disk queue: twice its messages, since half of the
// log may be dead, and what is not counted as theirs.
func diskBytes(s *wire.QueueSettings) int64 {
	return min(2*(s.MaxBytes+64*s.MaxMessages), 1<<60) + 64<<20
}

// restore reads the store.
func (k *stored) restore(now int64) error {
	high := k.store.Stats().High
	var pending record
	var seq uint64
	flush := func(s queue.State) {
		if seq != 0 {
			k.core.Restore(seq, &pending.Message, s, !k.note.Clean || seq <= k.note.Unsure)
			seq = 0
		}
	}
	err := k.store.Each(func(e store.Entry) error {
		switch e.Kind {
		case store.Settings:
			k.found = true
			return msgpack.Unmarshal(e.Data, &k.note)
		case store.Message:
			if k.core == nil {
				k.core = queue.New(coreSettings(&k.note.Settings), high)
			}
			flush(queue.State{})
			if pending.decode(e.Data) != nil {
				k.junk++
				return nil
			}
			seq = e.Seq
		case store.State:
			if s, ok := decodeState(e.Data); ok && e.Seq == seq {
				flush(s)
			}
		case store.Mark:
			if k.core == nil {
				k.core = queue.New(coreSettings(&k.note.Settings), high)
			}
			flush(queue.State{})
			k.mark = e.Seq
			if len(e.Data) > 8 {
				k.core.RestoreMark(e.Seq, string(e.Data[8:]), int64(binary.BigEndian.Uint64(e.Data)))
			}
		}
		return nil
	})
	if k.core == nil {
		k.core = queue.New(coreSettings(&k.note.Settings), high)
	}
	flush(queue.State{})
	return err
}

// openQueues opens what queues are in the state directory, before the loop runs. One
// that cannot be opened is there all the same, and says why.
func (l *loop) openQueues() error {
	dir := l.opts.StateDir
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("broker: state directory: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("broker: state directory: %w", err)
	}
	for _, f := range files {
		level, name := store.LevelKernel, strings.TrimSuffix(f.Name(), ".key")
		if f.IsDir() {
			level, name = store.LevelDisk, strings.TrimSuffix(f.Name(), ".disk")
		}
		if name == f.Name() || wire.CheckQueueName(name) != nil || l.queues[name] != nil {
			continue
		}
		l.openQueue(name, level)
	}
	for _, q := range l.queues { // now that all are there
		q.core.BuryAgain()
		q.effects(l)
	}
	return nil
}

func (l *loop) openQueue(name string, level store.Level) {
	s, _ := definite(name, &wire.QueueSettings{Level: string(level)})
	k, err := openStore(l.opts.StateDir, name, &s, l.now)
	if err == nil && k.found && level == store.LevelDisk && !sameDisk(&k.note.Settings, &s) { // known only now
		s = k.note.Settings
		if err = k.store.Close(); err == nil {
			k, err = openStore(l.opts.StateDir, name, &s, l.now)
		}
	}
	switch {
	case err != nil:
		l.breakQueue(name, &s, err)
	case !k.found && (k.store.Stats().Messages > 0 || k.store.Stats().Marks > 0):
		err = errors.Join(fmt.Errorf("its settings are missing, and %d messages are there", k.store.Stats().Messages), k.store.Close())
		l.breakQueue(name, &s, err)
	case !k.found: // its declaration was never answered
		err = errors.Join(k.store.Close(), deleteStore(l.opts.StateDir, name, level))
		l.log.Warn("what a declaration began is removed", "queue", name, "error", err)
	default:
		l.takeQueue(name, k)
	}
}

// sameDisk reports whether the stores of two queues are opened alike.
func sameDisk(a, b *wire.QueueSettings) bool {
	return a.SyncMS == b.SyncMS && diskBytes(a) == diskBytes(b)
}

// breakQueue makes a queue that says why it cannot be used.
func (l *loop) breakQueue(name string, s *wire.QueueSettings, err error) {
	l.log.Error("a queue cannot be opened", "queue", name, "error", err)
	l.queues[name] = &workQueue{
		name: name, topic: []byte(wire.QueueTopic + name), settings: *s, level: levelOf(s), owner: l.euid,
		core: queue.New(coreSettings(s), 0), failed: err, broken: true,
	}
}

func deleteStore(dir, name string, level store.Level) error {
	switch level {
	case store.LevelKernel:
		return store.DeleteSysV(dir, name)
	case store.LevelDisk:
		return store.DeleteDisk(dir, name)
	}
	return nil
}
