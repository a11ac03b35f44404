package audit

import "time"

// Stats counts records.
type Stats struct {
	Made  uint64 // decisions and events
	Sinks []SinkStats
}

// SinkStats counts the records of one sink. Made is at any time the sum of the
// other five.
type SinkStats struct {
	Name       string
	Made       uint64 // kept by the sink's filter, and summaries
	Written    uint64 // taken by the sink
	Dropped    uint64 // the queue was full, or the recorder closed
	Failed     uint64 // the sink returned an error
	Summarised uint64 // counted in a summary that was written
	Waiting    uint64 // in the queue, or on their way
}

// Lost returns how many records the sinks have lost: a record that two have
// lost counts twice.
func (s Stats) Lost() uint64 {
	var n uint64
	for _, sink := range s.Sinks {
		n += sink.Dropped + sink.Failed
	}
	return n
}

// Stats returns the counts so far.
func (r *Recorder) Stats() Stats {
	s := Stats{Made: r.made.Load(), Sinks: make([]SinkStats, len(r.workers))}
	for i, w := range r.workers {
		s.Sinks[i] = w.queue.snapshot()
	}
	return s
}

// Failing returns the sinks that lose records now, or are about to; nil if all
// is well. Whether one works again is found out within seconds, also if there is no
// record to be written.
func (r *Recorder) Failing() []Failure {
	now := time.Now()
	var all []Failure
	for _, w := range r.workers {
		if f, ok := w.queue.failure(now); ok {
			all = append(all, f)
		}
	}
	return all
}
