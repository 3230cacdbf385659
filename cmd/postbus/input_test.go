package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func collect(t *testing.T, next source) ([]string, error) {
	t.Helper()
	var got []string
	for {
		body, err := next()
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, string(body))
	}
}

func TestRecords(t *testing.T) {
	long := strings.Repeat("x", inputBuffer)
	for name, test := range map[string]struct {
		in   string
		want []string
	}{
		"nothing":            {"", nil},
		"one":                {"a\n", []string{"a"}},
		"no newline at end":  {"a\nb", []string{"a", "b"}},
		"empty ones":         {"\n\na\n\n", []string{"", "", "a", ""}},
		"carriage returns":   {"a\r\n", []string{"a\r"}},
		"a buffer full":      {long[1:] + "\nb\n", []string{long[1:], "b"}},
		"one byte more":      {long + "\nb\n", []string{long, "b"}},
		"many buffers":       {long + long + long + "c\nb", []string{long + long + long + "c", "b"}},
		"long, no newline":   {"a\n" + long + "c", []string{"a", long + "c"}},
		"long, just a whole": {long + long, []string{long + long}},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, in := range map[string]io.Reader{
				"at once":       strings.NewReader(test.in),
				"in halves":     iotest.HalfReader(strings.NewReader(test.in)),
				"with its EOF":  iotest.DataErrReader(strings.NewReader(test.in)),
				"in small bits": iotest.OneByteReader(strings.NewReader(test.in)),
			} {
				got, err := collect(t, newRecords(in, '\n', "line", 4*inputBuffer).next)
				if err != nil || !slices.Equal(got, test.want) {
					t.Errorf("%s: %d records, %v; want %d", kind, len(got), err, len(test.want))
				}
			}
		})
	}
}

func TestRecordsLimit(t *testing.T) {
	for _, limit := range []int{1, 10, inputBuffer - 1, inputBuffer, inputBuffer + 1, 3 * inputBuffer} {
		fits := strings.Repeat("x", limit)
		for _, end := range []string{"", "\n", "\nrest\n"} {
			got, err := collect(t, newRecords(strings.NewReader("1\n"+fits+end), '\n', "line", max(limit, 4)).next)
			if err != nil || len(got) < 2 || got[1] != fits {
				t.Errorf("limit %d, end %q: %d records, %v", limit, end, len(got), err)
			}
			if limit < 4 {
				continue
			}
			got, err = collect(t, newRecords(strings.NewReader("1\n"+fits+"y"+end), '\n', "line", limit).next)
			if err == nil || !strings.HasPrefix(err.Error(), "line 2 has more than ") || len(got) != 1 {
				t.Errorf("one byte above limit %d, end %q: %d records, %v", limit, end, len(got), err)
			}
		}
	}
}

func TestRecordsError(t *testing.T) {
	broken := errors.New("broken")
	got, err := collect(t, newRecords(io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(broken)), '\n', "line", 10).next)
	if !errors.Is(err, broken) || !slices.Equal(got, []string{"a"}) {
		t.Errorf("%q, %v: want what was whole before the error, and the error", got, err)
	}
}

// TestRecordsAllocate holds reading a line to no allocation at all.
func TestRecordsAllocate(t *testing.T) {
	const lines = 10000
	r := newRecords(bytes.NewReader(bytes.Repeat([]byte("a line as they come\n"), lines+1)), '\n', "line", 1000)
	if n := testing.AllocsPerRun(lines, func() {
		if _, err := r.next(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("reading a line allocates %v times", n)
	}
}

func TestInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	stop, err := newWakeup()
	if err != nil {
		t.Fatal(err)
	}
	defer stop.close()
	settled := 0
	in := &input{file: r, fd: int(r.Fd()), stop: stop, settle: func() error {
		settled++
		return nil
	}}
	buf := make([]byte, 1)
	if _, err := w.Write(bytes.Repeat([]byte("x"), 2*settleEvery)); err != nil {
		t.Fatal(err)
	}
	for range 2 * settleEvery {
		if n, err := in.Read(buf); n != 1 || err != nil {
			t.Fatalf("read %d, %v; want a byte", n, err)
		}
	}
	if settled != 2 {
		t.Errorf("settled %d times in %d reads that did not wait, want 2", settled, 2*settleEvery)
	}
	in.settle = func() error { // nothing is there: before the wait it settles
		stop.wake()
		return nil
	}
	if n, err := in.Read(buf); n != 0 || err != errStopped {
		t.Errorf("read %d, %v; want it stopped", n, err)
	}
	refused := errors.New("refused")
	in.settle = func() error { return refused }
	if n, err := in.Read(buf); n != 0 || err != refused {
		t.Errorf("read %d, %v; want the error of settling", n, err)
	}
}
