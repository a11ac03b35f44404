package h2

import (
	"sync"
	"sync/atomic"
)

// A block is a buffer for one read from a link, or for one DATA frame with its header.
const (
	frameHeader = 9
	blockSize   = 64 << 10
	// maxPayload is the payload of a frame that fills a block, which makes four TLS records
	// of the largest size. smallPayload makes one. A frame with a payload of 16,384 bytes
	// would need another record for its last nine bytes.
	maxPayload   = blockSize - frameHeader
	smallPayload = 16<<10 - frameHeader
)

type block [blockSize]byte

// chunk keeps bytes that wait in a stream.
const chunkSize = 16 << 10

type chunk [chunkSize]byte

// A pool lends buffers. It counts those that are lent, so that a test can prove that a
// connection without traffic has none.
type pool[T any] struct {
	free sync.Pool
	lent atomic.Int64
}

//nolint:gochecknoglobals // shared by all connections, which is the point; nothing can be observed through them
var (
	blocks pool[block]
	chunks pool[chunk]
)

func (p *pool[T]) get() *T {
	p.lent.Add(1)
	if b, ok := p.free.Get().(*T); ok {
		return b
	}
	return new(T)
}

func (p *pool[T]) put(b *T) {
	p.lent.Add(-1)
	p.free.Put(b)
}
