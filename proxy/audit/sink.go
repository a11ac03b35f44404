package audit

import "context"

// Sink is a place that records go to. The recorder calls it from one goroutine
// of its own, with records in the order in which they were made, except for those
// that [Open.Commit] waits for: their callers are served in turn.
type Sink interface {
	// Write returns when the records are as safe as this sink makes them. It
	// must neither keep nor change them. A *LostError says which of them were
	// not written, any other error that none was. ctx is done when the
	// recorder's Close gives up. A sink that has failed is tried by time, with a
	// summary of what it has lost.
	Write(ctx context.Context, records []*Record) error
}

// LostError is what a [Sink] returns that took some of the records only.
type LostError struct {
	Lost []int // indices of the records that were not written, ascending
	// Unnamed is how many others were not written, where it is not known which.
	Unnamed int
	Err     error // why
}

// Error returns the cause's text.
func (e *LostError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Err }

// SinkConfig is a sink and what it is for.
type SinkConfig struct {
	// Name of the sink in statistics and messages. Required, unique.
	Name string
	// Sink takes the records. Required.
	Sink Sink
	// Keep reports whether the sink wants a record; nil means all. It is called
	// by whoever makes the record, at any time, and must be quick.
	Keep func(*Record) bool
}

// keeps reports whether the sink wants the record.
func (c *SinkConfig) keeps(rec *Record) bool { return c.Keep == nil || c.Keep(rec) }
