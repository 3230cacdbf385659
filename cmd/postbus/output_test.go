package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// ends returns the two ends of what a standard output can be.
func ends(t *testing.T) map[string][2]*os.File {
	t.Helper()
	all := make(map[string][2]*os.File)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	all["pipe"] = [2]*os.File{r, w}
	for name, kind := range map[string]int{"stream socket": unix.SOCK_STREAM, "packet socket": unix.SOCK_SEQPACKET} {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = [2]*os.File{os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)}
	}
	t.Cleanup(func() {
		for _, files := range all {
			files[0].Close()
			files[1].Close()
		}
	})
	return all
}

func TestWatchClosed(t *testing.T) {
	for name, files := range ends(t) {
		t.Run(name, func(t *testing.T) {
			closed := make(chan struct{})
			end, err := watchClosed(int(files[1].Fd()), func() { close(closed) })
			if err != nil {
				t.Fatal(err)
			}
			defer end()
			files[0].Close()
			<-closed
			out := output{file: files[1], buf: []byte("too late")}
			if err := out.flush(); err != errOutputClosed {
				t.Errorf("writing to it gives %v, want %v", err, errOutputClosed)
			}
		})
	}
}

func TestWatchEnds(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	open := ends(t)
	open["file"] = [2]*os.File{file, file}
	for name, files := range open {
		end, err := watchClosed(int(files[1].Fd()), func() { t.Errorf("%s: said to be closed", name) })
		if err != nil {
			t.Fatal(err)
		}
		end()
	}
}

func TestOutputFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	out := output{file: full, buf: []byte("x")}
	if err := out.flush(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing to a full disk gives %v", err)
	}
}

func TestOutputLetsGoOfMemory(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	out := output{file: null, buf: make([]byte, 2*outputKept)}
	if err := out.flush(); err != nil || cap(out.buf) > outputKept {
		t.Errorf("after a large message %d bytes are kept, %v", cap(out.buf), err)
	}
}
