package audit

import (
	"context"
	"errors"
	"slices"
	"time"
)

// batchRecords is the largest number of records that a sink gets at a time.
const batchRecords = 128

// worker writes the records of one queue to its sink.
type worker struct {
	cfg       SinkConfig
	sinkError func(sink string, err error)
	instance  string // name of the process, set in summaries
	queue     *queue
	done      chan struct{}
}

// run writes records until the queue is closed and empty: many in one Write when they
// come fast, each at once when they do not.
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
		clear(entries) // do not keep written records alive
		clear(records[:cap(records)])
	}
}

func (w *worker) writeEntries(ctx context.Context, entries []entry, records []*Record) {
	for _, e := range entries {
		records = append(records, e.rec)
	}
	out := w.write(ctx, records)
	failed := out.failed(len(entries))
	w.queue.countWritten(uint64(len(entries))-failed, failed)
	w.returned(out.err, failed)
	for i, e := range entries {
		if e.ack != nil {
			e.ack.results <- out.errOf(i)
		}
		if e.shared != nil {
			e.shared.release()
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
		w.queue.summaryWritten(t, out.errOf(i))
	}
	w.returned(out.err, 0)
}

// write passes records to the sink.
func (w *worker) write(ctx context.Context, records []*Record) outcome {
	w.queue.writeBegan(time.Now())
	err := w.cfg.Sink.Write(ctx, records)
	out := outcome{err: err}
	out.lost, _ = errors.AsType[*LostError](err)
	return out
}

// returned calls sinkError when the sink begins or ceases to fail. The lost records are
// counted before that, so that the metrics show them.
func (w *worker) returned(err error, failed uint64) {
	if w.queue.writeEnded(err, failed) && w.sinkError != nil {
		w.sinkError(w.cfg.Name, err)
	}
}

// outcome is the result of a Write.
type outcome struct {
	err  error
	lost *LostError // err, if it names the lost records; nil if all are lost
}

// errOf returns the error of one record. If it is not known which records are lost,
// every record has one.
func (o *outcome) errOf(i int) error {
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
