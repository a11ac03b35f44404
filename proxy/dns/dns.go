// Package dns is the DNS door: it answers questions over UDP, TCP, DoT and DoH
// for callers whom it knows, by the same policy as every other door.
//
// A query is read by a strict parser, decided before anything is looked up, and
// answered from the shared resolver or, if it is denied, by the gateway itself.
// No packet leaves for a name that is denied. Each query makes exactly one
// record; packets that are no queries are only counted. These steps have a file
// each: read.go, decide.go, resolve.go, respond.go and record.go; exchange.go
// takes a query through them.
//
// The server loops are its own: everything is bounded, nobody who reads or
// writes slowly holds more than one connection up, and a panic ends one query.
// The package verifies no identity: see package listen.
package dns

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// HandshakeTimeout is how long a handshake over DoT or DoH may take.
const HandshakeTimeout = 5 * time.Second

// The times that bound a connection; they are those of RFC 7766 section 6.2.3
// at its short end, for a client opens the next one cheaply.
const (
	idleTimeout  = 30 * time.Second
	readTimeout  = 5 * time.Second // for one message, from its first byte on
	writeTimeout = 2 * time.Second
)

// Config is what the doors need. Current, Registry, Resolver, Recorder and Log
// are required.
type Config struct {
	Current  *live.Current
	Registry *live.Registry
	Resolver Resolver
	Recorder *audit.Recorder
	Log      *slog.Logger
	// Budgets bound how many queries each identity may ask; nil means the
	// defaults.
	Budgets *limit.Budgets
	// Limits bound what callers may use at a time.
	Limits Limits
	// Inspect lets an answer lead only to names that are allowed by themselves.
	// Otherwise the name that was asked for decides, and a deny rule for a name
	// that it leads to.
	Inspect bool
	// SpanEvery gives only one in so many queries a span that are allowed and
	// answered; zero and one give it to each. All others always have theirs.
	SpanEvery uint64
}

// Resolver answers questions that are allowed; it is made of the methods of
// package resolve. All of them are required.
type Resolver struct {
	// Cached answers without asking a server, and without waiting.
	Cached func(q resolve.Question, now time.Time) (resolve.Answer, bool)
	// Lookup answers for an asker; its error is an *allowlist.ReasonError.
	Lookup func(ctx context.Context, a resolve.Asker, q resolve.Question) (resolve.Answer, error)
	// Bind is told of every answer before it is sent.
	Bind func(h allowlist.Holder, a resolve.Answer, now time.Time, f resolve.Filter)
}

// Server answers queries. It is safe for concurrent use.
type Server struct {
	cfg       Config
	names     *names
	usage     *usage
	exchanges sync.Pool
	draining  draining

	counts struct {
		ignored, shed, panics, allowed atomic.Uint64
	}
}

// New returns a server.
func New(cfg Config) (*Server, error) {
	if cfg.Current == nil || cfg.Registry == nil || cfg.Recorder == nil || cfg.Log == nil ||
		cfg.Resolver.Cached == nil || cfg.Resolver.Lookup == nil || cfg.Resolver.Bind == nil {
		return nil, errors.New("dns: state, registry, resolver, recorder and log are required")
	}
	if cfg.Budgets == nil {
		cfg.Budgets = limit.NewBudgets(limit.Config{})
	}
	cfg.Limits = cfg.Limits.withDefaults()
	s := &Server{cfg: cfg, names: newNames(), usage: newUsage(cfg.Limits)}
	s.exchanges.New = func() any { return &exchange{server: s} }
	return s, nil
}

// Stats counts what has no record.
type Stats struct {
	// Ignored packets were no queries, or HTTP requests that held none.
	Ignored uint64
	// Shed are datagrams that were dropped because their caller is over a
	// limit, which their records say, and connections over HTTP that were closed
	// for that reason.
	Shed uint64
	// Panics ended one query each.
	Panics uint64
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	return Stats{Ignored: s.counts.ignored.Load(), Shed: s.counts.shed.Load(), Panics: s.counts.panics.Load()}
}

// contain keeps a panic inside its query.
func (s *Server) contain(ctx context.Context) {
	if cause := recover(); cause != nil {
		s.panicked(ctx, cause)
	}
}

// panicked counts and logs a panic that ended a query or a connection.
func (s *Server) panicked(ctx context.Context, cause any) {
	s.counts.panics.Add(1)
	s.cfg.Log.LogAttrs(ctx, slog.LevelError, "panic in a query",
		slog.Any("cause", cause), slog.String("stack", string(debug.Stack())))
}
