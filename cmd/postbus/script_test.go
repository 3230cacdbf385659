package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/wire"
)

// nobody is the user that scripts become to be somebody else.
const nobody = 65534

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"postbus":            main,
		"postbus-as-another": mainAsAnother,
	})
}

// mainAsAnother is postbus run by another user than the one who runs the tests,
// where that is root. An ordinary user stays who he is: the scripts take all rights
// to a socket away, which stops its owner too.
func mainAsAnother() {
	if os.Getuid() == 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			fmt.Fprintf(os.Stderr, "become another user: %v\n", err)
			os.Exit(1)
		}
	}
	main()
}

// TestScripts runs testdata/script. Beside testscript's own commands they have
//
//	start NAME PROGRAM ARG…   run a program in the background
//	signal NAME SIGNAL        send it TERM, INT, HUP, KILL, CONT, or STOP (and wait until it stands)
//	finish NAME [CODE]        wait for its end with that exit code; stdout and stderr are its output
//	exits CODE PROGRAM ARG…   run a program that must end with that exit code
//	wait-file FILE            wait until the file is there
//	stop-user-broker          end the broker started for the user's bus
//	one-broker                wait until all brokers started for the user's bus but one have ended
//
// and in the environment POSTBUS_ADDRESS (the bus directory $WORK/bus),
// XDG_RUNTIME_DIR, XDG_STATE_HOME, and ANOTHER, the uid of postbus-as-another.
func TestScripts(t *testing.T) {
	root, err := os.MkdirTemp("", "postbus-script-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	if err := os.Chmod(root, 0o711); err != nil { // another user has to get to the sockets
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:         "testdata/script",
		WorkdirRoot: root,
		Setup:       setUpScript,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"start":      start,
			"signal":     sendSignal,
			"finish":     finish,
			"exits":      exits,
			"wait-file":  waitFile,
			"one-broker": oneBroker,
			"stop-user-broker": func(ts *testscript.TestScript, _ bool, _ []string) {
				stopAutostarted(filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "postbus"))
			},
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

func setUpScript(env *testscript.Env) error {
	another := os.Getuid()
	if another == 0 {
		another = nobody
	}
	run := filepath.Join(env.WorkDir, "run")
	env.Setenv("XDG_RUNTIME_DIR", run)
	env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state-home"))
	env.Setenv("POSTBUS_ADDRESS", filepath.Join(env.WorkDir, "bus"))
	env.Setenv("ANOTHER", strconv.Itoa(another))
	env.Setenv("GORACE", "atexit_sleep_ms=0") // else each process lasts a second longer under -race
	env.Values[backgroundKey{}] = map[string]*background{}
	env.Values[envKey{}] = env.Vars
	env.Defer(func() { removeKernelQueues(env.WorkDir) })
	env.Defer(func() { stopAutostarted(filepath.Join(run, "postbus")) })
	return errors.Join(os.Chmod(env.WorkDir, 0o711), os.Mkdir(run, 0o700))
}

type (
	backgroundKey struct{}
	envKey        struct{}
)

// background is a program that a script has started.
type background struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
}

func find(ts *testscript.TestScript, name string) *background {
	b := ts.Value(backgroundKey{}).(map[string]*background)[name]
	if b == nil {
		ts.Fatalf("no program %s was started", name)
	}
	return b
}

func start(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: start NAME PROGRAM ARG…")
	}
	started := ts.Value(backgroundKey{}).(map[string]*background)
	if started[args[0]] != nil {
		ts.Fatalf("a program %s was started already", args[0])
	}
	b := &background{cmd: exec.Command(args[1], args[2:]...)}
	b.cmd.Dir = ts.MkAbs(".")
	b.cmd.Stdout, b.cmd.Stderr = &b.stdout, &b.stderr
	for _, v := range ts.Value(envKey{}).([]string) {
		key, _, _ := strings.Cut(v, "=")
		b.cmd.Env = append(b.cmd.Env, key+"="+ts.Getenv(key))
	}
	ts.Check(b.cmd.Start())
	started[args[0]] = b
	ts.Defer(func() {
		if b.cmd.ProcessState == nil { // the script failed or leaves it to us
			b.cmd.Process.Kill()
			b.cmd.Wait()
			ts.Logf("[%s printed]\n%s%s", args[0], &b.stdout, &b.stderr)
		}
	})
}

