package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// readiness is how a command says that it is ready, so that a script need not
// sleep: a line to a file descriptor, a file that appears.
type readiness struct {
	fd   int
	file string
}

const readyLine = "ready\n"

func (r *readiness) addFlags(flags *pflag.FlagSet, when string) {
	flags.IntVar(&r.fd, "ready-fd", -1, "write a line to file descriptor `N` when "+when)
	flags.StringVar(&r.file, "ready-file", "", "make the file `PATH` when "+when+"; remove one of an earlier run\nbefore you wait for it")
	flags.Lookup("ready-fd").DefValue = "0" // shows none
}

// check finds a wrong descriptor before any work is done, and removes the file that
// an earlier run has left, which would say ready too early.
func (r *readiness) check() error {
	if r.file != "" {
		if err := os.Remove(r.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return usagef("--ready-file: %v", err)
		}
	}
	if r.fd == -1 {
		return nil
	}
	if _, err := unix.FcntlInt(uintptr(r.fd), unix.F_GETFD, 0); err != nil {
		return usagef("--ready-fd %d: this file descriptor is not open", r.fd)
	}
	unix.CloseOnExec(r.fd)
	return nil
}

// announce says it. The file comes to be by a rename: who sees it sees it whole.
func (r *readiness) announce() error {
	if r.fd != -1 {
		if _, err := unix.Write(r.fd, []byte(readyLine)); err != nil {
			return fmt.Errorf("say ready to file descriptor %d: %w", r.fd, err)
		}
		if r.fd > 2 {
			unix.Close(r.fd)
		}
	}
	if r.file == "" {
		return nil
	}
	return writeAtomically(r.file, readyLine)
}

func writeAtomically(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
