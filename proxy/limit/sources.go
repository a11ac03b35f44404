package limit

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/exeat-dev/exeat/allowlist"
)

// Standing says whether a source address is within its limit of connections.
type Standing uint8

// The standings. The zero value admits nothing.
const (
	Refused Standing = iota // so far over the limit that the connection gets no answer
	Over                    // over the limit; the caller's requests are refused with that reason
	Within                  // within the limit
)

// Sources holds a budget for each source address: an IPv4 address, or the /64 network
// of an IPv6 address, since its owner may choose any address in it. It is safe for
// concurrent use.
type Sources struct {
	cfg Config

	mu       sync.Mutex
	byAddr   map[netip.Addr]*Source // budgets by allowlist.SourceOf of an address
	overflow *Source                // the budget that sources beyond maxKeys share; nil if there are none yet
	swept    time.Time              // when unused budgets were last forgotten
}

// Source is the budget of one source address. A nil Source, which is that of a unix
// socket, has no limit.
type Source struct {
	sources    *Sources
	open       int // number of open connections; guarded by sources.mu
	handshakes *rate.Limiter
	strangers  *rate.Limiter // microseconds of processor time
}

// NewSources returns unspent budgets.
func NewSources(cfg Config) *Sources {
	return &Sources{cfg: cfg.withDefaults(), byAddr: map[netip.Addr]*Source{}}
}

// Open counts a connection of an address. The connections beyond the limit are Over, up
// to an eighth of the limit (rounded up), and the rest are Refused. Close must follow
// unless the connection is Refused: then it is not counted, and the source is nil. The
// source is nil for a unix socket, too, whose address is invalid.
func (s *Sources) Open(addr netip.Addr) (*Source, Standing) {
	if !addr.IsValid() {
		return nil, Within
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.find(allowlist.SourceOf(addr))
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

// Handshake spends one handshake, and reports whether the source had one left.
func (s *Source) Handshake() bool { return s == nil || s.handshakes.Allow() }

// Left reports whether the source has processor time left for certificates that do not
// verify.
func (s *Source) Left() bool { return s == nil || hasToken(s.strangers, time.Now()) }

// Spend spends processor time on certificates that do not verify. If less is left, the
// rest is owed. One call spends at most the budget of a second.
func (s *Source) Spend(used time.Duration) {
	if s != nil {
		s.strangers.ReserveN(time.Now(), int(min(used, s.sources.cfg.Strangers).Microseconds()))
	}
}

// Close counts a connection as ended that Open has counted.
func (s *Source) Close() {
	if s == nil {
		return
	}
	s.sources.mu.Lock()
	defer s.sources.mu.Unlock()
	s.open--
}

// find returns the budget of a source address. The caller holds mu.
func (s *Sources) find(key netip.Addr) *Source {
	if src := s.byAddr[key]; src != nil {
		return src
	}
	if now := time.Now(); len(s.byAddr) >= maxKeys && now.Sub(s.swept) >= sweepEvery {
		s.swept = now
		for k, src := range s.byAddr {
			if src.open == 0 && full(src.handshakes, now) && full(src.strangers, now) {
				delete(s.byAddr, k)
			}
		}
	}
	if len(s.byAddr) >= maxKeys {
		if s.overflow == nil {
			s.overflow = s.newSource()
		}
		return s.overflow
	}
	src := s.newSource()
	s.byAddr[key] = src
	return src
}

func (s *Sources) newSource() *Source {
	return &Source{
		sources: s, handshakes: perSecond(s.cfg.Handshakes), strangers: perSecond(int(s.cfg.Strangers.Microseconds())),
	}
}
