package store

import "encoding/binary"

// SetHook makes f be called between the steps of a store opened with o.
func (o *SysVOptions) SetHook(f func(step string)) { o.hook = f }

// Abandon lets go of the store as a kill does: the files close, nothing is written.
func (s *SysV) Abandon() { s.abandon() }

// Strange returns how many records Open found that are not ours.
func (s *SysV) Strange() int { return s.strange }

// IDs returns the ids of the kernel queues.
func (s *SysV) IDs() (ids []int) {
	for _, g := range s.segments {
		if g != nil {
			ids = append(ids, g.id)
		}
	}
	return ids
}

// FtokOf is ftok of a file's place.
func FtokOf(dev, ino uint64, proj int) Key { return ftok(dev, ino, proj) }

// Kernel queues, for tests.
var (
	Msgget = msgget
	Msgctl = msgctl
	Msgrcv = msgrcv
)

// Msgsnd sends text, of type mtype.
func Msgsnd(id int, mtype int64, text []byte) error {
	return msgsnd(id, append(binary.NativeEndian.AppendUint64(nil, uint64(mtype)), text...))
}

// MtypeSize is what stands before the text of a struct msgbuf.
const MtypeSize = mtypeSize

// MsgCopy is the flag of Msgrcv.
const MsgCopy = msgCopy

// QueueDS is the msqid_ds of Msgctl.
type QueueDS = msqidDS

// Qnum returns how many messages are in the queue.
func (ds *msqidDS) Qnum() int { return int(ds.qnum) }

// MsgsndRaw sends a struct msgbuf.
var MsgsndRaw = msgsnd

// EncodeChunk returns the struct msgbuf of a chunk.
func EncodeChunk(seq uint64, index, total int, chunk []byte) []byte {
	return encodeChunk(make([]byte, mtypeSize+chunkHeader+len(chunk)), seq, index, total, chunk)
}

// DecodeChunk returns what EncodeChunk was given.
func DecodeChunk(b []byte) (seq uint64, index, total int, chunk []byte, ok bool) {
	r, ok := decodeChunk(b)
	return r.seq, r.index, r.total, r.chunk, ok
}

// AppendLog appends e's record of the log to b.
func AppendLog(b []byte, e Entry) []byte { return appendLogRecord(b, e) }

// Replay calls take for each record of a log.
func Replay(data []byte, take func(Entry)) (good int, torn bool) { return replay(data, take) }

// LogMagic begins a log.
const LogMagic = logMagic
