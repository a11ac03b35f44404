// Package missing says what becomes of a test for which something is missing on the
// machine. Tests of every package use it.
package missing

import (
	"os"
	"testing"
)

// Skip skips a test, and says what is missing. With CI set in the environment, where
// everything is to be shown, the test fails instead.
func Skip(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("CI") != "" {
		tb.Fatal(what)
	}
	tb.Skip(what)
}
