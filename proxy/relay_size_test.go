package proxy

import (
	"reflect"
	"testing"
)

// TestATunnelKeepsItsSize checks that the memory of a tunnel, which holds its record, does
// not grow beyond the size that the runtime allocates for it: with many idle tunnels, each
// step to the next size is a tenth more.
func TestATunnelKeepsItsSize(t *testing.T) {
	const class = 1152 // a size class of the runtime (runtime/sizeclasses.go)
	if size := reflect.TypeFor[relay]().Size(); size > class {
		t.Errorf("a tunnel has %d bytes, more than %d: put small fields of its record together", size, class)
	}
}
