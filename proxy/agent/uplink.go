package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/h2"
)

// The defaults of UplinkConfig.
const (
	DefaultDialTimeout  = 3 * time.Second
	DefaultProveAfter   = time.Second
	DefaultProveTimeout = 250 * time.Millisecond
	DefaultPingAfter    = 15 * time.Second
	DefaultPingTimeout  = 5 * time.Second
)

// stagger is how long a gateway may take to be connected until the next one is tried as well.
const stagger = 300 * time.Millisecond

// IdentityProvider has the identity of the workload. Its snapshot is nil as long as there is
// none.
type IdentityProvider interface {
	identity.Provider
	// Follow calls changed when there may be a new snapshot, until ctx is done. It reads at
	// once when it receives from reread.
	Follow(ctx context.Context, reread <-chan struct{}, changed func(context.Context))
}

// UplinkConfig says which gateways there are. Gateways, Accept, Provider and Log are required;
// a zero time means the default.
type UplinkConfig struct {
	// Gateways are the addresses of gateways, each HOST:PORT.
	Gateways []string
	// Accept returns an error for a server that is no gateway of ours.
	Accept func(spiffeid.ID) error
	// TrustDomain is that of the gateways, by which DNS queries name them. Required for a
	// door for DNS.
	TrustDomain spiffeid.TrustDomain
	Provider    IdentityProvider
	// NoIdentity says why there is no snapshot yet; nil means that nothing is known.
	NoIdentity func() string
	Log        *slog.Logger

	// DialTimeout is how long a connection may take, until the gateway has answered.
	DialTimeout time.Duration
	// ProveAfter is the silence after which a gateway must answer a PING, within
	// ProveTimeout, before it gets a stream.
	ProveAfter, ProveTimeout time.Duration
	// PingAfter and PingTimeout are those of h2.Config.
	PingAfter, PingTimeout time.Duration
	// Idle is how long a connection may stay without a stream; zero means as long as the
	// gateway lets it.
	Idle time.Duration
	// Memory bounds the bytes that wait on all connections; nil means the default.
	Memory *h2.Memory
}

// Uplink has the connections to gateways. It is safe for concurrent use.
type Uplink struct {
	cfg     UplinkConfig
	ctx     context.Context //nolint:containedctx // that of all connections, which outlast the requests that make them
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex // guards the fields below, and those of gateways and sessions
	endpoints endpoints  // in the order in which they are tried, another one in each process
}

// NewUplink returns an uplink without a connection. Its connections have the values of ctx,
// and last until Close.
func NewUplink(ctx context.Context, cfg UplinkConfig) (*Uplink, error) {
	if len(cfg.Gateways) == 0 || cfg.Accept == nil || cfg.Provider == nil || cfg.Log == nil {
		return nil, errors.New("agent: a gateway, which gateways to accept, an identity provider and a log are required")
	}
	cfg.DialTimeout = cmp.Or(cfg.DialTimeout, DefaultDialTimeout)
	cfg.ProveAfter = cmp.Or(cfg.ProveAfter, DefaultProveAfter)
	cfg.ProveTimeout = cmp.Or(cfg.ProveTimeout, DefaultProveTimeout)
	cfg.PingAfter = cmp.Or(cfg.PingAfter, DefaultPingAfter)
	cfg.PingTimeout = cmp.Or(cfg.PingTimeout, DefaultPingTimeout)
	if cfg.NoIdentity == nil {
		cfg.NoIdentity = func() string { return "" }
	}
	if cfg.Memory == nil {
		cfg.Memory = h2.NewMemory(0)
	}
	u := &Uplink{cfg: cfg}
	u.ctx, u.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for _, i := range rand.Perm(len(cfg.Gateways)) { //nolint:gosec // G404: nobody gains by guessing the order
		u.endpoints = append(u.endpoints, &endpoint{uplink: u, address: cfg.Gateways[i]})
	}
	return u, nil
}

