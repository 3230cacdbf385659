package store

import (
	"errors"
	"fmt"
	"io/fs"
)

// Damage is a place in a store's files that is not what was written.
type Damage struct {
	Path   string // of the file
	Offset int64  // in it, in bytes
	Length int64  // bytes that are not used
	Lost   bool   // records were there
	What   string // for a person
}

func (d Damage) String() string {
	return fmt.Sprintf("%s, bytes %d to %d: %s", d.Path, d.Offset, d.Offset+d.Length, d.What)
}

// Report is what reading all of a disk store found.
type Report struct {
	Name     string
	Segments int
	Bytes    int64 // of segment files
	Messages int   // live, damage left aside
	Marks    int
	High     uint64
	Damage   []Damage // in order of the log
	Torn     *Damage  // the write that a crash cut off, or nil; opening clears it away
}

// DamagedError tells that a store's files are not what was written. errors.Is(err,
// ErrDamaged) holds.
type DamagedError struct {
	Name   string // of the queue
	Damage []Damage
}

func (e *DamagedError) Error() string {
	text := fmt.Sprintf("store: queue %s is damaged: %s", e.Name, e.Damage[0])
	if n := len(e.Damage) - 1; n > 0 {
		text += fmt.Sprintf(" (and at %d more places)", n)
	}
	return text
}

func (e *DamagedError) Unwrap() error { return ErrDamaged }

func (d *Disk) damaged(at Damage) error {
	at.Lost = true
	return &DamagedError{Name: d.name, Damage: []Damage{at}}
}

// Check reads all of queue name in dir, which nobody may have open, and changes nothing.
// It returns a *DamagedError, which is ErrDamaged, with the Report when records are lost.
func Check(dir, name string) (Report, error) {
	if err := checkName(name); err != nil {
		return Report{}, err
	}
	d := newDisk(dir, name, (*DiskOptions)(nil).withDefaults())
	lock, err := lockDisk(d.dir, name, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Report{}, fail(ErrNotFound, err, "there is no queue %s in %s", name, dir)
		}
		return Report{}, err
	}
	defer lock.Close()
	paths, err := d.list(false)
	if err != nil {
		return Report{}, err
	}
	l := &logReader{d: d}
	err = l.read(paths)
	for _, s := range d.segments {
		s.file.Close()
	}
	if err != nil {
		return Report{}, err
	}
	r := l.report()
	if l.lost() {
		return r, &DamagedError{Name: name, Damage: r.Damage}
	}
	return r, nil
}
