package telemetry

import (
	"context"
	"errors"
	"math"
	"net"
	"sync"
	"time"
)

// How long after exports began to fail one is tried again that cannot reach the
// collector, and how often: a collector that restarts loses only what was on its
// way. When it has been away for longer, every export is tried once, until one
// succeeds.
const (
	patience = 10 * time.Second
	pause    = 250 * time.Millisecond
)

// A delivery exports a signal and tells when that begins to fail, when it works again,
// and of what the collector warns. Only one export runs at a time.
type delivery struct {
	signal  string
	tell    func(signal string, err error)
	since   time.Time // when exports began to fail; zero if the last one did not
	failing bool      // it has been told
	warn    func(signal string, err error)
	warned  string // the last warning of the collector's that warn was called for

	closing sync.Once
	closed  chan struct{} // no patience any more
}

func newDelivery(signal string, tell func(string, error)) *delivery {
	return &delivery{signal: signal, tell: tell, warn: func(string, error) {}, closed: make(chan struct{})}
}

// hurry ends all patience: the process is about to end.
func (d *delivery) hurry() { d.closing.Do(func() { close(d.closed) }) }

// run exports. What has certainly not arrived, because no connection could be
// made, is tried again for a while; anything else could arrive twice.
func (d *delivery) run(ctx context.Context, export func(context.Context) error) error {
	err := d.sent(export(ctx))
	if err != nil {
		if d.since.IsZero() {
			d.since = time.Now()
		}
		err = d.again(ctx, err, export)
	}
	if err == nil {
		d.since = time.Time{}
	}
	if failed := err != nil; failed != d.failing {
		d.failing = failed
		d.tell(d.signal, err)
	}
	return err
}

func (d *delivery) again(ctx context.Context, err error, export func(context.Context) error) error {
	late := time.NewTimer(time.Until(d.since.Add(patience)))
	defer late.Stop()
	next := time.NewTicker(pause)
	defer next.Stop()
	for unreachable(err) {
		select {
		case <-next.C:
		case <-late.C:
			return err
		case <-d.closed:
			return err
		case <-ctx.Done():
			return err
		}
		err = d.sent(export(ctx))
	}
	return err
}

// sent returns what came of an export: a *rejectedError if the collector has taken all
// but some. One that has taken everything may say something all the same, which is a
// warning.
func (d *delivery) sent(err error) error {
	rejected, ok := partialSuccess(err)
	switch {
	case !ok:
		return err
	case rejected > 0:
		return &rejectedError{err, int(min(rejected, math.MaxInt32))}
	}
	if text := err.Error(); text != d.warned {
		d.warned = text
		d.warn(d.signal, err)
	}
	return nil
}

// unreachable reports whether an export failed before anything was sent. The
// exporter over gRPC does not say so, and tries again by itself.
func unreachable(err error) bool {
	failed, ok := errors.AsType[*net.OpError](err)
	return ok && failed.Op == "dial"
}
