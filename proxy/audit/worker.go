package audit

import (
	"context"
	"errors"
	"slices"
	"time"
)

// batchRecords is how many records a sink gets at a time at most.
const batchRecords = 128

// worker writes the records of one queue to its sink.
type worker struct {
	cfg       SinkConfig
	sinkError func(sink string, err error)
	instance  string // for the summaries
	queue     *queue
	done      chan struct{}
}

// run writes until the queue is closed and empty: many records in one Write
// when they come fast, each at once when they do not.
func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	entries := make([]entry, 0, batchRecords)
	records := make([]*Record, 0, batchRecords)
	for {
		var sums []*tally
		entries, sums = w.queue.next(entries)
		if len(entries) == 0 && len(sums) == 0 {
			return
		}
		if len(entries) > 0 {
			w.writeEntries(ctx, entries, records[:0])
		}
		if len(sums) > 0 {
			w.writeSummaries(ctx, sums, records[:0])
		}
		clear(entries) // what is written is not kept alive
		clear(records[:cap(records)])
	}
}

func (w *worker) writeEntries(ctx context.Context, entries []entry, records []*Record) {
	for _, e := range entries {
		records = append(records, e.rec)
	}
	out := w.write(ctx, records)
	failed := out.failed(len(entries))
	w.queue.wrote(uint64(len(entries))-failed, failed)
	w.returned(out.err, failed)
	for i, e := range entries {
		if e.ack != nil {
			e.ack.results <- out.of(i)
		}
		if e.held != nil {
			e.held.letGo()
		}
	}
}

func (w *worker) writeSummaries(ctx context.Context, sums []*tally, records []*Record) {
	for _, t := range sums {
		rec := t.record()
		rec.Instance = w.instance
		records = append(records, rec)
	}
	out := w.write(ctx, records)
	for i, t := range sums {
		w.queue.summarised(t, out.of(i))
	}
	w.returned(out.err, 0)
}

// write hands records to the sink.
func (w *worker) write(ctx context.Context, records []*Record) outcome {
	w.queue.writes(time.Now())
	err := w.cfg.Sink.Write(ctx, records)
	out := outcome{err: err}
	out.lost, _ = errors.AsType[*LostError](err)
	return out
}

// returned tells when the sink begins and ends to fail. What it has lost is counted
// by then: whoever is told finds it in the metrics.
func (w *worker) returned(err error, failed uint64) {
	if w.queue.returned(err, failed) && w.sinkError != nil {
		w.sinkError(w.cfg.Name, err)
	}
}

// outcome is what came of a Write.
type outcome struct {
	err  error
	lost *LostError // err, if it says which records are lost; nil if all are
}

// of returns what came of one record. That of a record which may be among those that
// are lost is an error, too.
func (o *outcome) of(i int) error {
	if o.lost != nil && o.lost.Unnamed == 0 && !slices.Contains(o.lost.Lost, i) {
		return nil
	}
	return o.err
}

// failed returns how many of the records are lost.
func (o *outcome) failed(records int) uint64 {
	switch {
	case o.err == nil:
		return 0
	case o.lost == nil:
		return uint64(records) //nolint:gosec // G115: the length of a slice
	}
	return uint64(min(records, len(o.lost.Lost)+max(0, o.lost.Unnamed))) //nolint:gosec // G115: not below zero
}
