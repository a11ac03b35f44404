package tunnel

import (
	"sync"
	"sync/atomic"
)

// bufferSize is the size of two TLS records of the largest size.
const bufferSize = 32 << 10

type buffer [bufferSize]byte

// A pool lends buffers. It counts those that are lent, so that a test can prove that an
// idle tunnel has none.
type pool struct {
	free sync.Pool
	lent atomic.Int64
}

//nolint:gochecknoglobals // shared by all tunnels, which is the point; nothing can be observed through it
var buffers pool

func (p *pool) get() *buffer {
	p.lent.Add(1)
	if b, ok := p.free.Get().(*buffer); ok {
		return b
	}
	return new(buffer)
}

func (p *pool) put(b *buffer) {
	p.lent.Add(-1)
	p.free.Put(b)
}
