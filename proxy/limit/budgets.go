package limit

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	"github.com/exeat-dev/exeat/allowlist"
)

// Budgets holds a budget for each holder, and one for each pattern whose identities
// share limits. What an identity or a pattern spends by source-map is counted apart
// from what it spends by other proofs, with the same limits for each. It is safe for
// concurrent use.
type Budgets struct {
	cfg Config

	mu     sync.Mutex
	proved accounts
	mapped accounts // budgets of mapped holders

	applied bool // says that Apply has been called, and that policy is from its last call
	policy  *allowlist.Policy
}

// accounts are the budgets of all holders of one kind, mapped or not.
type accounts struct {
	byID     map[spiffeid.ID]*budget             // budgets by the identity of their holder
	shared   map[allowlist.IdentityPattern]*pool // pools that the identities of a pattern share
	overflow *budget                             // the budget that holders beyond maxKeys share; nil if there are none yet
	swept    time.Time                           // when sweep last ran
}

// budget is the budget of one holder.
type budget struct {
	*pool

	requests *rate.Limiter
}

// pool counts tunnels and queries against limits. The mutex of the budgets guards all
// its fields but upload. A limiter is nil if its limit is not set.
type pool struct {
	limits   allowlist.Limits
	open     int // number of open tunnels and running plain requests
	connects *rate.Limiter
	queries  *rate.Limiter
	upload   atomic.Pointer[rate.Limiter] // bytes
}

// NewBudgets returns unspent budgets.
func NewBudgets(cfg Config) *Budgets {
	return &Budgets{cfg: cfg.withDefaults(), proved: newAccounts(), mapped: newAccounts()}
}

func newAccounts() accounts {
	return accounts{byID: map[spiffeid.ID]*budget{}, shared: map[allowlist.IdentityPattern]*pool{}}
}

// Request spends one request of a holder, and reports whether the holder had one left.
func (b *Budgets) Request(h allowlist.Holder) bool {
	b.mu.Lock()
	requests := b.find(h, time.Now()).requests
	b.mu.Unlock()
	return requests.Allow()
}

// Query spends one DNS query of a holder and of the pools that it shares, by the limits
// that a policy gives to its identity (see Open for which policy). It returns NoKey, or
// the limit that had no query left. It allocates nothing once the holder is known.
func (b *Budgets) Query(p *allowlist.Policy, h allowlist.Holder) (over Key) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	p = b.newest(p)
	if !spend(b.holderPool(p, h, now).queries, now) {
		if p.Limits(h.ID()).DNSPerSecond == 0 {
			return KeyQueriesPerSecond
		}
		return KeyDNSPerSecond
	}
	p.EachShared(h.ID(), func(pattern allowlist.IdentityPattern, limits allowlist.Limits) {
		if over == NoKey && !spend(b.accounts(h).sharedPool(pattern, limits, now).queries, now) {
			over = KeySharedDNSPerSecond
		}
	})
	return over
}

// Open takes a tunnel by the limits that a policy gives to a holder's identity. If a
// limit is used up, it returns tunnel-limit, rate-limited or upload-limit and the key
// of the limit; if not, the lease must be closed. The given policy applies until the
// first call of Apply, and after that the policy of the last call does: a request that
// was decided by an older policy must not bring the older limits back.
func (b *Budgets) Open(p *allowlist.Policy, h allowlist.Holder) (*Lease, allowlist.Reason, Key) {
	return b.lease(p, h, true)
}

// Exchange takes a lease for a plain request. It counts as an open tunnel while it
// lasts, but not as a new tunnel of the second: the reason is never rate-limited.
func (b *Budgets) Exchange(p *allowlist.Policy, h allowlist.Holder) (*Lease, allowlist.Reason, Key) {
	return b.lease(p, h, false)
}

// lease does what Open does if tunnel is true, and what Exchange does otherwise.
func (b *Budgets) lease(p *allowlist.Policy, h allowlist.Holder, tunnel bool) (*Lease, allowlist.Reason, Key) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	p = b.newest(p)
	l := &Lease{budgets: b, holderPool: b.holderPool(p, h, now), tunnel: tunnel}
	p.EachShared(h.ID(), func(pattern allowlist.IdentityPattern, limits allowlist.Limits) {
		l.shared = append(l.shared, b.accounts(h).sharedPool(pattern, limits, now))
	})
	if reason, over := l.take(now); reason != allowlist.NoReason {
		return nil, reason, over
	}
	return l, allowlist.NoReason, NoKey
}

// newest returns the policy whose limits apply. The caller holds mu.
func (b *Budgets) newest(p *allowlist.Policy) *allowlist.Policy {
	if b.applied {
		return b.policy
	}
	return p
}

// holderPool returns the pool of a holder itself, with the limits that a policy gives to
// its identity. The caller holds mu.
func (b *Budgets) holderPool(p *allowlist.Policy, h allowlist.Holder, now time.Time) *pool {
	own := b.find(h, now)
	limits := b.cfg.Identity
	if own != b.accounts(h).overflow {
		limits = p.Limits(h.ID()).Or(limits)
	}
	own.set(limits, now)
	return own.pool
}

// accounts returns the accounts that hold a holder's budgets.
func (b *Budgets) accounts(h allowlist.Holder) *accounts {
	if h.Mapped() {
		return &b.mapped
	}
	return &b.proved
}

// sharedPool returns the pool that the identities of a pattern share. The caller holds the
// mutex of the budgets.
func (a *accounts) sharedPool(pattern allowlist.IdentityPattern, limits allowlist.Limits, now time.Time) *pool {
	common := a.shared[pattern]
	if common == nil {
		common = new(pool)
		a.shared[pattern] = common
	}
	common.set(limits, now)
	return common
}

