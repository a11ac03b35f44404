package tunnel

import (
	"sync"
	"sync/atomic"
)

// Pipes lends pipes to the tunnels that share it. Bulk between two plain sockets goes
// through a pipe inside the kernel. It is safe for concurrent use.
type Pipes struct {
	cfg  PipesConfig
	free sync.Pool    // unused pipes; the garbage collector closes them
	lent atomic.Int64 // number of pipes in use
}

// PipesConfig counts the descriptors of pipes; a pipe takes two. If a function is nil,
// descriptors are not counted.
type PipesConfig struct {
	// Take takes n descriptors and reports whether there were enough. If there were
	// not, bytes go through a buffer.
	Take func(n int) bool
	// Scarce reports whether a pipe should be closed as soon as it is empty.
	Scarce func() bool
	// Give gives n descriptors back.
	Give func(n int)
}

// NewPipes returns Pipes that count their descriptors by the functions of cfg.
func NewPipes(cfg PipesConfig) *Pipes { return &Pipes{cfg: cfg} }

// pipes are the pipes of all tunnels whose Config names none.
//
//nolint:gochecknoglobals // as buffers
var pipes Pipes

// orShared returns p, or the shared pipes if p is nil.
func (p *Pipes) orShared() *Pipes {
	if p == nil {
		return &pipes
	}
	return p
}
