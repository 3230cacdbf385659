package store

import (
	"fmt"
	"time"
)

// maxDrops bounds the segments that one Sync drops.
const maxDrops = 2

// Sync returns when all before it is on the disk, by one fdatasync(2), or with
// SyncInterval at once; see Store. When the disk fails a sync, Linux drops what was to be
// written, so nothing is known any more: every later call fails with the same error,
// until the store is opened anew.
func (d *Disk) Sync() error {
	if err := d.usable(); err != nil {
		return err
	}
	if d.options.SyncInterval == 0 && d.durable.Load() != d.written.Load() {
		if err := d.datasync(); err != nil {
			return err
		}
	}
	return d.dropIdle()
}

// datasync makes what was written durable. While there is a goroutine that syncs,
// syncing is held.
func (d *Disk) datasync() error {
	n := d.written.Load()
	if n == d.durable.Load() {
		return nil
	}
	if err := d.active.file.Datasync(); err != nil {
		return d.poison(d.diskError(err, "sync %s", d.active.path))
	}
	d.durable.Store(n)
	return nil
}

// poison ends all writing.
func (d *Disk) poison(err error) error {
	err = fmt.Errorf("%w; queue %s must be opened again", err, d.name)
	d.failed.CompareAndSwap(nil, &err)
	return *d.failed.Load()
}

// syncLoop syncs every interval, until stop is closed.
func (d *Disk) syncLoop() {
	defer close(d.stopped)
	tick := time.NewTicker(d.options.SyncInterval)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-tick.C:
		}
		d.syncing.Lock()
		err := d.datasync()
		d.syncing.Unlock()
		if err != nil {
			return // the next call tells
		}
	}
}

// dropIdle drops oldest segments of which nothing is needed, once that is durable. The
// drop is durable before the next one, so there is never a gap.
func (d *Disk) dropIdle() error {
	defer d.trim()
	for range maxDrops {
		d.spares.poll()
		if d.spares.old {
			return nil // the name of the one before may still be there
		}
		oldest := d.segments[0]
		if oldest == d.active || oldest.live != 0 || d.durable.Load() < oldest.idle {
			return nil
		}
		if err := d.drop(oldest); err != nil {
			return err
		}
	}
	return nil
}

// trim removes spares that are no longer wanted, now that less is kept.
func (d *Disk) trim() {
	if excess := d.free() - d.target() - d.segmentSize(0); excess > 0 && len(d.spares.ready) > 1 {
		d.spares.trim(excess)
	}
}

// drop takes the oldest segment away. Its file becomes a spare if room is short or one of its
// size is wanted.
func (d *Disk) drop(oldest *segment) error {
	d.segments = d.segments[1:]
	delete(d.byID, oldest.id)
	d.total -= oldest.size
	d.filled -= oldest.end - segmentData
	d.move = mover{}
	d.measure()
	short := d.short()
	if short {
		_ = d.spares.take()
	}
	if d.spares.coming == nil && d.free() < d.target() && (short || oldest.size == d.segmentSize(0)) {
		d.spares.start(oldest.size, oldest)
		return nil
	}
	d.spares.failed = false
	oldest.file.Close()
	if err := d.files.Remove(oldest.path); err != nil {
		return d.poison(d.diskError(err, "remove %s", oldest.path))
	}
	if err := d.files.SyncDir(d.dir); err != nil {
		return d.poison(d.diskError(err, "sync directory %s", d.dir))
	}
	return nil
}
