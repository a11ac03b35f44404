package limit

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/exeat-dev/exeat/allowlist"
)

// Standing is how a source address stands with its limit.
type Standing uint8

// The standings. The zero value admits nothing.
const (
	Refused Standing = iota // so far over it that no answer is due
	Over                    // over it: to be told so
	Within
)

// Sources are the budgets of source addresses: an IPv4 address, or the /64 that
// an IPv6 address is in, since its owner may choose any address there. It is
// safe for concurrent use.
type Sources struct {
	cfg Config

	mu    sync.Mutex
	by    map[netip.Addr]*Source
	other *Source // of those beyond maxKeys; nil if there are none yet
	swept time.Time
}

// Source is the budget of one source address. A nil Source, that of a unix
// socket, has no limit.
type Source struct {
	sources    *Sources
	open       int // guarded by sources.mu
	handshakes *rate.Limiter
	strangers  *rate.Limiter // microseconds of processor time
}

// NewSources returns budgets that are all unspent.
func NewSources(cfg Config) *Sources {
	return &Sources{cfg: cfg.withDefaults(), by: map[netip.Addr]*Source{}}
}

// Open counts a connection, and Close must follow; an eighth of the limit
// (rounded up) on top is Over. What is Refused is not counted, and has no
// source; neither has a unix socket, whose address is invalid.
func (s *Sources) Open(addr netip.Addr) (*Source, Standing) {
	if !addr.IsValid() {
		return nil, Within
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.of(allowlist.SourceOf(addr))
	limit := s.cfg.Connections
	if src.open >= limit+(limit+7)/8 {
		return nil, Refused
	}
	src.open++
	if src.open > limit {
		return src, Over
	}
	return src, Within
}

// Handshake spends one, and reports whether there was one left.
func (s *Source) Handshake() bool { return s == nil || s.handshakes.Allow() }

// Left reports whether anything is left of the processor time that certificates
// of this source may cost which do not verify.
func (s *Source) Left() bool { return s == nil || has(s.strangers, time.Now()) }

// Spend takes from that processor time. What goes beyond the end of it is owed, up
// to that of a second at a time.
func (s *Source) Spend(used time.Duration) {
	if s != nil {
		s.strangers.ReserveN(time.Now(), int(min(used, s.sources.cfg.Strangers).Microseconds()))
	}
}

// Close ends a connection that Open has counted.
func (s *Source) Close() {
	if s == nil {
		return
	}
	s.sources.mu.Lock()
	defer s.sources.mu.Unlock()
	s.open--
}

// of is called with mu held.
func (s *Sources) of(key netip.Addr) *Source {
	if src := s.by[key]; src != nil {
		return src
	}
	if now := time.Now(); len(s.by) >= maxKeys && now.Sub(s.swept) >= sweepEvery {
		s.swept = now
		for k, src := range s.by {
			if src.open == 0 && full(src.handshakes, now) && full(src.strangers, now) {
				delete(s.by, k)
			}
		}
	}
	if len(s.by) >= maxKeys {
		if s.other == nil {
			s.other = s.fresh()
		}
		return s.other
	}
	src := s.fresh()
	s.by[key] = src
	return src
}

func (s *Sources) fresh() *Source {
	return &Source{
		sources: s, handshakes: perSecond(s.cfg.Handshakes), strangers: perSecond(int(s.cfg.Strangers.Microseconds())),
	}
}
