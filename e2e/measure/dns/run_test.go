package dns

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFlags(t *testing.T) {
	long := quickRun()
	long.length, long.coredns = 3*time.Second, "bin/coredns"
	for _, test := range []struct {
		args string
		want options
	}{
		{"", fullRun()},
		{"-quick", quickRun()},
		{"-quick -for 3s -coredns bin/coredns", long},
	} {
		got, err := parse(strings.Fields(test.args), &bytes.Buffer{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, test.want, cmp.AllowUnexported(options{})); diff != "" {
			t.Errorf("%q: %s", test.args, diff)
		}
	}
}

func TestWrongUse(t *testing.T) {
	for _, args := range []string{"-pairs -1", "-for 500ms", "-for 1500ms", "-unknown", "argument"} {
		if _, err := parse(strings.Fields(args), &bytes.Buffer{}); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
}

func TestOnlyAnswersWithoutAnErrorCount(t *testing.T) {
	for _, test := range []struct {
		output string
		want   int64 // 0 means an error
	}{
		{"  Queries completed:    4200 (100.00%)\n  Response codes:       NOERROR 4200 (100.00%)\n", 4200},
		{"  Queries completed:    4200 (100.00%)\n  Response codes:       NOERROR 4199 (99.98%), REFUSED 1 (0.02%)\n", 0},
		{"  Queries completed:    4200 (100.00%)\n  Response codes:       SERVFAIL 4200 (100.00%)\n", 0},
		{"", 0},
	} {
		got, err := completed(test.output)
		if (err != nil) != (test.want == 0) || err == nil && got != test.want {
			t.Errorf("%q: got %d, %v", test.output, got, err)
		}
	}
}

func TestCounterWaitsForMissingRecords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "records.jsonl")
	if err := os.WriteFile(file, []byte("{}\n{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &counter{what: "records", read: func(context.Context) (int64, error) { return linesOf(file) }}
	if err := c.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.wait(t.Context(), 0); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.wait(ctx, 1); err == nil || !strings.Contains(err.Error(), "of 1 records 1 are missing") {
		t.Errorf("got %v", err)
	}
}
