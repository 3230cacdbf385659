package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postbus/postbus/store"
)

func TestFtokKnown(t *testing.T) {
	for _, test := range []struct {
		name     string
		dev, ino uint64
		proj     int
		want     store.Key
		text     string
	}{
		{"small", 0x801, 0x2a, 1, 0x0101002a, "0x0101002a"},
		{"inode above 16 bits", 0xfe00, 0x98c073, 7, 0x0700c073, "0x0700c073"},
		{"high proj is negative", 0xfe12, 0xffff, 254, -32309249, "0xfe12ffff"},
		{"proj of more than 8 bits", 1, 1, 0x141, 0x41010001, "0x41010001"},
		{"negative proj", 1, 1, -1, -16711679, "0xff010001"},
		{"a character", 2, 3, 'a', 0x61020003, "0x61020003"},
		{"IPC_PRIVATE", 0x100, 0x10000, 0, 0, "0x00000000"},
		{"what a failed ftok returns", 0xff, 0xffff, 255, -1, "0xffffffff"},
	} {
		if got := store.FtokOf(test.dev, test.ino, test.proj); got != test.want || got.String() != test.text {
			t.Errorf("%s: %d %v, want %d %s", test.name, got, got, test.want, test.text)
		}
	}
	if key, err := store.Ftok("/no/such/file", 1); key != -1 || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such file: %v, %v", key, err)
	}
}

const ftokC = `#include <stdio.h>
#include <sys/ipc.h>
int main(void) {
	static char path[4096];
	int proj;
	while (scanf("%d %4095[^\n]", &proj, path) == 2)
		printf("%d\n", (int)ftok(path, proj));
}
`

const ftokPerl = `use IPC::SysV; while (<STDIN>) { chomp; my ($proj, $path) = split / /, $_, 2;
	my $key = IPC::SysV::ftok($path, $proj + 0); print defined $key ? $key : -1, "\n"; }`

// TestFtokOthers asks the C library and Perl for the keys of some hundred real files of
// several file systems.
func TestFtokOthers(t *testing.T) {
	var asked []string
	var want []store.Key
	ask := func(path string, proj int) {
		key, err := store.Ftok(path, proj)
		if err == nil {
			asked = append(asked, fmt.Sprintf("%d %s", proj, path))
			want = append(want, key)
		}
	}
	for _, pattern := range []string{"/*", "/etc/*", "/dev/*", "/proc/sys/kernel/*", "/sys/*", "/usr/bin/p*"} {
		paths, _ := filepath.Glob(pattern)
		for i, path := range paths[:min(len(paths), 60)] {
			// /dev/fd and /dev/std* name the asking process's own files.
			if !strings.Contains(path, "\n") && !strings.HasPrefix(path, "/dev/fd") && !strings.HasPrefix(path, "/dev/std") {
				ask(path, 1+i%254)
			}
		}
	}
	for _, proj := range []int{-1, 0, 1, 127, 128, 254, 255, 256, 1 << 20} {
		ask("/", proj)
	}
	compare := func(t *testing.T, cmd *exec.Cmd) {
		cmd.Stdin = strings.NewReader(strings.Join(asked, "\n") + "\n")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(strings.NewReader(string(out)))
		for i := range want {
			lines.Scan()
			if got := lines.Text(); got != fmt.Sprint(int32(want[i])) {
				t.Errorf("ftok(%s): %s, want %d", asked[i], got, int32(want[i]))
			}
		}
		t.Logf("%d keys are the same", len(want))
	}
	t.Run("C", func(t *testing.T) {
		gcc, err := exec.LookPath("gcc")
		if err != nil {
			t.Skip("not compared with the C library: no gcc here")
		}
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/ftok.c", []byte(ftokC), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(gcc, "-o", dir+"/ftok", dir+"/ftok.c").CombinedOutput(); err != nil {
			t.Fatalf("gcc: %v\n%s", err, out)
		}
		compare(t, exec.Command(dir+"/ftok"))
	})
	t.Run("Perl", func(t *testing.T) {
		if err := exec.Command("perl", "-MIPC::SysV", "-e", "1").Run(); err != nil {
			t.Skipf("not compared with Perl: no IPC::SysV here: %v", err)
		}
		compare(t, exec.Command("perl", "-e", ftokPerl))
	})
}
