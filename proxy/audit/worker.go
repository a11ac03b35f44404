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
	var failed uint64
	for i := range entries {
		if out.of(i) != nil {
			failed++
		}
	}
	w.queue.wrote(uint64(len(entries))-failed, failed)
	w.returned(out.err)
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
		records = append(records, t.record())
	}
	out := w.write(ctx, records)
	for i, t := range sums {
		w.queue.summarised(t, out.of(i))
	}
	w.returned(out.err)
}

// write hands records to the sink.
func (w *worker) write(ctx context.Context, records []*Record) outcome {
	w.queue.writes(time.Now())
	err := w.cfg.Sink.Write(ctx, records)
	out := outcome{err: err}
	if lost, ok := errors.AsType[*LostError](err); ok {
		out.partial, out.lost = true, lost.Lost
	}
	return out
}

// returned tells when the sink begins and ends to fail. What it has lost is counted
// by then: whoever is told finds it in the metrics.
func (w *worker) returned(err error) {
	if w.queue.returned(err) && w.sinkError != nil {
		w.sinkError(w.cfg.Name, err)
	}
}

// outcome is what came of a Write.
type outcome struct {
	err     error
	partial bool  // only those in lost are lost
	lost    []int // indices
}

// of returns what came of one record.
func (o *outcome) of(i int) error {
	if o.partial && !slices.Contains(o.lost, i) {
		return nil
	}
	return o.err
}
