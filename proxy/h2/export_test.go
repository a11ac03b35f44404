package h2

// Lent returns the number of buffers that connections have borrowed.
func Lent() int64 { return blocks.lent.Load() + chunks.lent.Load() }

// The bounds that tests compare with.
const (
	StreamWindow = streamWindow
	ConnWindow   = connWindow
	ConnMemory   = connMemory
	FullBudget   = fullBudget
	MaxFrame     = maxFrame
)
