package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postbus/postbus/broker"
	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// autostartIdle is how long an autostarted broker stays without clients: long
// enough for the next line of a script, too short to be found the next morning.
const autostartIdle = 30 * time.Second

// serving is one run of `postbus serve`.
type serving struct {
	dir            string
	state          string
	mode           string
	group          string
	maxMessage     sizeFlag
	window         sizeFlag
	maxConnections int
	bufferMessages int
	bufferBytes    sizeFlag
	maxQueues      int
	queueMemory    largeSizeFlag
	logFormat      string
	logLevel       string
	autostart      bool
	idleExit       time.Duration
	ready          readiness
}

func newServe() *cobra.Command {
	var s serving
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the broker of a bus directory",
		Long: `Serve runs the broker: it makes the bus directory if need be and listens on two
sockets in it, bus.sock (SOCK_SEQPACKET) and stream.sock (SOCK_STREAM). Beside a
live broker it refuses to start (exit 1); what a dead one left it takes over.
The system's bus, /run/postbus, is root's default; --autostart serves the user's.
Queues of level kernel and disk are kept in the directory --state, and are there
again when a broker that has it is started.

SIGTERM or SIGINT stops it in order: clients get what is buffered for them, then a
goodbye. A second signal cuts that short. Under systemd use Type=notify.

` + "Sizes: " + sizeHelp + ".",
		Example: `  postbus serve                                         # for this user
  postbus serve --dir /run/postbus --mode 0660 --group adm   # for a group
  postbus serve --dir ~/bus --state /data/bus            # queues on another disk
  postbus serve --max-message 20MiB --log-format json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.autostart && !cmd.Flags().Changed("idle-exit") {
				s.idleExit = autostartIdle
			}
			return s.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&s.dir, "dir", "", "the bus directory `DIR`\n(default $XDG_RUNTIME_DIR/postbus, for root /run/postbus)")
	flags.StringVar(&s.state, "state", "", "keep queues in `DIR`, made for this user only (default $XDG_STATE_HOME/postbus\n"+
		"or ~/.local/state/postbus, for the system's bus /var/lib/postbus; with\n--dir DIR, DIR/state)")
	flags.StringVar(&s.mode, "mode", "0600", "who may connect: `MODE` of the sockets, in octal")
	flags.StringVar(&s.group, "group", "", "`GROUP` of the sockets, by name or number")
	flags.Var(&s.maxMessage, "max-message", "largest message body, up to 64MiB (default 1MiB)")
	flags.Var(&s.window, "window", "publishes a client may have without an answer (default 2MiB)")
	flags.IntVar(&s.maxConnections, "max-connections", 0, "most clients at a time: `N` (default 10000)")
	flags.IntVar(&s.bufferMessages, "buffer-messages", 0, "buffer of a subscription that asks for none: `N` messages\n(default 65536)")
	flags.Var(&s.bufferBytes, "buffer-bytes", "the same in bytes (default 8MiB)")
	flags.IntVar(&s.maxQueues, "max-queues", 0, "most queues: `N` (default 1024)")
	flags.Var(&s.queueMemory, "max-queue-memory", "what all queues of level memory may hold together (default 1GiB)")
	flags.StringVar(&s.logFormat, "log-format", "text", "`FORMAT` of the log on standard error: text or json")
	flags.StringVar(&s.logLevel, "log-level", "info", "what is logged, by `LEVEL`: trace, debug, info, warn, error or off")
	flags.DurationVar(&s.idleExit, "idle-exit", 0, "end (exit 0) when no client was there for `TIME`, but not while a queue of level\nmemory holds messages (default: never)")
	flags.BoolVar(&s.autostart, "autostart", false,
		"as pub and sub start it: quiet, 0 when another broker serves the\ndirectory, --idle-exit 30s, not ended by SIGHUP")
	s.ready.addFlags(flags, "clients can connect")
	return cmd
}

func (s *serving) run(ctx context.Context) error {
	opts, dirOpts, err := s.options()
	if err != nil {
		return &usageError{err}
	}
	// From here on a signal is an order to stop, not a sudden end with files left.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, s.stopSignals()...)
	defer signal.Stop(signals)

	dir, err := s.open(ctx, dirOpts)
	if dir == nil {
		return err
	}
	defer dir.Close()
	// Only who has the bus directory's lock may open its queues.
	if opts.StateDir, err = s.makeState(opts.Logger); err != nil {
		return err
	}
	b, err := broker.New(opts)
	if err != nil {
		if errors.Is(err, broker.ErrBadOption) {
			return &usageError{err}
		}
		return err
	}
	defer b.Close()
	served := make(chan error, 1)
	go func() { served <- b.ServeDir(dir) }()
	log := opts.Logger
	log.Info("serving", "dir", dir.Path(), "state", opts.StateDir, "version", opts.Version)
	s.warnOfDir(log, dir.Path(), dirOpts)
	if err := s.announce(log); err != nil {
		b.Close()
		<-served
		return err
	}
	if err := untilEnd(ctx, b, served, signals); err != nil {
		return err
	}
	log.Info("stopped", "dir", dir.Path())
	return nil
}

// leaveTime is how long an autostarted broker waits for one that has the lock and
// does not answer, which is on its way out.
const leaveTime = 5 * time.Second

// open takes the bus directory. An autostarted broker that finds another one serving
// has lost the race to start: it returns neither a directory nor an error.
func (s *serving) open(ctx context.Context, opts *broker.DirOptions) (*broker.Dir, error) {
	for until := time.Now().Add(leaveTime); ; {
		dir, err := broker.OpenDir(s.busDir(), opts)
		switch {
		case !s.autostart || !errors.Is(err, broker.ErrInUse):
			return dir, err
		case answers(ctx, s.busDir()):
			return nil, nil
		case time.Now().After(until):
			return nil, fmt.Errorf("%w, but nothing answers there: its sockets are gone; end that process", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// answers reports whether a broker serves the bus directory dir.
func answers(ctx context.Context, dir string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := client.Dial(ctx, &client.Options{Address: dir, NoReconnect: true})
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// untilEnd waits for the broker's end and returns why it ended: nil when it was
// told to stop, or idle. The first signal stops it in order, a later one at once.
func untilEnd(ctx context.Context, b *broker.Broker, served <-chan error, signals <-chan os.Signal) error {
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	var shutdown chan error
	var told time.Time
	for {
		select {
		case <-signals:
			if shutdown != nil {
				if time.Since(told) > sameSignal {
					cut()
				}
				continue
			}
			told = time.Now()
			notify("STOPPING=1")
			shutdown = make(chan error, 1)
			go func() { shutdown <- b.Shutdown(ctx) }()
		case err := <-served:
			if shutdown != nil {
				err = <-shutdown
			}
			if errors.Is(err, context.Canceled) {
				return errors.New("stopped at once by a second signal: clients may have missed what was buffered for them")
			}
			if errors.Is(err, broker.ErrIdle) {
				err = nil
			}
			return errors.Join(err, b.Close())
		}
	}
}

// announce tells whoever started this process that clients can connect.
func (s *serving) announce(log hclog.Logger) error {
	if err := notify("READY=1"); err != nil {
		log.Warn("the service manager was not told that the broker is ready", "error", err)
	}
	return s.ready.announce()
}

// stopSignals returns the signals that stop the broker. A terminal that goes away
// (SIGHUP) takes a broker with it that was started there, unless nohup(1) says
// otherwise, but not one that pub or sub started for all of the user's terminals.
func (s *serving) stopSignals() []os.Signal {
	stop := []os.Signal{unix.SIGTERM, unix.SIGINT}
	if s.autostart {
		signal.Ignore(unix.SIGHUP)
	} else if !signal.Ignored(unix.SIGHUP) {
		stop = append(stop, unix.SIGHUP)
	}
	return stop
}

// busDir returns the directory to serve.
func (s *serving) busDir() string {
	switch {
	case s.dir != "":
		return s.dir
	case os.Getuid() == 0 && !s.autostart:
		return wire.SystemDir
	}
	return wire.UserDir()
}

// options turns the flags into the broker's options.
func (s *serving) options() (*broker.Options, *broker.DirOptions, error) {
	log, err := s.logger()
	if err != nil {
		return nil, nil, err
	}
	if s.bufferMessages < 0 || s.maxConnections < 0 || s.maxQueues < 0 {
		return nil, nil, errors.New("--buffer-messages, --max-connections and --max-queues must be above 0")
	}
	if s.idleExit < 0 {
		return nil, nil, fmt.Errorf("--idle-exit %v: it must be 0 or more", s.idleExit)
	}
	mode, err := strconv.ParseUint(s.mode, 8, 32)
	if err != nil || mode&^0o777 != 0 || mode == 0 {
		return nil, nil, fmt.Errorf("--mode %q: write the mode in octal, such as 0660", s.mode)
	}
	group, err := groupID(s.group)
	if err != nil {
		return nil, nil, err
	}
	return &broker.Options{
		MaxMessage:     int(s.maxMessage),
		Window:         int(s.window),
		MaxConnections: s.maxConnections,
		BufferMessages: s.bufferMessages,
		BufferBytes:    int(s.bufferBytes),
		MaxQueues:      s.maxQueues,
		MaxQueueMemory: int64(s.queueMemory),
		IdleExit:       s.idleExit,
		Logger:         log,
		Version:        "postbus " + readVersion().Version,
	}, &broker.DirOptions{Mode: os.FileMode(mode), DirMode: dirMode(os.FileMode(mode)), Group: group}, s.ready.check()
}

// dirMode returns the mode of a new bus directory whose sockets have this mode: who
// else may connect has to be able to get there, but not to look around. It does
// not depend on the group: the directory may not have it.
func dirMode(sockets os.FileMode) os.FileMode {
	if sockets&0o022 != 0 {
		return 0o711
	}
	return 0o700
}

// warnOfDir warns when those that the sockets are open to cannot reach them: a
// directory that was there before keeps its mode.
func (s *serving) warnOfDir(log hclog.Logger, path string, opts *broker.DirOptions) {
	info, err := os.Stat(path)
	if err != nil {
		return // the broker has just opened it; it will find out itself
	}
	if needed := opts.DirMode & 0o011; info.Mode()&needed != needed {
		log.Warn("others may use the sockets but cannot get into the directory: chmod g+x,o+x it",
			"dir", path, "mode", info.Mode().Perm())
	}
}

// logger returns the log on standard error.
func (s *serving) logger() (hclog.Logger, error) {
	level := hclog.LevelFromString(s.logLevel)
	if level == hclog.NoLevel {
		return nil, fmt.Errorf("--log-level %q: use trace, debug, info, warn, error or off", s.logLevel)
	}
	if s.logFormat != "text" && s.logFormat != "json" {
		return nil, fmt.Errorf("--log-format %q: use text or json", s.logFormat)
	}
	if s.autostart {
		level = max(level, hclog.Error)
	}
	return hclog.New(&hclog.LoggerOptions{
		Name:       "postbus",
		Level:      level,
		Output:     os.Stderr,
		JSONFormat: s.logFormat == "json",
	}), nil
}

// groupID returns the number of a group given by name or number, 0 for none.
func groupID(group string) (int, error) {
	if group == "" {
		return 0, nil
	}
	if gid, err := strconv.ParseUint(group, 10, 32); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("--group %q: %w", group, err)
	}
	return strconv.Atoi(g.Gid)
}
