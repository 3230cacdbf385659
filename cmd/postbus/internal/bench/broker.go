package bench

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"

	"github.com/postbus/postbus/broker"
)

// serve is the role "broker": a broker like that of `postbus serve`, which writes a
// CPU profile when it is ended.
func serve(j *job, _ *control) (*result, error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b, err := broker.New(&broker.Options{MaxMessage: j.Size})
	if err != nil {
		return nil, err
	}
	dir, err := broker.OpenDir(j.Path, nil)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	profile, err := os.Create(j.CPUProfile)
	if err != nil {
		return nil, errors.Join(err, dir.Close(), b.Close())
	}
	defer profile.Close()
	if err := pprof.StartCPUProfile(profile); err != nil {
		return nil, errors.Join(err, dir.Close(), b.Close())
	}
	defer pprof.StopCPUProfile()
	context.AfterFunc(ctx, func() { _ = b.Close() })
	if err := b.ServeDir(dir); !errors.Is(err, broker.ErrClosed) {
		return nil, err
	}
	return &result{}, nil
}
