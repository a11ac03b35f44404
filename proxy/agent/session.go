package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// session is a connection to a gateway.
type session struct {
	endpoint *endpoint
	conn     *h2.Conn

	// The fields below are guarded by the mu of the uplink.

	snapshot *identity.Snapshot // what the connection was made with
	shown    []*x509.Certificate
	retired  bool   // it gets no other stream
	ended    bool   // Run has returned
	opening  int    // number of streams that are about to be opened
	proving  *proof // nil while no PING is waited for
}

// maxStreams is how many streams a connection gets; beyond them another one is made.
const maxStreams = 200

// mayOpen reports whether the connection can get another stream. The caller holds the mu of
// the uplink.
func (s *session) mayOpen() bool {
	state := s.conn.State()
	return !s.retired && state.Takes && state.Open+s.opening < min(maxStreams, state.Most)
}

// dial makes a connection to a gateway: TCP, TLS with the gateway's SPIFFE ID, and the
// SETTINGS of its HTTP/2.
func (g *endpoint) dial(ctx context.Context, snap *identity.Snapshot) (*session, error) {
	u := g.uplink
	if expired := snap.NotAfter(); time.Now().After(expired) {
		return nil, fmt.Errorf("the SVID of this agent expired %s, and there is no other one", expired.UTC().Format(time.RFC3339))
	}
	client := identity.ClientConfig{Snapshot: snap, Accept: u.cfg.Accept, Protocols: []string{"h2"}}
	cfg, err := client.TLS()
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Control: limitUnacknowledged}
	raw, err := dialer.DialContext(ctx, "tcp", g.address)
	if err != nil {
		return nil, unwrapOp(err)
	}
	secure := tls.Client(tunnel.Wrap(raw), cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS: %w", silentFor(ctx, u.cfg.DialTimeout, err))
	}
	link, err := tunnel.NewLink(secure)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	s := &session{endpoint: g, snapshot: snap, shown: secure.ConnectionState().PeerCertificates}
	s.conn = h2.New(h2.Config{
		Client: true, Memory: u.cfg.Memory, Idle: u.cfg.Idle, PingAfter: u.cfg.PingAfter, PingTimeout: u.cfg.PingTimeout,
	}, link)
	began := time.Now()
	u.running.Go(func() {
		err := s.conn.Run(u.ctx, nil)
		s.runEnded(time.Since(began), err)
	})
	if err := s.conn.AwaitPeer(ctx); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("HTTP/2: %w", silentFor(ctx, u.cfg.DialTimeout, err))
	}
	return s, nil
}

// silentFor replaces the error of a gateway that has not answered in time.
func silentFor(ctx context.Context, limit time.Duration, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %v", limit)
	}
	return err
}

// unwrapOp shortens the error of a dial, which repeats the address.
func unwrapOp(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err
	}
	return err
}

// A proof is a PING that requests wait for.
type proof struct {
	done     chan struct{} // closed when answered is set
	answered bool
}

// prove finds out whether the gateway still answers, if it has been silent: after a pause of
// this process or of the machine the connection may be gone. The caller does not hold mu.
func (s *session) prove(ctx context.Context) bool {
	u := s.endpoint.uplink
	if s.conn.State().Silence < u.cfg.ProveAfter {
		return true
	}
	u.mu.Lock()
	p := s.proving
	if p == nil {
		p = &proof{done: make(chan struct{})}
		s.proving = p
		u.running.Go(func() { s.ping(p) })
	}
	u.mu.Unlock()
	select {
	case <-p.done:
		return p.answered
	case <-ctx.Done():
		return false
	}
}

// ping sends a PING and waits for its answer, for a moment.
func (s *session) ping(p *proof) {
	u := s.endpoint.uplink
	ctx, cancel := context.WithTimeout(u.ctx, u.cfg.ProveTimeout)
	defer cancel()
	p.answered = s.conn.Ping(ctx) == nil
	u.mu.Lock()
	defer u.mu.Unlock()
	s.proving = nil
	close(p.done)
}

// retire makes a connection get no other stream. It ends after its last one.
func (u *Uplink) retire(s *session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s.retire()
}

// retire does what Uplink.retire does. The caller holds the mu of the uplink.
func (s *session) retire() {
	if s.retired {
		return
	}
	s.retired = true
	s.endpoint.uplink.running.Go(s.conn.Leave) // it may wait for a gateway that does not read
}

// attempt is a dial that requests wait for.
type attempt struct {
	done    chan struct{}
	session *session
	err     error
}

// endpoint is one address at which gateways answer. Its fields but for the first two are
// guarded by the mu of the uplink.
type endpoint struct {
	uplink   *Uplink
	address  string
	sessions []*session
	dialing  *attempt // nil while no connection is being made

	failures int       // number of failures since the last success
	retryAt  time.Time // when the next connection may be made
	err      error     // the last failure; nil after a success
}

// limits of the pause after a failure.
const (
	leastPause = 100 * time.Millisecond
	mostPause  = 5 * time.Second
)

// begin returns the dial to a gateway that is under way, or begins one. The caller holds mu.
func (g *endpoint) begin(snap *identity.Snapshot) *attempt {
	u := g.uplink
	if g.dialing != nil {
		return g.dialing
	}
	a := &attempt{done: make(chan struct{})}
	g.dialing = a
	u.running.Go(func() {
		ctx, cancel := context.WithTimeout(u.ctx, u.cfg.DialTimeout)
		defer cancel()
		a.session, a.err = g.dial(ctx, snap)
		u.mu.Lock()
		defer u.mu.Unlock()
		defer close(a.done)
		g.dialing = nil
		if a.err == nil && a.session.ended {
			a.err = errEndsAtOnce
		}
		if a.err != nil {
			g.failed(a.err)
			return
		}
		g.failures, g.err, g.retryAt = 0, nil, time.Time{}
		g.sessions = append(g.sessions, a.session)
		u.endpoints.retireOutdated(snap)
	})
	return a
}

// failed notes that a gateway cannot be used. The caller holds mu.
func (g *endpoint) failed(err error) {
	pause := min(mostPause, leastPause<<min(g.failures, 10))
	g.failures++
	g.err, g.retryAt = err, time.Now().Add(pause/2+jitter(pause/2))
	g.uplink.cfg.Log.Warn("a gateway cannot be used", slog.String("gateway", g.address), slog.Any("error", err))
}

// runEnded removes a connection that has ended. One that ends soon after it was made is a
// failure of its gateway, which would be dialled for each request otherwise.
func (s *session) runEnded(lasted time.Duration, err error) {
	u := s.endpoint.uplink
	u.mu.Lock()
	defer u.mu.Unlock()
	s.ended = true
	g := s.endpoint
	i := slices.Index(g.sessions, s)
	if i < 0 { // it has not been given to anybody
		return
	}
	g.sessions = slices.Delete(g.sessions, i, i+1)
	if !s.retired && lasted < time.Second && u.ctx.Err() == nil {
		g.failed(fmt.Errorf("%w: %w", errEndsAtOnce, err))
	}
}

var errEndsAtOnce = errors.New("it ends the connection at once")
