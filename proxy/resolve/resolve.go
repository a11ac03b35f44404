// Package resolve answers DNS questions for every door of the gateway: from a
// table of hosts, from a cache, or from upstream servers. One resolver serves
// both halves, so that what a caller is told by DNS is what a connection by
// name is made to.
//
// [Resolver.Cached] and [Resolver.Lookup] answer a question for a DNS door,
// which shows it through a [Filter]; [Resolver.Resolve] returns the addresses
// of a destination for the dialer, which asks the decision for each of them.
// [Resolver.Bind] and [Resolver.Bound] remember which names led to an address.
//
// It looks up nothing by itself: only what a policy allowed gets here. It reads
// no /etc/hosts and completes no name by a search list. localhost and every name
// below it are 127.0.0.1 and ::1, and no server is asked. The cache holds answers
// and no verdicts; a new policy does not empty it. The number of distinct names
// that an identity may look up below one wildcard rule is bounded here, because
// every door meets here.
package resolve

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// DefaultServeStale is for how long an answer is of use after its time, if no
// server answers.
const DefaultServeStale = time.Hour

const (
	hostsTTL = 60 // seconds, in answers from the table of hosts
	anyType  = 0  // stands in the table for the types that it has no records of
	// staleAfter is how long a caller waits for servers if there is an answer
	// past its time, and staleRetry for how long servers that failed are not
	// asked again (RFC 8767 section 5).
	staleAfter = 1800 * time.Millisecond
	staleRetry = 30 * time.Second
	// familyDelay is how long Resolve waits for the addresses of one family
	// when it has those of the other.
	familyDelay = 250 * time.Millisecond
)

// Config says where names are looked up.
type Config struct {
	// Servers are asked in turn; none means those that the system's
	// resolv.conf names when the resolver is made.
	Servers []Server
	// Groups have servers of their own for some names.
	Groups []Group
	// Hosts answers these names without asking anybody. localhost and the names
	// below it cannot be among them, nor among the suffixes of a group.
	Hosts map[allowlist.Host][]netip.Addr
	// CacheBytes bounds the memory of the cache; zero means DefaultCacheBytes.
	CacheBytes int
	// ServeStale is for how long an answer is of use after its time, if no
	// server answers; zero means DefaultServeStale, negative not at all.
	ServeStale time.Duration
	// Names is how many distinct names below one wildcard rule an identity may
	// look up within a minute; zero means DefaultNames.
	Names int
	// Inspect lets Resolve follow an alias only to a name that is allowed by
	// itself. Otherwise the name that was asked for decides, and a deny rule
	// for the alias.
	Inspect bool
	// Descriptors are where each socket to a server takes one, for as long as it
	// is open; nil is any number.
	Descriptors *limit.Descriptors
	// Log is told when a server begins to fail and when it answers again; nil is no
	// log.
	Log *slog.Logger
}

// Group says which servers are asked for the names below some suffixes.
type Group struct {
	Suffixes []allowlist.Host // the names themselves, too
	Servers  []Server
}

// Resolver answers questions. It is safe for concurrent use.
type Resolver struct {
	own      own
	groups   groups
	cache    *cache
	failures *failures
	flights  flights
	budgets  *budgets
	bindings *bindings
	inspect  bool

	descriptors *limit.Descriptors

	upstreams   []*upstream
	familyDelay time.Duration
	staleAfter  time.Duration
}

// New returns a resolver, which the caller closes.
func New(cfg Config) (*Resolver, error) {
	if len(cfg.Servers) == 0 {
		var err error
		if cfg.Servers, err = systemServers(resolvConf); err != nil {
			return nil, err
		}
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = DefaultCacheBytes
	}
	if cfg.ServeStale == 0 {
		cfg.ServeStale = DefaultServeStale
	}
	if cfg.Names == 0 {
		cfg.Names = DefaultNames
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &Resolver{
		own:   newOwn(cfg.Hosts),
		cache: newCache(cfg.CacheBytes, max(0, cfg.ServeStale)), failures: newFailures(),
		budgets: newBudgets(cfg.Names), bindings: newBindings(), inspect: cfg.Inspect,
		descriptors: cfg.Descriptors, familyDelay: familyDelay, staleAfter: staleAfter,
	}
	r.flights = flights{run: r.ask, life: lookupTimeout, flying: map[Question]*flight{}}
	for host := range cfg.Hosts {
		if host.IsLocalhost() {
			return nil, fmt.Errorf("resolver: hosts: %s is always this machine", host)
		}
	}
	var err error
	if r.groups, err = newGroups(&cfg); err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	r.upstreams = r.groups.all
	return r, nil
}

// Close ends what is under way and waits for it. Questions after it fail.
func (r *Resolver) Close() {
	r.flights.close()
	for _, u := range r.upstreams {
		u.streams.close()
	}
}

// Flush forgets what is kept of a name, of every type, and returns how many
// answers that were. An answer that is on its way is not kept.
func (r *Resolver) Flush(name allowlist.Host) int {
	r.failures.flush(name)
	return r.cache.flush(name)
}
