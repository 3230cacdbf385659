package store

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// maxRecords is how many records a segment takes, whatever its bytes. The kernel finds
// a type or a place by walking the queue, some 6 and 16 ns a record, so this bounds what an
// ack out of order, a Read and an Open cost. It counts only where kernel.msgmnb was raised:
// 16384 bytes hold 1024 of the smallest records.
const maxRecords = 2048

// maxSpare is how many empty segments are kept, so that a queue that is pushed to and taken
// from makes and removes none.
const maxSpare = 2

// highAhead is how far the high seq in the key file runs ahead, so that it's written
// once in that many messages. Only after a crash it shows, as a gap in the seqs.
const highAhead = 1024

// SysVOptions adjusts OpenSysV. Each zero field means the default its comment gives.
type SysVOptions struct {
	// Mode is that of the kernel queues. 0 means 0600. A group's right to write, 0620, lets
	// its members put junk between the messages; to read, 0640, lets them look and steal.
	Mode uint32

	// MaxSegments is how many kernel queues the store may have at a time. 0 means 254.
	MaxSegments int

	// NoCopy does without MSG_COPY as on a kernel that lacks it: Open takes each message out and
	// puts it back, guarded by a journal, and the store keeps a copy of each in memory.
	NoCopy bool

	hook func(step string) // called between steps, for tests that crash there
}

// SysV is the Store whose messages lie in System V message queues. They survive
// kill -9 of the process and its upgrade, not a reboot, not the end of their IPC namespace,
// and not systemd-logind's RemoveIPC at an ordinary user's last logout.
//
// # What lies where
//
// NAME.key in the state directory makes the keys: segment n, 1 to 254, is the kernel queue of
// ftok(NAME.key, n). A message is one record in the segment being filled, its type the message's
// seq, or, above kernel.msgmax, a chain of records of that type, in one segment or over
// several. Each record says which chunk of how many it is, how long, and has a checksum. A segment
// that is full is followed by one of the lowest free number; where there is none, what was
// freed in the older ones is used again. A segment that gets empty and is not being
// filled is removed, but for two that wait for their next turn; Close removes all that are empty.
// States, marks and settings are in NAME.log (see journal), the segments' ids in NAME.key (see
// keyFile). An index of seq to segment is in memory, so that every record is asked for
// by its exact segment and type.
//
// # Why a kill at any point keeps the contract
//
//   - Append: the chunks of a message go in by their order, so until the last is in the chain is
//     incomplete; the next open drops it, and its Append never returned. All messages of
//     an Append go in before its other entries are written to the log, by one write: a mark is
//     never there without the message before it, which would make a publisher's second try look done.
//   - Remove: the first chunk taken makes the chain incomplete, and the next open takes the rest: it need
//     not know which of the two it was. The log isn't touched: a state whose message is not there is
//     dead, and seqs are never used twice.
//   - The high seq in the key file is raised, in steps of 1024, before the message goes in.
//   - A segment is recorded as "making", with the time, before msgget and as "live", with its id, after it and
//     before the first record. Killed in between, the next open removes the empty queue if all speaks for its being that
//     one (see reclaim). An existing queue is never adopted: keys prove nothing.
//   - A segment is recorded as "removing" before IPC_RMID and as "free" after it, so that a missing queue is known
//     from one that somebody else removed.
//   - Open writes nothing into kernel queues where MSG_COPY works; where not see rotation.
//
// # What others can do
//
// Who removes our queues (ipcrm) is noticed at the next call on one of them: their messages are
// dropped, with the chunks they have elsewhere, told in a LostError, and new queues are made.
// A queue that another program received from is noticed when the message is read. Records that are not ours are left
// alone and only take room. Another boot id or IPC namespace than recorded: the queues are gone; messages,
// states and marks are dropped (a mark would refuse the publisher's next try), settings stay, and Stats
// has the LostError.
type SysV struct {
	opts   SysVOptions
	keys   *keyFile
	log    *journal
	ledger ledger
	limits msgLimits

	segments [maxSegments + 1]*kernelQueue // by number
	filling  *kernelQueue                  // takes the next record
	index    list[place]
	bodies   map[uint64][]byte // without MSG_COPY only
	bytes    int64             // of messages
	high     uint64            // of messages
	strange  int               // records that are not ours
	buf      []byte            // one struct msgbuf
	peekSize int               // bytes of the record that peek saw last
	chain    []uint8           // segments of the message under way

	pending  *LostError // found during this call
	lost     int
	lastLost error
	closed   bool
}

var _ Store = (*SysV)(nil)

// msgLimits are the host's, as proc_sys_kernel(5) has them.
type msgLimits struct {
	max int // kernel.msgmax, bytes of a record
	mnb int // kernel.msgmnb, bytes of a new queue
	mni int // kernel.msgmni, queues of the IPC namespace
}

