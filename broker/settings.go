package broker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/postbus/postbus/broker/internal/queue"
	"github.com/postbus/postbus/store"
	"github.com/postbus/postbus/wire"
)

// Defaults and bounds of what a queue is declared with.
const (
	defaultQueueMessages = 1_000_000
	maxQueueMessages     = 100_000_000
	defaultMemoryBytes   = 256 << 20
	defaultDiskBytes     = 1 << 30
	maxQueueBytes        = 1 << 50
	defaultLease         = 30 * time.Second
	maxLease             = 30 * 24 * time.Hour
	maxDelay             = 366 * 24 * time.Hour // of a push: delay and time to live
	defaultTries         = 10
	maxMaxTries          = 1_000_000
	defaultDedup         = 2 * time.Minute
	maxDedup             = 7 * 24 * time.Hour
	maxSync              = time.Minute
	maxBind              = 16 << 10 // bytes of all filters of a queue

	// maxMarks is how many ids a queue remembers for dedup, about 100 bytes each: beyond
	// it the oldest is forgotten before its time.
	maxMarks = 1_000_000
)

// definite returns s with every zero field made definite, or says which field cannot
// be.
func definite(name string, s *wire.QueueSettings) (wire.QueueSettings, error) {
	var d wire.QueueSettings
	if s != nil {
		d = *s
	}
	d.Level = cmp.Or(d.Level, string(store.LevelMemory))
	d.WhenFull = cmp.Or(d.WhenFull, wire.WhenFullReject)
	bytes := int64(defaultDiskBytes)
	if d.Level == string(store.LevelMemory) {
		bytes = defaultMemoryBytes
	}
	switch store.Level(d.Level) {
	case store.LevelMemory, store.LevelKernel, store.LevelDisk:
	default:
		return d, badOption("level %q is unknown: use memory, kernel or disk", d.Level)
	}
	switch d.WhenFull {
	case wire.WhenFullReject, wire.WhenFullBlock, wire.WhenFullDropOld:
	default:
		return d, badOption("when-full %q is unknown: use reject, block or drop-old", d.WhenFull)
	}
	for _, n := range []struct {
		name      string
		value     *int64
		def, most int64
		none      bool // -1 is possible
	}{
		{"max-messages", &d.MaxMessages, defaultQueueMessages, maxQueueMessages, false},
		{"max-bytes", &d.MaxBytes, bytes, maxQueueBytes, false},
		{"lease", &d.LeaseMS, defaultLease.Milliseconds(), maxLease.Milliseconds(), false},
		{"max-tries", &d.MaxTries, defaultTries, maxMaxTries, true},
		{"ttl", &d.TTLMS, 0, maxDelay.Milliseconds(), false},
		{"dedup", &d.DedupMS, defaultDedup.Milliseconds(), maxDedup.Milliseconds(), true},
		{"sync-interval", &d.SyncMS, 0, maxSync.Milliseconds(), false},
	} {
		*n.value = cmp.Or(*n.value, n.def)
		if v := *n.value; (v < 0 || v > n.most) && (!n.none || v != -1) {
			return d, badOption("%s of %d for queue %s: the most is %d%s", n.name, v, name, n.most, map[bool]string{true: ", and -1 means none"}[n.none])
		}
	}
	if d.SyncMS > 0 && store.Level(d.Level) != store.LevelDisk {
		return d, badOption("a sync interval for queue %s of level %s: only level disk has one", name, d.Level)
	}
	if d.DeadLetter != "" {
		if err := wire.CheckQueueName(d.DeadLetter); err != nil {
			return d, err
		}
		if d.DeadLetter == name {
			return d, badOption("queue %s cannot take its own dead letters: leave dead-letter out, and they are set aside in it", name)
		}
	}
	return d, checkBind(&d)
}

