package telemetry

import (
	"context"
	"errors"
	"math"
	"net"
	"sync"
	"time"
)

// How long after exports began to fail an export that cannot reach the collector is
// retried, and how often. So a restart of the collector loses only the batch that was
// being sent. When the collector has been away for longer, every export is tried once,
// until one succeeds.
const (
	patience = 10 * time.Second
	pause    = 250 * time.Millisecond
)

// A delivery exports a signal. It reports when exports begin to fail and work again,
// and warnings of the collector. Only one export runs at a time.
type delivery struct {
	signal  string
	tell    func(signal string, err error)
	since   time.Time // when exports began to fail; zero if the last one succeeded
	failing bool      // tell was called with an error last
	warn    func(signal string, err error)
	warned  string // last warning that was passed to warn

	closing sync.Once
	closed  chan struct{} // closed when nothing is retried any more
}

func newDelivery(signal string, tell func(string, error)) *delivery {
	return &delivery{signal: signal, tell: tell, warn: func(string, error) {}, closed: make(chan struct{})}
}

// hurry ends all retries, because the process is about to end.
func (d *delivery) hurry() { d.closing.Do(func() { close(d.closed) }) }

// run exports. It retries for a while if the collector certainly got nothing, because
// no connection was possible; after any other error the data could arrive twice.
func (d *delivery) run(ctx context.Context, export func(context.Context) error) error {
	err := d.sent(export(ctx))
	if err != nil {
		if d.since.IsZero() {
			d.since = time.Now()
		}
		err = d.retry(ctx, err, export)
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

func (d *delivery) retry(ctx context.Context, err error, export func(context.Context) error) error {
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

// sent classifies the result of an export. It returns a *rejectedError if the collector
// has accepted only a part. If it has accepted everything and sent a text all the same,
// that is a warning and no error.
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

// unreachable reports whether an export failed before anything was sent. It is false
// for the exporter over gRPC, whose errors do not say so and which retries by itself.
func unreachable(err error) bool {
	failed, ok := errors.AsType[*net.OpError](err)
	return ok && failed.Op == "dial"
}