// jitter returns a random duration below a bound.
func jitter(below time.Duration) time.Duration {
	return time.Duration(rand.Int64N(int64(max(1, below)))) //nolint:gosec // G404: nobody gains by guessing it
}

// Close ends all connections.
func (u *Uplink) Close() {
	u.cancel()
	u.running.Wait()
}

// A stream is a stream with the gateway that it leads to.
type stream struct {
	*h2.Stream

	session *session
}

// errNoGateway is the error when no gateway can be reached.
var errNoGateway = errors.New("no gateway can be reached")

// open opens a stream at a gateway, not at avoid if there is another one. Its error means that
// nothing was sent.
func (u *Uplink) open(ctx context.Context, fields []h2.Field, end bool, avoid *endpoint) (*stream, error) {
	const most = 8 // connections that end in this moment
	var err error
	for range most {
		var s *session
		if s, err = u.session(ctx, avoid); err != nil {
			return nil, err
		}
		var opened *h2.Stream
		opened, err = s.conn.Open(ctx, fields, end)
		u.mu.Lock()
		s.opening--
		u.mu.Unlock()
		switch {
		case err == nil:
			return &stream{opened, s}, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		u.retire(s)
	}
	return nil, fmt.Errorf("%w: %w", errNoGateway, err)
}

// session returns a connection for one more stream, for which it counts as opening.
func (u *Uplink) session(ctx context.Context, avoid *endpoint) (*session, error) {
	const most = 64 // others may take the streams of a connection that was just made
	for range most {
		s, err := u.choose(ctx, avoid)
		if err != nil {
			return nil, err
		}
		if s == nil {
			continue
		}
		if s.prove(ctx) {
			return s, nil
		}
		u.mu.Lock()
		s.opening--
		s.retire()
		u.mu.Unlock()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, fmt.Errorf("%w: too many requests at once", errNoGateway)
}

// choose returns a connection that is there, and counts the stream that will be opened on it.
// If there is none, it waits until one was made, and returns nil.
func (u *Uplink) choose(ctx context.Context, avoid *endpoint) (*session, error) {
	snap := u.cfg.Provider.Snapshot()
	if snap == nil {
		return nil, u.noIdentity()
	}
	u.mu.Lock()
	if s := u.endpoints.find(avoid, snap); s != nil {
		s.opening++
		u.mu.Unlock()
		return s, nil
	}
	candidates := u.endpoints.candidates(avoid)
	if len(candidates) == 0 {
		defer u.mu.Unlock()
		if s := u.endpoints.find(avoid, nil); s != nil {
			s.opening++
			return s, nil
		}
		return nil, u.endpoints.unreachable(avoid)
	}
	u.mu.Unlock()
	if u.connect(ctx, candidates, snap) {
		return nil, nil //nolint:nilnil // the caller chooses again
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.endpoints.find(avoid, nil); s != nil { // better than none, although the SVID has changed
		s.opening++
		return s, nil
	}
	return nil, u.endpoints.unreachable(avoid)
}

// noIdentity returns the error of an agent that has no identity yet.
func (u *Uplink) noIdentity() error {
	if why := u.cfg.NoIdentity(); why != "" {
		return errors.New("the agent has no identity yet: " + why)
	}
	return errors.New("the agent has no identity yet")
}

// endpoints are the gateways in the order in which they are tried.
type endpoints []*endpoint

// find returns the first connection that can get another stream, and that was made with a
// snapshot; with any one if snap is nil. The caller holds mu.
func (all endpoints) find(avoid *endpoint, snap *identity.Snapshot) *session {
	for _, g := range all {
		if g == avoid && len(all) > 1 {
			continue
		}
		for _, s := range g.sessions {
			if (snap == nil || s.snapshot == snap) && s.mayOpen() {
				return s
			}
		}
	}
	return nil
}

// candidates returns the gateways to which a connection may be made now, first those with the
// fewest connections. The caller holds mu.
func (all endpoints) candidates(avoid *endpoint) []*endpoint {
	now := time.Now()
	var free []*endpoint
	for _, g := range all {
		if (g != avoid || len(all) == 1) && !now.Before(g.retryAt) {
			free = append(free, g)
		}
	}
	slices.SortStableFunc(free, func(a, b *endpoint) int { return cmp.Compare(len(a.sessions), len(b.sessions)) })
	return free
}

// unreachable returns the error when no gateway can be used, with the cause of each. The caller
// holds mu.
func (all endpoints) unreachable(avoid *endpoint) error {
	var causes []string
	for _, g := range all {
		if g.err != nil && (g != avoid || len(all) == 1) {
			causes = append(causes, g.address+": "+g.err.Error())
		}
	}
	return fmt.Errorf("%w (%s)", errNoGateway, strings.Join(causes, "; "))
}

// connect makes a connection to the first of some gateways that answers, and reports whether
// one has.
func (u *Uplink) connect(ctx context.Context, candidates []*endpoint, snap *identity.Snapshot) bool {
	results := make(chan error, len(candidates))
	waiting := 0
	next := func() {
		u.mu.Lock()
		a := candidates[0].begin(snap)
		u.mu.Unlock()
		candidates = candidates[1:]
		waiting++
		u.running.Go(func() {
			<-a.done
			results <- a.err
		})
	}
	next()
	timer := time.NewTimer(stagger)
	defer timer.Stop()
	for waiting > 0 {
		select {
		case err := <-results:
			waiting--
			if err == nil {
				return true
			}
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
		if len(candidates) > 0 {
			next()
			timer.Reset(stagger)
		}
	}
	return false
}

// retireOutdated makes connections that were made with another snapshot get no other stream,
// now that there is one with this snapshot. The caller holds mu.
func (all endpoints) retireOutdated(snap *identity.Snapshot) {
	for _, g := range all {
		for _, s := range g.sessions {
			if s.snapshot != snap {
				s.retire()
			}
		}
	}
}

// Follow follows the identity until ctx is done: another SVID gets another connection, and
// streams that are open go on.
func (u *Uplink) Follow(ctx context.Context, reread <-chan struct{}) {
	u.cfg.Provider.Follow(ctx, reread, func(ctx context.Context) {
		if snap := u.cfg.Provider.Snapshot(); snap != nil {
			u.renew(snap)
			_ = u.Connect(ctx) // if it fails, the next request tries again
		}
	})
}

// renew ends the connections to gateways that are not trusted any more. Those that were made
// with the same SVID stay.
func (u *Uplink) renew(snap *identity.Snapshot) {
	client := identity.ClientConfig{Snapshot: snap, Accept: u.cfg.Accept}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, g := range u.endpoints {
		for _, s := range g.sessions {
			if err := client.Verify(s.shown); err != nil {
				u.cfg.Log.Warn("a gateway is not trusted any more", slog.String("gateway", g.address), slog.Any("error", err))
				s.retired = true
				u.running.Go(s.conn.Close)
			} else if sameSVID(s.snapshot, snap) {
				s.snapshot = snap
			}
		}
	}
}

// sameSVID reports whether two snapshots have the same SVID.
func sameSVID(a, b *identity.Snapshot) bool {
	return slices.EqualFunc(a.Certificate().Certificate, b.Certificate().Certificate, slices.Equal[[]byte])
}

// Connect makes a connection if there is none for another stream, and returns why that is not
// possible.
func (u *Uplink) Connect(ctx context.Context) error {
	s, err := u.session(ctx, nil)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	s.opening--
	return nil
}

// CheckGateway returns an error for an address that is not HOST:PORT.
func CheckGateway(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("write HOST:PORT")
	}
	if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 {
		return errors.New("write HOST:PORT with a port from 1 to 65535")
	}
	return nil
}