// Apply gives the limits of a policy to all budgets, those of open tunnels included,
// and forgets the pools of patterns that share no limits any more. Open tunnels in
// excess of a limit stay open.
func (b *Budgets) Apply(p *allowlist.Policy) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applied, b.policy = true, p
	b.proved.apply(p, b.cfg.Identity, now)
	b.mapped.apply(p, b.cfg.Identity, now)
}

// apply does what Apply does. The caller holds the mutex of the budgets.
func (a *accounts) apply(p *allowlist.Policy, identity allowlist.Limits, now time.Time) {
	for id, own := range a.byID {
		own.set(p.Limits(id).Or(identity), now)
	}
	for pattern, common := range a.shared {
		common.set(p.Shared(pattern), now)
		if common.limits == (allowlist.Limits{}) && common.open == 0 {
			delete(a.shared, pattern)
		}
	}
}

// find returns the budget of a holder. The caller holds mu.
func (b *Budgets) find(h allowlist.Holder, now time.Time) *budget {
	a := b.accounts(h)
	if own := a.byID[h.ID()]; own != nil {
		return own
	}
	if len(a.byID) >= maxKeys && now.Sub(a.swept) >= sweepEvery {
		a.sweep(now)
	}
	if len(a.byID) >= maxKeys {
		if a.overflow == nil {
			a.overflow = b.newBudget()
		}
		return a.overflow
	}
	own := b.newBudget()
	a.byID[h.ID()] = own
	return own
}

// sweep forgets the holders that use nothing and have spent nothing. The caller holds the
// mutex of the budgets.
func (a *accounts) sweep(now time.Time) {
	a.swept = now
	for id, own := range a.byID {
		if full(own.requests, now) && own.unused(now) {
			delete(a.byID, id)
		}
	}
}

func (b *Budgets) newBudget() *budget {
	return &budget{pool: new(pool), requests: perSecond(b.cfg.Requests)}
}

// unused reports whether nothing of the pool is in use or spent.
func (p *pool) unused(now time.Time) bool {
	return p.open == 0 && full(p.connects, now) && full(p.queries, now) && full(p.upload.Load(), now)
}

// set changes the limits. What was spent stays spent.
func (p *pool) set(l allowlist.Limits, now time.Time) {
	if p.limits == l {
		return
	}
	p.limits = l
	p.connects = refilled(p.connects, int64(l.ConnectsPerSecond), time.Second, now)
	p.queries = refilled(p.queries, int64(l.DNSPerSecond), time.Second, now)
	p.upload.Store(refilled(p.upload.Load(), l.UploadPerHour, time.Hour, now))
}

// refilled returns a limiter of n events in a period. It begins with as many events spent
// as the limiter before, which may be nil, has spent. It returns nil if n is zero.
func refilled(before *rate.Limiter, n int64, period time.Duration, now time.Time) *rate.Limiter {
	if n == 0 {
		return nil
	}
	l := rate.NewLimiter(rate.Limit(float64(n)/period.Seconds()), int(n))
	if before != nil {
		spent := float64(before.Burst()) - before.TokensAt(now)
		l.AllowN(now, int(min(spent, float64(n))))
	}
	return l
}

// Lease is an open tunnel or a running plain request as its budgets count it.
type Lease struct {
	budgets    *Budgets
	tunnel     bool
	holderPool *pool
	shared     []*pool
	overShared atomic.Bool // says that the last failure of Spend was for a shared limit
}

// take counts the lease in its pools, or returns the limit that is used up. The caller
// holds the mutex of the budgets.
func (l *Lease) take(now time.Time) (allowlist.Reason, Key) {
	for p := range l.pools {
		switch {
		case p.limits.Tunnels > 0 && p.open >= p.limits.Tunnels:
			return allowlist.TunnelLimit, l.key(p, KeyTunnels, KeySharedTunnels)
		case !hasToken(p.upload.Load(), now):
			return allowlist.UploadLimit, l.key(p, KeyUploadPerHour, KeySharedUploadPerHour)
		}
	}
	for p := range l.pools {
		if l.tunnel && !spend(p.connects, now) {
			return allowlist.RateLimited, l.key(p, KeyConnectsPerSecond, KeySharedConnectsPerSecond)
		}
	}
	for p := range l.pools {
		p.open++
	}
	return allowlist.NoReason, NoKey
}

// key returns own if p is the holder's own pool, and shared if it is a shared one.
func (l *Lease) key(p *pool, own, shared Key) Key {
	if p == l.holderPool {
		return own
	}
	return shared
}

// pools visits the holder's own pool, and then those that it shares.
func (l *Lease) pools(yield func(*pool) bool) {
	if !yield(l.holderPool) {
		return
	}
	for _, p := range l.shared {
		if !yield(p) {
			return
		}
	}
}

// Spend spends n bytes that are about to be uploaded, and reports whether all budgets
// had them left.
func (l *Lease) Spend(n int) bool {
	now := time.Now()
	for p := range l.pools {
		if upload := p.upload.Load(); upload != nil && !upload.AllowN(now, n) {
			l.overShared.Store(p != l.holderPool)
			return false
		}
	}
	return true
}

// Over returns the limit for which Spend failed the last time.
func (l *Lease) Over() Key {
	if l.overShared.Load() {
		return KeySharedUploadPerHour
	}
	return KeyUploadPerHour
}

// Close counts the tunnel or plain request as ended. What was spent stays spent.
func (l *Lease) Close() {
	l.budgets.mu.Lock()
	defer l.budgets.mu.Unlock()
	for p := range l.pools {
		p.open--
	}
}
