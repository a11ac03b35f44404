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

// HoldWriting keeps others from writing until release is called.
func (c *Conn) HoldWriting() (release func()) {
	c.out.writing.Lock()
	return c.out.writing.Unlock
}

// Room returns what the peer takes on all streams together.
func (c *Conn) Room() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flow.sendWindow
}

// ID returns the id of a stream.
func ID(s *Stream) uint32 { return s.id }

// ExhaustIDs makes a client have no ids for other streams.
func ExhaustIDs(c *Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ids.next = lastID
}
