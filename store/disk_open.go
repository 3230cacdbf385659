package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	diskSuffix    = ".disk"    // of the directory of a queue
	deletedSuffix = ".deleted" // of one that is being removed
)

// OpenDisk opens the disk store of queue name, in the directory dir/name.disk, and
// creates it if it is not there. opts may be nil. It reads the whole log, drops a tail
// that a crash tore (see Disk.Report), and fails with a *DamagedError, which is
// ErrDamaged, when something before the tail is not what was written, unless Salvage is
// set. It also fails with ErrInUse, ErrBadName, ErrNotAllowed and ErrNoSpace.
func OpenDisk(dir, name string, opts *DiskOptions) (*Disk, error) {
	d := newDisk(dir, name, opts.withDefaults())
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(d.dir + deletedSuffix); err != nil {
		return nil, d.diskError(err, "remove what is left of a deleted queue")
	}
	if err := d.makeDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockDisk(d.dir, name, os.O_CREATE)
	if err != nil {
		return nil, err
	}
	d.lock = lock
	if err := d.load(); err != nil {
		d.spares.close(noLimit)
		for _, s := range d.segments {
			s.file.Close()
		}
		lock.Close()
		return nil, err
	}
	if d.options.SyncInterval > 0 {
		d.stop, d.stopped = make(chan struct{}), make(chan struct{})
		go d.syncLoop()
	}
	return d, nil
}

func newDisk(dir, name string, o DiskOptions) *Disk {
	d := &Disk{name: name, dir: filepath.Join(dir, name+diskSuffix), options: o, files: o.files, byID: map[uint32]*segment{}}
	d.spares = spares{files: d.files, dir: d.dir}
	return d
}

// makeDir makes the queue's directory, durably.
func (d *Disk) makeDir(parent string) error {
	switch err := os.Mkdir(d.dir, 0o700); {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return d.diskError(err, "make its directory")
	}
	if err := d.files.SyncDir(parent); err != nil {
		return d.diskError(err, "sync directory %s", parent)
	}
	return nil
}

// lockDisk takes the lock of a queue's directory. The kernel gives it back when its
// holder ends, however that happens.
func lockDisk(dir, name string, flags int) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	for {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|flags, 0o600)
		if err != nil {
			if errors.Is(err, fs.ErrPermission) {
				return nil, fail(ErrNotAllowed, err, "queue %s belongs to another user", name)
			}
			return nil, fmt.Errorf("store: lock queue %s: %w", name, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if err == unix.EINTR {
				continue
			}
			return nil, fail(ErrInUse, err, "queue %s is open in another process, or twice in this one (lock on %s)", name, path)
		}
		// Whoever removes a queue holds the lock: then this is the lock of nothing.
		have, err := f.Stat()
		if there, err2 := os.Lstat(path); err == nil && err2 == nil && os.SameFile(have, there) {
			return f, nil
		}
		f.Close()
	}
}

// load reads the log, or begins one.
func (d *Disk) load() error {
	paths, err := d.list(true)
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return d.begin()
	}
	l := &logReader{d: d, write: true}
	defer l.free()
	if err := l.read(paths); err != nil {
		return err
	}
	d.report = l.report()
	if l.lost() {
		if !d.options.Salvage {
			return &DamagedError{Name: d.name, Damage: d.report.Damage}
		}
		if err := l.salvage(); err != nil {
			return err
		}
	}
	return l.finish()
}

// begin makes the first segment.
func (d *Disk) begin() error {
	_ = d.spares.take()
	if d.spares.coming == nil && len(d.spares.ready) == 0 {
		d.spares.start(d.options.minSegment, nil)
	}
	if err := d.spares.take(); err != nil && len(d.spares.ready) == 0 {
		return d.diskError(err, "make the first segment file")
	}
	sp := d.spares.ready[0]
	seg := &segment{id: 1, file: sp.file, size: sp.size, salt: newSalt(), end: segmentData}
	if err := d.install(seg, sp.path, 0); err != nil {
		return err
	}
	d.spares.ready = d.spares.ready[1:]
	d.activate(seg)
	d.noted = segmentData
	return nil
}

// list returns the paths of the segments, in order. With clear files of zeros that were no
// segment yet become spares.
func (d *Disk) list(clear bool) ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, d.diskError(err, "list its files")
	}
	var paths []string
	for _, e := range entries {
		switch {
		case strings.HasSuffix(e.Name(), ".seg") && len(e.Name()) == len("00000000.seg"):
			paths = append(paths, filepath.Join(d.dir, e.Name()))
		case clear && strings.HasPrefix(e.Name(), "spare-"):
			if err := d.leftSpare(e); err != nil {
				return nil, err
			}
		}
	}
	if err := d.spares.adopt(); err != nil {
		return nil, d.diskError(err, "take over a spare file")
	}
	return paths, nil
}

// leftSpare keeps a file of zeros that an earlier process made, or removes one that was never
// whole.
func (d *Disk) leftSpare(e fs.DirEntry) error {
	path := filepath.Join(d.dir, e.Name())
	info, err := e.Info()
	switch {
	case err != nil:
	case info.Size() < pageSize:
		err = d.files.Remove(path)
	default:
		d.spares.left = append(d.spares.left, leftSpare{path, info.Size()})
	}
	if err != nil {
		return d.diskError(err, "take over spare file %s", path)
	}
	return nil
}

// DeleteDisk removes the disk store of queue name with all that is in it, and anything
// a crash left of doing so. It fails with ErrInUse while it is open; to delete what is not
// there is no error.
func DeleteDisk(dir, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	path := filepath.Join(dir, name+diskSuffix)
	if err := os.RemoveAll(path + deletedSuffix); err != nil {
		return fmt.Errorf("store: delete queue %s: %w", name, err)
	}
	lock, err := lockDisk(path, name, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	// One rename first: a crash leaves all of the queue or none of it.
	if err := os.Rename(path, path+deletedSuffix); err != nil {
		return fmt.Errorf("store: delete queue %s: %w", name, err)
	}
	if err := (hostFiles{}).SyncDir(dir); err != nil {
		return fmt.Errorf("store: delete queue %s: sync directory %s: %w", name, dir, err)
	}
	if err := os.RemoveAll(path + deletedSuffix); err != nil {
		return fmt.Errorf("store: delete queue %s: %w", name, err)
	}
	return nil
}