// checkBind checks the filters and puts them in order.
func checkBind(d *wire.QueueSettings) error {
	if len(d.Bind) > maxFilters {
		return badOption("%d filters are bound, the limit is %d", len(d.Bind), maxFilters)
	}
	size := 0
	for _, filter := range d.Bind {
		if err := wire.CheckFilter(filter); err != nil {
			return err
		}
		if size += len(filter); size > maxBind {
			return badOption("the filters bound take more than %d bytes together, the limit", maxBind)
		}
		if filter[0] == '@' {
			return badOption("filter %q is bound: topics that begin with @ are the broker's own", filter)
		}
	}
	d.Bind = slices.Clone(d.Bind)
	slices.Sort(d.Bind)
	d.Bind = slices.Compact(d.Bind)
	return nil
}

// differences says in words how the settings asked for differ from those there are.
func differences(there, asked *wire.QueueSettings) string {
	var all []string
	differ := func(name string, there, asked any) {
		if fmt.Sprint(there) != fmt.Sprint(asked) {
			all = append(all, fmt.Sprintf("%s is %v, not %v", name, there, asked))
		}
	}
	ms := func(v int64) time.Duration { return time.Duration(v) * time.Millisecond }
	differ("level", there.Level, asked.Level)
	differ("bind", there.Bind, asked.Bind)
	differ("max-messages", there.MaxMessages, asked.MaxMessages)
	differ("max-bytes", there.MaxBytes, asked.MaxBytes)
	differ("when-full", there.WhenFull, asked.WhenFull)
	differ("lease", ms(there.LeaseMS), ms(asked.LeaseMS))
	differ("max-tries", there.MaxTries, asked.MaxTries)
	differ("dead-letter", fmt.Sprintf("%q", there.DeadLetter), fmt.Sprintf("%q", asked.DeadLetter))
	differ("ttl", ms(there.TTLMS), ms(asked.TTLMS))
	differ("dedup", ms(there.DedupMS), ms(asked.DedupMS))
	differ("sync-interval", ms(there.SyncMS), ms(asked.SyncMS))
	return strings.Join(all, "; ")
}

// coreSettings are s as the core wants them.
func coreSettings(s *wire.QueueSettings) queue.Settings {
	ms := func(v int64) time.Duration { return time.Duration(max(v, 0)) * time.Millisecond }
	return queue.Settings{
		MaxMessages: int(s.MaxMessages), MaxBytes: s.MaxBytes, MaxMarks: maxMarks, DropOld: s.WhenFull == wire.WhenFullDropOld,
		Lease: ms(s.LeaseMS), TTL: ms(s.TTLMS), Dedup: ms(s.DedupMS), MaxTries: int(max(s.MaxTries, 0)), Forward: s.DeadLetter != "",
	}
}

// levelOf is what the settings promise.
func levelOf(s *wire.QueueSettings) wire.Level {
	switch store.Level(s.Level) {
	case store.LevelKernel:
		return wire.LevelKernel
	case store.LevelDisk:
		if s.SyncMS > 0 {
			return wire.LevelDiskInterval
		}
		return wire.LevelDisk
	}
	return wire.LevelMemory
}

// note is the store's Settings entry: what is to be known of a queue before its
// messages.
type note struct {
	Settings wire.QueueSettings `msgpack:"settings"`
	Owner    uint32             `msgpack:"owner"`
	Paused   bool               `msgpack:"paused"`
	Draining bool               `msgpack:"draining"`
	Clean    bool               `msgpack:"clean"`  // the broker stopped in order: what had been delivered has its State,
	Unsure   uint64             `msgpack:"unsure"` // but for messages up to this one, which an earlier one that was killed may have delivered
}

// note returns q's.
func (q *workQueue) note(clean bool) store.Entry {
	data, err := msgpack.Marshal(&note{q.settings, q.owner, q.core.Paused(), q.draining, clean, q.unsure})
	if err != nil {
		panic(err) // numbers and strings: it cannot fail
	}
	return store.Entry{Kind: store.Settings, Data: data}
}

// remember has q's settings kept.
func (q *workQueue) remember(l *loop) {
	c := q.commit(l)
	c.notes = append(c.notes, q.note(false))
}
