package audit

import "context"

// Sink is a place that records go to. The recorder calls it from one goroutine, with
// records in the order in which they were made, except for those that [Pending.Commit]
// waits for, whose callers are served in turn.
type Sink interface {
	// Write returns when the records are as safe as this sink makes them. It must
	// neither keep nor change them. A *LostError lists the records that were not
	// written; after any other error none of them was. ctx is canceled when the
	// recorder's Close returns. A sink that has failed is tried again after some time
	// with a summary of the records that it lost, even if there is no other record.
	Write(ctx context.Context, records []*Record) error
}

// LostError is the error of a [Sink] that wrote only some of the records.
type LostError struct {
	Lost []int // indices of the records that were not written, ascending
	// Unnamed is the number of further records that were not written, if the sink does
	// not know which ones.
	Unnamed int
	Err     error // why
}

// Error returns the cause's text.
func (e *LostError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Err }

// SinkConfig configures a sink.
type SinkConfig struct {
	// Name of the sink in statistics and messages. It is required and unique.
	Name string
	// Sink receives the records. It is required.
	Sink Sink
	// Keep reports whether the sink wants a record; nil means that it wants all. It is
	// called from the goroutine that makes the record, at any time, and must be quick.
	Keep func(*Record) bool
}

// keeps reports whether the sink wants the record.
func (c *SinkConfig) keeps(rec *Record) bool { return c.Keep == nil || c.Keep(rec) }
