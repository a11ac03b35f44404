package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestTheLogQuotesNoOrigin(t *testing.T) {
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	var out bytes.Buffer
	setDefaultLog(slog.New(slog.NewTextHandler(&out, nil)))
	// What net/http prints with package log, which goes to the default, too.
	const text = `Unsolicited response received on idle HTTP channel starting with "a secret"; err=<nil>`
	if err := slog.Default().Handler().Handle(t.Context(), slog.NewRecord(time.Time{}, slog.LevelInfo, text, 0)); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "Unsolicited response") || strings.Contains(got, "secret") {
		t.Errorf("the log says %q", got)
	}
}
