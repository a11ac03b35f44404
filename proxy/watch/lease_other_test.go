//go:build !linux

package watch

import "testing"

// leases reports whether the file system of the tests can tell who writes.
func leases(t *testing.T) bool {
	t.Helper()
	return false
}
