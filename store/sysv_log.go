package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	logMagic      = "postbus log 1\n\x00\x00"
	logHeaderSize = 17      // crc u32, length u32, seq u64, kind u8; the crc is over all after it
	logSlack      = 1 << 16 // bytes of dead records that are not worth a rewrite

	logForget Kind = 16 // in the log only: Marks up to Seq are forgotten
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// journal is NAME.log: states, marks and settings, appended by write(2) without a sync,
// which survives what a kernel queue survives. A record that was half written when the
// process died ends the log. When most of it is dead it's written anew beside and renamed.
type journal struct {
	f    *os.File
	path string
	size int64
	buf  []byte // records to be written
}

// openJournal opens path and feeds what is in it to take. damaged tells of bytes
// that are no torn tail; the file is then kept as path.bad.
func openJournal(path string, take func(Entry)) (j *journal, damaged error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, fileFailure(err)
	}
	j = &journal{f: f, path: path}
	data, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("store: read %s: %w", path, err)
	}
	good, torn := replay(data, take)
	if good < len(data) && !torn {
		damaged = fmt.Errorf("%s is damaged at byte %d of %d; all before that is there, the file is kept as %s.bad", path, good, len(data), path)
		if err := os.WriteFile(path+".bad", data, 0o600); err != nil {
			f.Close()
			return nil, nil, fileFailure(err)
		}
	}
	if err := j.cut(int64(good)); err != nil {
		f.Close()
		return nil, nil, err
	}
	return j, damaged, nil
}

// replay feeds the records in data to take and returns where the good ones end, and
// whether what follows is the beginning of one more.
func replay(data []byte, take func(Entry)) (good int, torn bool) {
	if len(data) < len(logMagic) {
		return 0, logMagic[:len(data)] == string(data)
	}
	if string(data[:len(logMagic)]) != logMagic {
		return 0, false
	}
	good = len(logMagic)
	for rest := data[good:]; len(rest) > 0; rest = data[good:] {
		if len(rest) < logHeaderSize {
			return good, true
		}
		length := uint64(binary.LittleEndian.Uint32(rest[4:]))
		if uint64(len(rest)-logHeaderSize) < length {
			return good, true
		}
		end := logHeaderSize + int(length)
		if crc32.Checksum(rest[4:end], castagnoli) != binary.LittleEndian.Uint32(rest) {
			return good, false
		}
		take(Entry{Kind: Kind(rest[16]), Seq: binary.LittleEndian.Uint64(rest[8:]), Data: rest[logHeaderSize:end]})
		good += end
	}
	return good, true
}

func appendLogRecord(b []byte, e Entry) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
	b = binary.LittleEndian.AppendUint64(b, e.Seq)
	b = append(b, byte(e.Kind))
	b = append(b, e.Data...)
	binary.LittleEndian.PutUint32(b[at:], crc32.Checksum(b[at+4:], castagnoli))
	return b
}

// cut shortens the file to size, at least to its magic.
func (j *journal) cut(size int64) error {
	if err := j.f.Truncate(size); err != nil {
		return fileFailure(err)
	}
	j.size = size
	if size == 0 {
		return j.write([]byte(logMagic))
	}
	return nil
}

// add puts e among the records that flush writes.
func (j *journal) add(e Entry) { j.buf = appendLogRecord(j.buf, e) }

// flush writes what was added, all or nothing.
func (j *journal) flush() error {
	if len(j.buf) == 0 {
		return nil
	}
	err := j.write(j.buf)
	j.buf = j.buf[:0]
	if cap(j.buf) > 1<<20 {
		j.buf = nil
	}
	return err
}

func (j *journal) write(b []byte) error {
	n, err := j.f.WriteAt(b, j.size)
	if err != nil {
		err = fileFailure(err)
		if n > 0 {
			err = errors.Join(err, j.f.Truncate(j.size))
		}
		return err
	}
	j.size += int64(len(b))
	return nil
}

// compact writes the log anew with what is in l, if that is less than half of it.
func (j *journal) compact(l *ledger) error {
	live := int64(l.entries*logHeaderSize + l.bytes)
	if j.size <= 2*live+logSlack {
		return nil
	}
	return j.rewrite(l)
}

// rewrite replaces the log by one of what is in l. Killed before the rename, the old
// one stands.
func (j *journal) rewrite(l *ledger) error {
	b := append(make([]byte, 0, 64+l.entries*logHeaderSize+l.bytes), logMagic...)
	if l.hasSettings {
		b = appendLogRecord(b, Entry{Kind: Settings, Data: l.settings})
	}
	for seq, data := range l.states {
		b = appendLogRecord(b, Entry{Kind: State, Seq: seq, Data: data})
	}
	_ = l.marks.each(func(seq uint64, data []byte) error { // which returns no error of its own
		b = appendLogRecord(b, Entry{Kind: Mark, Seq: seq, Data: data})
		return nil
	})
	f, err := os.OpenFile(j.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fileFailure(err)
	}
	if _, err = f.Write(b); err == nil {
		err = os.Rename(j.path+".new", j.path)
	}
	if err != nil {
		f.Close()
		os.Remove(j.path + ".new")
		return fileFailure(err)
	}
	j.f.Close()
	j.f, j.size = f, int64(len(b))
	return nil
}

func (j *journal) close() error { return j.f.Close() }
