package main

import (
	"context"
	"io"
	"log/slog"
	"strings"
)

// newLog returns a log of what is at least of a level. The handler quotes most of
// what a terminal obeys, and the writer sees to the rest.
func newLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(visible{w}, &slog.HandlerOptions{Level: level}))
}

// setDefaultLog makes log that of libraries, too. What net/http says of an
// origin that sends something unasked goes there.
func setDefaultLog(log *slog.Logger) { slog.SetDefault(slog.New(discreet{log.Handler()})) }

// discreet leaves out of messages what they quote: of net/http's that are bytes
// of an origin's, perhaps of an answer.
type discreet struct{ slog.Handler }

// Handle implements slog.Handler.
func (d discreet) Handle(ctx context.Context, r slog.Record) error {
	r.Message, _, _ = strings.Cut(r.Message, ` "`)
	return d.Handler.Handle(ctx, r)
}
