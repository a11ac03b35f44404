package tunnel

import (
	"sync"
	"sync/atomic"
)

// Pipes lends pipes to all tunnels that share it: what goes from one bare socket
// to another in bulk goes through one, inside the kernel. It is safe for
// concurrent use.
type Pipes struct {
	cfg  PipesConfig
	free sync.Pool // of pipes; the collector closes those that nobody takes
	lent atomic.Int64
}

// PipesConfig says where the descriptors of pipes are taken from, two for each. A
// function that is nil means that there are enough.
type PipesConfig struct {
	// Take reports whether n were taken. If not, bytes go through a buffer.
	Take func(n int) bool
	// Scarce reports whether pipes should be closed as soon as they are empty.
	Scarce func() bool
	// Give gives n back.
	Give func(n int)
}

// NewPipes returns pipes that take their descriptors as the configuration says.
func NewPipes(cfg PipesConfig) *Pipes { return &Pipes{cfg: cfg} }

// pipes are those of all tunnels that are given none.
//
//nolint:gochecknoglobals // as buffers
var pipes Pipes

// orShared returns p, or for nil the pipes of all tunnels that are given none.
func (p *Pipes) orShared() *Pipes {
	if p == nil {
		return &pipes
	}
	return p
}
