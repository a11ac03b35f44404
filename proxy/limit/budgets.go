package limit

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	"github.com/exeat-dev/exeat/allowlist"
)

// Budgets are those of holders, and of the patterns whose identities share
// one. What came by source-map spends nothing of what the same identities, or
// patterns, have by other proofs: each has budgets of its own, of the same limits.
// It is safe for concurrent use.
type Budgets struct {
	cfg Config

	mu     sync.Mutex
	proved accounts
	mapped accounts // of holders that are mapped

	applied bool // policy is that of the last Apply
	policy  *allowlist.Policy
}

// accounts are the budgets that holders of one kind have and share.
type accounts struct {
	by     map[spiffeid.ID]*budget
	shared map[allowlist.IdentityPattern]*pool
	other  *budget // of those beyond maxKeys; nil if there are none yet
	swept  time.Time
}

// budget is that of one holder.
type budget struct {
	*pool

	requests *rate.Limiter
}

// pool is what tunnels and queries are taken from. All but upload is guarded by the mutex
// of the budgets. A limiter is nil where the key is not set.
type pool struct {
	limits   allowlist.Limits
	open     int // tunnels and plain requests
	connects *rate.Limiter
	queries  *rate.Limiter
	upload   atomic.Pointer[rate.Limiter] // bytes
}

// NewBudgets returns budgets that are all unspent.
func NewBudgets(cfg Config) *Budgets {
	return &Budgets{cfg: cfg.withDefaults(), proved: newAccounts(), mapped: newAccounts()}
}

func newAccounts() accounts {
	return accounts{by: map[spiffeid.ID]*budget{}, shared: map[allowlist.IdentityPattern]*pool{}}
}

// Request spends one request of a holder, and reports whether there was one
// left.
func (b *Budgets) Request(h allowlist.Holder) bool {
	b.mu.Lock()
	requests := b.of(h, time.Now()).requests
	b.mu.Unlock()
	return requests.Allow()
}

// Query spends one DNS query by the limits that a policy gives to a holder's
// identity, as Open does, and reports whether its own budget and those that it
// shares had one left: NoKey, or else the one that had none. It allocates nothing once
// the holder is known.
func (b *Budgets) Query(p *allowlist.Policy, h allowlist.Holder) (over Key) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	p = b.newest(p)
	if !spend(b.own(p, h, now).queries, now) {
		if p.Limits(h.ID()).DNSPerSecond == 0 {
			return KeyQueriesPerSecond
		}
		return KeyDNSPerSecond
	}
	p.EachShared(h.ID(), func(pattern allowlist.IdentityPattern, limits allowlist.Limits) {
		if over == NoKey && !spend(b.accounts(h).common(pattern, limits, now).queries, now) {
			over = KeySharedDNSPerSecond
		}
	})
	return over
}

// Open takes a tunnel by the limits that a policy gives to a holder's identity, or says
// which of them is used up, as tunnel-limit, rate-limited or upload-limit and by its
// key. Without a reason, Close of the lease must follow. The policy counts until the first
// Apply, and from then on that of the last: a request that was decided by an
// older one must not bring its limits back.
func (b *Budgets) Open(p *allowlist.Policy, h allowlist.Holder) (*Lease, allowlist.Reason, Key) {
	return b.lease(p, h, true)
}

// Exchange is for a plain request, which takes the place of a tunnel while it lasts
// and is no new tunnel of a second: the reason is never rate-limited.
func (b *Budgets) Exchange(p *allowlist.Policy, h allowlist.Holder) (*Lease, allowlist.Reason, Key) {
	return b.lease(p, h, false)
}

func (b *Budgets) lease(p *allowlist.Policy, h allowlist.Holder, tunnel bool) (*Lease, allowlist.Reason, Key) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	p = b.newest(p)
	l := &Lease{budgets: b, own: b.own(p, h, now), tunnel: tunnel}
	p.EachShared(h.ID(), func(pattern allowlist.IdentityPattern, limits allowlist.Limits) {
		l.shared = append(l.shared, b.accounts(h).common(pattern, limits, now))
	})
	if reason, over := l.take(now); reason != allowlist.NoReason {
		return nil, reason, over
	}
	return l, allowlist.NoReason, NoKey
}

// newest returns the policy whose limits hold. It is called with mu held.
func (b *Budgets) newest(p *allowlist.Policy) *allowlist.Policy {
	if b.applied {
		return b.policy
	}
	return p
}

// own returns what a holder has for itself, with the limits that a policy
// gives its identity. It is called with mu held.
func (b *Budgets) own(p *allowlist.Policy, h allowlist.Holder, now time.Time) *pool {
	own := b.of(h, now)
	limits := b.cfg.Identity
	if own != b.accounts(h).other {
		limits = p.Limits(h.ID()).Or(limits)
	}
	own.set(limits, now)
	return own.pool
}

