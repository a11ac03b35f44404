//go:build !linux

package tunnel

// A splicer moves nothing where there is no splice(2); it is always nil.
type splicer struct{}

func newSplicer(_, _ *side, _ *Pipes) *splicer { return nil }

func (s *splicer) wanted() bool        { return false }
func (s *splicer) noteRead(int)        {}
func (s *splicer) fill() (int, error)  { return 0, nil }
func (s *splicer) drain() (int, error) { return 0, nil }
func (s *splicer) drop()               {}
