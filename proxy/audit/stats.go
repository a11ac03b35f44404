package audit

import "time"

// Stats counts records.
type Stats struct {
	Made  uint64 // number of decisions and events
	Sinks []SinkStats
}

// SinkStats counts the records of one sink. Made is always the sum of the other five.
type SinkStats struct {
	Name       string
	Made       uint64 // records kept by the sink's filter, and summaries
	Written    uint64 // written by the sink
	Dropped    uint64 // the queue was full, or the recorder closed
	Failed     uint64 // the sink returned an error
	Summarised uint64 // counted in a summary that was written
	Waiting    uint64 // in the queue, or being written
}

// Lost returns how many records the sinks have lost. A record that two sinks have lost
// counts twice.
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

// Failing returns the sinks that lose records now, or are about to; nil if there are
// none. A sink that works again is noticed within seconds, even if there is no record
// to write.
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
