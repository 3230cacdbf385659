package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// diskFiles is what a disk store asks of a file system. The tests have one that loses
// power.
type diskFiles interface {
	Create(path string) (diskFile, error) // fails when path is there
	Open(path string) (diskFile, error)
	OpenRead(path string) (diskFile, error)
	Rename(from, to string) error
	Remove(path string) error
	SyncDir(dir string) error // names made, changed or removed in dir are durable
}

// diskFile is one file of a disk store.
type diskFile interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Allocate(size int64) error // blocks for all of it, or ENOSPC
	Datasync() error
	Size() (int64, error)
	Close() error
}

// hostFiles is the host's own file system.
type hostFiles struct{}

func (hostFiles) Create(path string) (diskFile, error) {
	return openHostFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (hostFiles) Open(path string) (diskFile, error)     { return openHostFile(path, os.O_RDWR) }
func (hostFiles) OpenRead(path string) (diskFile, error) { return openHostFile(path, os.O_RDONLY) }
func (hostFiles) Rename(from, to string) error           { return os.Rename(from, to) }
func (hostFiles) Remove(path string) error               { return os.Remove(path) }

func (hostFiles) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fsync(int(f.Fd()))
}

type hostFile struct{ *os.File }

func openHostFile(path string, flag int) (diskFile, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return hostFile{f}, nil
}

func (f hostFile) Datasync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}

// Allocate asks for the blocks first, so that a full disk is told before any were
// written. A file system that cannot do it (EOPNOTSUPP) gets them from the zeros.
func (f hostFile) Allocate(size int64) error {
	for {
		switch err := unix.Fallocate(int(f.Fd()), 0, 0, size); err {
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return nil
		default:
			return err
		}
	}
}

func (f hostFile) Size() (int64, error) {
	i, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return i.Size(), nil
}
