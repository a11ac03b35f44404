package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/proxy/audit/audittest"
)

// TestLogHasNoTerminalControls checks that the log escapes control characters, because
// attributes, errors and messages may quote text that others have sent.
func TestLogHasNoTerminalControls(t *testing.T) {
	var out bytes.Buffer
	log := newLog(&out, slog.LevelInfo)
	for _, text := range audittest.Obeyed() {
		out.Reset()
		r := slog.NewRecord(time.Time{}, slog.LevelError, text, 0)
		r.AddAttrs(slog.String("text", text), slog.Any("error", errors.New(text)), slog.Any("bytes", []byte(text)), slog.Group("group", slog.String("text", text)))
		if err := log.Handler().Handle(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSuffix(out.String(), "\n"); audittest.IsObeyed(got, true) {
			t.Fatalf("the log says %q", got)
		}
	}
}

// TestOutputOfCommandsHasNoTerminalControls checks that commands escape control
// characters, because their output quotes their arguments and the policy.
func TestOutputOfCommandsHasNoTerminalControls(t *testing.T) {
	for i, text := range audittest.Obeyed() {
		if strings.ContainsRune(text, 0) { // no argument of a process can have it
			continue
		}
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		good := write(t, "policy.yaml", fmt.Sprintf("version: 1\nidentities:\n  - id: %s\n    owner: %s\n    deny:\n      - {host: api.example, name: %[2]s}\n", builder, quoted))
		bad := write(t, "policy.yaml", fmt.Sprintf("version: 1\n%s: 1\nidentities: [{id: %[1]s}]\n", quoted))
		runs := [][]string{
			{"policy", "check", "-p", good, "--identity", builder, "--dest", "api.example:443"},
			{"policy", "check", "-p", good, "--identity", builder, "--dest", "api.example:443", "-o", "json"},
			{"policy", "check", "-p", good, "--identity", text, "--dest", "api.example:443"},
			{"policy", "check", "-p", good, "--identity", builder, "--dest", text},
			{"policy", "check", "-p", good, "--identity", builder, "--dest", "api.example:443", "--with", text},
			{"policy", "check", "-p", good, "--identity", builder, "--dest", "api.example", "--type", text},
			{"policy", "lint", bad},
			{"policy", "lint", bad, "-o", "json"},
		}
		if i%16 == 0 { // these runs depend on the argument only
			runs = append(runs, []string{"policy", "lint", text}, []string{"--" + text}, []string{text}, []string{"policy", text}, []string{"policy", "check", text},
				[]string{"serve", "--config", text}, []string{"policy", "lint", "-o", text}, []string{"policy", "lint", "--trust-domain", text})
		}
		for _, args := range runs {
			_, stdout, stderr := exeat(t, args...)
			if stdout+stderr == "" || audittest.IsObeyed(stdout, false) || audittest.IsObeyed(stderr, false) {
				t.Fatalf("%q: %q, %q", args, stdout, stderr)
			}
		}
	}
}

// TestTheLogQuotesNoOrigin checks that a message of net/http which quotes what an origin
// has sent is logged without the quotation.
func TestTheLogQuotesNoOrigin(t *testing.T) {
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	var out bytes.Buffer
	setDefaultLog(slog.New(slog.NewTextHandler(&out, nil)))
	// net/http logs this message with package log, whose output is the default log as
	// well.
	const text = `Unsolicited response received on idle HTTP channel starting with "a secret"; err=<nil>`
	if err := slog.Default().Handler().Handle(t.Context(), slog.NewRecord(time.Time{}, slog.LevelInfo, text, 0)); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "Unsolicited response") || strings.Contains(got, "secret") {
		t.Errorf("the log says %q", got)
	}
}
