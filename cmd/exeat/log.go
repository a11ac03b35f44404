package main

import (
	"context"
	"io"
	"log/slog"
	"strings"
)

// newLog returns a log of messages of at least a level. The handler quotes most
// characters that a terminal obeys, and the writer escapes the others.
func newLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(visible{w}, &slog.HandlerOptions{Level: level}))
}

// setDefaultLog makes log the log of libraries, too. For example net/http logs that an
// origin has sent a response without a request.
func setDefaultLog(log *slog.Logger) { slog.SetDefault(slog.New(discreet{log.Handler()})) }

// discreet removes quoted text from messages, because net/http quotes bytes that an
// origin has sent, which may be part of an answer.
type discreet struct{ slog.Handler }

// Handle implements slog.Handler.
func (d discreet) Handle(ctx context.Context, r slog.Record) error {
	r.Message, _, _ = strings.Cut(r.Message, ` "`)
	return d.Handler.Handle(ctx, r)
}