// accounts returns those that a holder's budgets are among.
func (b *Budgets) accounts(h allowlist.Holder) *accounts {
	if h.Mapped() {
		return &b.mapped
	}
	return &b.proved
}

// common returns what the identities of a pattern share. It is called with the
// mutex of the budgets held.
func (a *accounts) common(pattern allowlist.IdentityPattern, limits allowlist.Limits, now time.Time) *pool {
	common := a.shared[pattern]
	if common == nil {
		common = new(pool)
		a.shared[pattern] = common
	}
	common.set(limits, now)
	return common
}

// Apply makes the limits of a policy hold for the tunnels that are open, and
// forgets what no pattern shares any more. Tunnels beyond a limit of tunnels
// stay.
func (b *Budgets) Apply(p *allowlist.Policy) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applied, b.policy = true, p
	b.proved.apply(p, b.cfg.Identity, now)
	b.mapped.apply(p, b.cfg.Identity, now)
}

// apply is called with the mutex of the budgets held.
func (a *accounts) apply(p *allowlist.Policy, identity allowlist.Limits, now time.Time) {
	for id, own := range a.by {
		own.set(p.Limits(id).Or(identity), now)
	}
	for pattern, common := range a.shared {
		common.set(p.Shared(pattern), now)
		if common.limits == (allowlist.Limits{}) && common.open == 0 {
			delete(a.shared, pattern)
		}
	}
}

// of is called with mu held.
func (b *Budgets) of(h allowlist.Holder, now time.Time) *budget {
	a := b.accounts(h)
	if own := a.by[h.ID()]; own != nil {
		return own
	}
	if len(a.by) >= maxKeys && now.Sub(a.swept) >= sweepEvery {
		a.sweep(now)
	}
	if len(a.by) >= maxKeys {
		if a.other == nil {
			a.other = b.fresh()
		}
		return a.other
	}
	own := b.fresh()
	a.by[h.ID()] = own
	return own
}

// sweep forgets the holders that use nothing. It is called with the mutex of the
// budgets held.
func (a *accounts) sweep(now time.Time) {
	a.swept = now
	for id, own := range a.by {
		if full(own.requests, now) && own.unused(now) {
			delete(a.by, id)
		}
	}
}

func (b *Budgets) fresh() *budget {
	return &budget{pool: new(pool), requests: perSecond(b.cfg.Requests)}
}

// unused reports whether nothing is taken from the pool.
func (p *pool) unused(now time.Time) bool {
	return p.open == 0 && full(p.connects, now) && full(p.queries, now) && full(p.upload.Load(), now)
}

// set changes the limits; what was spent stays spent.
func (p *pool) set(l allowlist.Limits, now time.Time) {
	if p.limits == l {
		return
	}
	p.limits = l
	p.connects = refilled(p.connects, int64(l.ConnectsPerSecond), time.Second, now)
	p.queries = refilled(p.queries, int64(l.DNSPerSecond), time.Second, now)
	p.upload.Store(refilled(p.upload.Load(), l.UploadPerHour, time.Hour, now))
}

// refilled returns a limiter of n in a period, of which as much is spent as of
// the one before it; nil if n is zero.
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

// Lease is the place, and the bytes, that a tunnel or a plain request has of its
// budgets.
type Lease struct {
	budgets *Budgets
	tunnel  bool
	own     *pool
	shared  []*pool
	over    atomic.Bool // Spend has failed by a limit that is shared
}

// take is called with the mutex of the budgets held.
func (l *Lease) take(now time.Time) (allowlist.Reason, Key) {
	for p := range l.pools {
		switch {
		case p.limits.Tunnels > 0 && p.open >= p.limits.Tunnels:
			return allowlist.TunnelLimit, l.key(p, KeyTunnels, KeySharedTunnels)
		case !has(p.upload.Load(), now):
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

// key returns which of two limits a pool has: that of one holder or the shared one.
func (l *Lease) key(p *pool, own, shared Key) Key {
	if p == l.own {
		return own
	}
	return shared
}

func (l *Lease) pools(yield func(*pool) bool) {
	if !yield(l.own) {
		return
	}
	for _, p := range l.shared {
		if !yield(p) {
			return
		}
	}
}

// Spend takes n bytes that are about to go up, and reports whether all budgets
// had them.
func (l *Lease) Spend(n int) bool {
	now := time.Now()
	for p := range l.pools {
		if upload := p.upload.Load(); upload != nil && !upload.AllowN(now, n) {
			l.over.Store(p != l.own)
			return false
		}
	}
	return true
}

// Over returns the limit that made Spend report false the last time.
func (l *Lease) Over() Key {
	if l.over.Load() {
		return KeySharedUploadPerHour
	}
	return KeyUploadPerHour
}

// Close gives the place back; what was spent stays spent.
func (l *Lease) Close() {
	l.budgets.mu.Lock()
	defer l.budgets.mu.Unlock()
	for p := range l.pools {
		p.open--
	}
}
