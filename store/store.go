package store

// Kind says what an Entry is.
type Kind uint8

// The kinds. The numbers stand in files and never change.
const (
	Message  Kind = 1 // a message; Data is its caller's encoding
	State    Kind = 2 // what became of message Seq (tries, delay); replaces its State before
	Mark     Kind = 3 // remembered on its own (an id for dedup), also after message Seq is removed
	Settings Kind = 4 // about the whole queue, Seq 0; replaces the one before
)

// MaxSeq is the highest Seq an Entry may have: what is above is the stores' own.
const MaxSeq = 1<<62 - 1

// Entry is one thing a store keeps. There is one Message, one State and one Mark
// to a Seq.
type Entry struct {
	Kind Kind
	Seq  uint64 // from 1 to MaxSeq; for Settings 0
	Data []byte // may be empty; nil and empty are the same
}

// Level says what a store's entries survive.
type Level string

// The levels.
const (
	LevelMemory Level = "memory" // nothing
	LevelKernel Level = "kernel" // kill -9 of the process; not a reboot
	LevelDisk   Level = "disk"   // loss of power
)

// Store keeps the entries of one queue. One goroutine at a time may use it, and one
// process: a second open fails with ErrInUse. No method waits for another process.
// After Close all but Stats and Close return ErrClosed.
type Store interface {
	// Append stores entries in their order and does not keep their Data. The Seqs of
	// messages rise: one at or below Stats().High of all messages before is ErrBadEntry.
	// A State whose message is not there is passed over. n says how many were stored;
	// the rest left no trace and may be tried again. Durable after Sync. After a crash
	// before that, some of the messages may be there, in order and each one whole, and
	// another entry only if the messages before it are.
	Append(entries []Entry) (n int, err error)

	// Remove forgets messages and their States, in any order. Seqs that are not there
	// are passed over. When Sync returned, none comes back.
	Remove(seqs []uint64) error

	// Forget forgets the Marks that are there with a Seq up to and including upTo.
	Forget(upTo uint64) error

	// Read appends message seq's Data to dst. It returns dst and ErrNotFound where there
	// is none.
	Read(dst []byte, seq uint64) ([]byte, error)

	// Each calls f for every live entry: Settings first, then Messages in seq order,
	// each followed by its State, then Marks in seq order. Data is valid during the call.
	// f must not call the store. Its error ends Each and is returned as it is.
	Each(f func(Entry) error) error

	// Sync returns when all that was done before survives what the Level promises.
	Sync() error

	// Stats costs no system call worth speaking of, and works after Close too.
	Stats() Stats

	// Close may be called any number of times and keeps what is stored. To remove a
	// queue for good each kind of store has a function of its own.
	Close() error
}

// Stats are a store's numbers.
type Stats struct {
	Level    Level
	Messages int    // live
	Marks    int    // live
	Bytes    int64  // of Data of live messages
	High     uint64 // no Seq of a message or Mark was ever above it; after a clean Close exactly the highest. It survives what the level survives: the next Seq is High+1

	MaxMessage int   // bytes of the largest Data; a negative number means no limit of the store's
	Free       int64 // bytes that still fit, roughly; a negative number means no limit of the store's
	Used       int64 // bytes taken where the entries are kept (kernel queues and log, files, memory), roughly

	Lost     int   // messages known to be lost since Open, by somebody else's doing or by a reboot
	LastLost error // the newest such loss, an *LostError, also one found by Open; nil if there was none
}
