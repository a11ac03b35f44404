// Package dns serves the DNS doors: it answers queries over UDP, TCP, DoT and DoH for
// callers with an identity, by the same policy as every other door.
//
// A query is read by a strict parser, decided before anything is looked up, and
// answered by the shared resolver or, if it is denied, by the gateway itself. No packet
// is sent for a name that is denied. Each query makes exactly one record; packets that
// are no queries are only counted. Each of these steps has a file: read.go, decide.go,
// resolve.go, respond.go and record.go; exchange.go calls them for a query.
//
// The package has server loops of its own: everything is bounded, a client that reads
// or writes slowly delays one connection only, and a panic ends one query. The package
// does not verify identities; package listen does.
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

// HandshakeTimeout is the longest time for a handshake over DoT or DoH.
const HandshakeTimeout = 5 * time.Second

// Timeouts of a connection. They are at the short end of RFC 7766 section 6.2.3,
// because a client can cheaply open another connection.
const (
	idleTimeout  = 30 * time.Second
	readTimeout  = 5 * time.Second // for one message, from its first byte
	writeTimeout = 2 * time.Second
)

// Config holds what a Server needs. Current, Registry, Resolver, Recorder and Log are
// required.
type Config struct {
	Current  *live.Current
	Registry *live.Registry
	Resolver Resolver
	Recorder *audit.Recorder
	Log      *slog.Logger
	// Budgets bounds how many queries each identity may send per second; nil means the
	// defaults.
	Budgets *limit.Budgets
	// Limits bounds what callers may use at the same time.
	Limits Limits
	// Inspect requires that each alias in an answer leads to a name that is allowed
	// itself. Without it, an answer is allowed if the name of the query is, unless a
	// deny rule applies to the target of an alias.
	Inspect bool
	// SpanEvery gives a span to one in SpanEvery queries that are allowed and answered;
	// zero and one give each of them a span. All other queries always have one.
	SpanEvery uint64
}

// Resolver answers queries that are allowed, with methods of package resolve. All of
// its functions are required.
type Resolver struct {
	// Cached answers without asking a server, and without waiting.
	Cached func(q resolve.Question, now time.Time) (resolve.Answer, bool)
	// Lookup answers an asker. Its error is an *allowlist.ReasonError.
	Lookup func(ctx context.Context, a resolve.Asker, q resolve.Question) (resolve.Answer, error)
	// Bind is called for every answer before it is sent.
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

// Stats counts events that have no record.
type Stats struct {
	// Ignored counts packets that are no queries, and HTTP requests that contain none.
	Ignored uint64
	// Shed counts datagrams that were dropped because their caller is over a limit,
	// which their records show, and connections over HTTP that were closed for the same
	// reason.
	Shed uint64
	// Panics counts panics. Each of them ended one query.
	Panics uint64
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	return Stats{Ignored: s.counts.ignored.Load(), Shed: s.counts.shed.Load(), Panics: s.counts.panics.Load()}
}

// contain recovers from a panic in a query.
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