// readLimits reads the limits, and takes Linux's defaults for those it can't.
func readLimits() msgLimits {
	l := msgLimits{8192, 16384, 32000}
	for name, value := range map[string]*int{"msgmax": &l.max, "msgmnb": &l.mnb, "msgmni": &l.mni} {
		if text, err := os.ReadFile("/proc/sys/kernel/" + name); err == nil {
			if n := 0; scanInt(string(text), &n) && n > 0 {
				*value = n
			}
		}
	}
	return l
}

func scanInt(text string, n *int) bool {
	_, err := fmt.Sscan(text, n)
	return err == nil
}

// record is the size of the largest record, header included.
func (l msgLimits) record() int { return min(l.max, l.mnb) }

// OpenSysV opens the store of queue name with its files in dir, or creates it there. Options
// may be nil. It fails with ErrInUse, ErrNotAllowed, ErrBadName, ErrDamaged and ErrNoSpace, and
// then leaves everything as it was.
func OpenSysV(dir, name string, opts *SysVOptions) (*SysV, error) {
	s := &SysV{limits: readLimits()}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.Mode == 0 {
		s.opts.Mode = 0o600
	}
	if s.opts.MaxSegments <= 0 || s.opts.MaxSegments > maxSegments {
		s.opts.MaxSegments = maxSegments
	}
	if s.limits.record() <= chunkHeader {
		return nil, fail(ErrNoSpace, nil, "kernel.msgmax is %d and kernel.msgmnb %d: sysctl -w kernel.msgmax=8192 kernel.msgmnb=16384", s.limits.max, s.limits.mnb)
	}
	keys, err := openKeyFile(dir, name, os.O_CREATE)
	if err != nil {
		return nil, err
	}
	s.keys, s.closed = keys, true
	defer func() {
		if s.closed { // an error, or a test's panic
			s.abandon()
		}
	}()
	if err = s.recover(); err != nil {
		return nil, err
	}
	s.closed = false
	return s, nil
}

func (s *SysV) step(name string) {
	if s.opts.hook != nil {
		s.opts.hook(name)
	}
}

func (s *SysV) path(suffix string) string {
	return strings.TrimSuffix(s.keys.path, ".key") + suffix
}

// Forget forgets the Marks up to and including upTo.
func (s *SysV) Forget(upTo uint64) error {
	if s.closed {
		return ErrClosed
	}
	if first, ok := s.ledger.marks.first(); !ok || first > upTo {
		return nil
	}
	s.log.add(Entry{Kind: logForget, Seq: upTo})
	if err := s.log.flush(); err != nil {
		return err
	}
	s.ledger.forget(upTo)
	return s.log.compact(&s.ledger)
}

// Sync returns at once: what was done is in the kernel, which is this level.
func (s *SysV) Sync() error {
	if s.closed {
		return ErrClosed
	}
	return nil
}

// Stats returns the store's numbers. Free is what fits if the host gives all the
// kernel queues the store may have.
func (s *SysV) Stats() Stats {
	st := Stats{
		Level: LevelKernel, Messages: s.index.live, Marks: s.ledger.marks.live, Bytes: s.bytes,
		High: max(s.high, s.ledger.markTop), MaxMessage: s.maxMessage(),
		Lost: s.lost, LastLost: s.lastLost, Used: s.log.size,
	}
	queues := 0
	for _, g := range s.segments {
		if g != nil {
			queues++
			st.Used += int64(g.used)
			st.Free += int64(g.free())
		}
	}
	st.Free += int64(s.opts.MaxSegments-queues) * int64(s.limits.mnb)
	return st
}

// maxMessage returns the largest Data that fits when all segments are empty.
func (s *SysV) maxMessage() int {
	record := s.limits.record()
	perSegment := min(s.limits.mnb/record, maxRecords) * (record - chunkHeader)
	return min(s.opts.MaxSegments*perSegment, maxChunks*(record-chunkHeader))
}

// Close removes empty kernel queues, writes down the exact high seq and how many messages
// there are, and leaves those in the kernel.
func (s *SysV) Close() error {
	if s.closed {
		return nil
	}
	s.filling = nil
	err := s.retireAll(0)
	s.keys.high, s.keys.count = s.high, s.index.live
	return errors.Join(err, s.keys.writeHeader(s.keys.name()), s.abandon())
}

// abandon lets go of files, and so of the lock, and writes nothing.
func (s *SysV) abandon() error {
	s.closed = true
	err := s.keys.close()
	if s.log != nil {
		err = errors.Join(err, s.log.close())
	}
	return err
}

// settle returns what a call ends with: its own error, and what was found lost meanwhile.
func (s *SysV) settle(err error) error {
	if s.pending == nil {
		return err
	}
	lost := s.pending
	s.pending = nil
	if err == nil {
		return lost
	}
	return errors.Join(lost, err)
}

// tell counts a loss.
func (s *SysV) tell(l *LostError) {
	l.Name = s.keys.name()
	s.lastLost = l
	s.lost += max(l.Messages, 0)
	if s.pending == nil {
		s.pending = l
		return
	}
	s.pending = &LostError{l.Name, s.pending.Messages + l.Messages, append(s.pending.Seqs, l.Seqs...), l.Why, l.Errno}
	s.lastLost = s.pending
}
