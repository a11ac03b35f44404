package policyfile

import (
	"strings"
	"testing"
)

// TestNoDateMeansNever checks that dates at or near the zero time, which means never, are
// refused.
func TestNoDateMeansNever(t *testing.T) {
	for _, date := range []string{"0000-12-31", "0001-01-01", "0001-01-01T00:00:00Z", "0001-01-01T01:00:00+01:00", "1969-12-30"} {
		dir := t.TempDir()
		put(t, dir, "a.yaml", onePolicy+"        expires: "+date+"\n")
		_, err := Load(Options{}, dir)
		if err == nil || !strings.Contains(err.Error(), "lies before 1970") {
			t.Errorf("expires: %s: %v", date, err)
		}
	}
}
