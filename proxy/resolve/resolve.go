// Package resolve answers DNS questions for every door of the gateway: from a table of
// hosts, from a cache, or from upstream servers. All doors share one resolver, so that
// a connection by name goes to the addresses that DNS returns for the name.
//
// [Resolver.Cached] and [Resolver.Lookup] answer a question for a DNS door, which sends
// the part of the answer that a [Filter] allows; [Resolver.Resolve] returns the
// addresses of a destination to the dialer, which checks each of them with the
// decision. [Resolver.Bind] and [Resolver.Bound] remember which names led to an
// address.
//
// The package looks up only names that the policy has allowed. It does not read
// /etc/hosts and does not complete names by a search list. localhost and every name
// below it are 127.0.0.1 and ::1, and no server is asked for them. The cache holds
// answers and no decisions; a new policy does not empty it. The number of distinct
// names that an identity may look up below one wildcard rule is bounded here, because
// every door uses this package.
package resolve

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// DefaultServeStale is how long an expired answer may be served if no server answers.
const DefaultServeStale = time.Hour

const (
	hostsTTL = 60 // time to live of answers from the table of hosts, in seconds
	anyType  = 0  // key in the table for all types that a name has no records of
	// staleAfter is how long a caller waits for servers if there is an expired answer,
	// and staleRetry is how long servers that failed are not asked again (RFC 8767
	// section 5).
	staleAfter = 1800 * time.Millisecond
	staleRetry = 30 * time.Second
	// familyDelay is how long Resolve waits for the addresses of one family when it has
	// those of the other.
	familyDelay = 250 * time.Millisecond
)

// Config says where names are looked up.
type Config struct {
	// Servers are asked in turn. Without any, New reads those of the system's
	// resolv.conf.
	Servers []Server
	// Groups have servers of their own for some names.
	Groups []Group
	// Hosts answers these names without asking a server. localhost and the names below
	// it cannot be among them, nor among the suffixes of a group.
	Hosts map[allowlist.Host][]netip.Addr
	// CacheBytes bounds the memory of the cache; zero means DefaultCacheBytes.
	CacheBytes int
	// ServeStale is how long an expired answer may be served if no server answers; zero
	// means DefaultServeStale, and a negative value means not at all.
	ServeStale time.Duration
	// Names is how many distinct names below one wildcard rule an identity may look up
	// within a minute; zero means DefaultNames.
	Names int
	// Inspect requires that an alias leads to a name that is allowed itself. Without
	// it, the alias is followed if its name is allowed, unless a deny rule applies to
	// the target.
	Inspect bool
	// Descriptors is the count from which each socket to a server takes one while it is
	// open; nil means no limit.
	Descriptors *limit.Descriptors
	// Log gets a line when a server begins to fail and when it answers again; nil means
	// none.
	Log *slog.Logger
}

// Group says which servers are asked for the names below some suffixes.
type Group struct {
	Suffixes []allowlist.Host // suffixes of names; the suffix itself belongs to the group, too
	Servers  []Server
}

// Resolver answers questions. It is safe for concurrent use.
type Resolver struct {
	local    localAnswers
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

// New returns a resolver, which the caller must close.
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
		local: newLocalAnswers(cfg.Hosts),
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

// Close ends all look-ups and waits for them. Later questions fail.
func (r *Resolver) Close() {
	r.flights.close()
	for _, u := range r.upstreams {
		u.streams.close()
	}
}

// Flush removes the cached answers of every type for a name, and returns their number.
// The answer to a question that is with a server at that time is not cached.
func (r *Resolver) Flush(name allowlist.Host) int {
	r.failures.flush(name)
	return r.cache.flush(name)
}
