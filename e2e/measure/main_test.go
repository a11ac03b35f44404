package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/e2e/measure/report"
)

func TestExitCodes(t *testing.T) {
	ending := func(err error) measurement {
		return func(_ context.Context, args []string, _, _ io.Writer) error {
			if len(args) != 1 || args[0] != "-quick" {
				t.Errorf("it is given %q", args)
			}
			return err
		}
	}
	all := map[string]measurement{
		"good": ending(nil), "help": ending(flag.ErrHelp), "broken": ending(errors.New("no such binary")),
		"slow": ending(report.Check([]string{"one", "two"})),
	}
	for _, row := range []struct {
		args string
		code int
		says string
	}{
		{"good -quick", 0, ""},
		{"help -quick", 0, ""},
		{"slow -quick", exitFault, "slow: one\nslow: two\n"},
		{"broken -quick", exitUsage, "broken: no such binary\n"},
		{"", exitUsage, "usage: measure broken|good|help|slow [flags]\n"},
		{"other", exitUsage, "usage: measure broken|good|help|slow [flags]\n"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), all, strings.Fields(row.args), &stdout, &stderr)
		if code != row.code || stderr.String() != row.says || stdout.Len() > 0 {
			t.Errorf("%q: exit code %d, %q, want %d, %q", row.args, code, stderr.String(), row.code, row.says)
		}
	}
}

func TestWrongUseIsExitCode2(t *testing.T) {
	for name := range measurements() {
		for _, arg := range []string{"-unknown", "argument"} {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), measurements(), []string{name, arg}, &stdout, &stderr); code != exitUsage || stderr.Len() == 0 {
				t.Errorf("%s %s: exit code %d, message %q", name, arg, code, stderr.String())
			}
		}
	}
}
