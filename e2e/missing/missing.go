// Package missing skips tests for which something is missing on the machine, or fails
// them. Tests of every package use it.
package missing

import (
	"os"
	"testing"
)

// Skip skips a test, and logs what is missing. If CI is set in the environment, where
// every test must run, the test fails instead.
func Skip(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("CI") != "" {
		tb.Fatal(what)
	}
	tb.Skip(what)
}