func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || unix.SignalNum("SIG"+args[1]) == 0 {
		ts.Fatalf("usage: signal NAME TERM|INT|HUP|KILL|STOP|CONT")
	}
	p := &process{cmd: find(ts, args[0]).cmd}
	if args[1] == "STOP" {
		ts.Check(p.stop())
		return
	}
	ts.Check(p.cmd.Process.Signal(unix.SignalNum("SIG" + args[1])))
}

func finish(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: finish NAME [CODE]")
	}
	want := "0"
	if len(args) == 2 {
		want = args[1]
	}
	b := find(ts, args[0])
	err := b.cmd.Wait()
	fmt.Fprint(ts.Stdout(), &b.stdout)
	fmt.Fprint(ts.Stderr(), &b.stderr)
	checkExit(ts, err, want)
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG…")
	}
	checkExit(ts, ts.Exec(args[1], args[2:]...), args[0])
}

// checkExit compares how a program ended with an exit code, or the name of the
// signal that was to end it.
func checkExit(ts *testscript.TestScript, err error, want string) {
	got := "0"
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
		got = strings.TrimPrefix(unix.SignalName(exit.Sys().(syscall.WaitStatus).Signal()), "SIG")
	case errors.As(err, &exit):
		got = strconv.Itoa(exit.ExitCode())
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("ended with %s, not %s", got, want)
	}
}

// waitFile waits for a file by watching its directory.
func waitFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: wait-file FILE")
	}
	path := ts.MkAbs(args[0])
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	ts.Check(err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CREATE|unix.IN_MOVED_TO)
	ts.Check(err)
	events := make([]byte, 64<<10)
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		waitReadable(ts, fd, args[0]+" does not come")
		if _, err := unix.Read(fd, events); err != nil {
			ts.Fatalf("read inotify: %v", err)
		}
	}
}

// scriptPatience is how long, in milliseconds, a script waits for what must come.
const scriptPatience = 30000

func waitReadable(ts *testscript.TestScript, fd int, what string) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, scriptPatience)
		if err == unix.EINTR {
			continue
		}
		ts.Check(err)
		if n == 0 {
			ts.Fatalf("%s", what)
		}
		return
	}
}

// oneBroker waits for the end of those brokers that lost the race to be started.
func oneBroker(ts *testscript.TestScript, neg bool, args []string) {
	dir := filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "postbus")
	winner, err := brokerPID(dir)
	ts.Check(err)
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	ts.Check(err)
	for _, p := range procs {
		environ, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended, or is somebody else's
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
		ours := bytes.Contains(environ, []byte("XDG_RUNTIME_DIR="+ts.Getenv("XDG_RUNTIME_DIR")+"\x00"))
		if !ours || pid == winner || !bytes.Contains(cmdline, []byte("\x00serve\x00")) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err == unix.ESRCH {
			continue
		}
		ts.Check(err)
		waitReadable(ts, fd, fmt.Sprintf("two brokers serve %s: processes %d and %d", dir, winner, pid))
		unix.Close(fd)
	}
}

// brokerPID returns the process that listens on the bus directory dir.
func brokerPID(dir string) (int, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(dir, wire.PacketSocket), Net: "unixpacket"})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// stopAutostarted ends the broker that a script's pub or sub has started.
func stopAutostarted(dir string) {
	pid, err := brokerPID(dir)
	if err != nil {
		return // none was
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, scriptPatience)
}
