// Package agent gives clients that have no certificate the identity of the workload beside
// them. It has doors on loopback and on unix sockets, for HTTP, SOCKS5 and DNS, and sends
// everything to a gateway over HTTP/2 with mutual TLS. It has no policy, and decides nothing:
// the gateway's refusals come out at each door as the gateway has written them.
//
//	a, err := agent.New(ctx, agent.Config{Uplink: …, Doors: …, Log: …})
//	…
//	a.Serve(ctx)
//
// There is no way past a gateway: if none can be reached, every request is refused.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// Protocol says what a door speaks.
type Protocol uint8

// The protocols: CONNECT and plain requests of HTTP/1.1; SOCKS5; DNS over UDP and TCP.
const (
	HTTP Protocol = iota
	SOCKS5
	DNS
)

// String returns the name of the protocol.
func (p Protocol) String() string {
	switch p {
	case SOCKS5:
		return "socks5"
	case DNS:
		return "dns"
	case HTTP:
	}
	return "http"
}

// Door is a place at which local clients ask.
type Door struct {
	Protocol Protocol
	// Address is HOST:PORT with an IP address, or unix: and a path, which is not for DNS.
	Address string
	// SocketMode is the mode of a unix socket; zero means listen.DefaultSocketMode.
	SocketMode fs.FileMode
}

// DefaultConnections is how many connections of clients may be open.
const DefaultConnections = 16384

// Config configures an [Agent]. Uplink, Doors and Log are required.
type Config struct {
	Uplink UplinkConfig
	Doors  []Door
	Log    *slog.Logger

	// Users may use the unix sockets: their user ids. Whoever reaches a door at an IP
	// address may use it.
	Users []uint32
	// Connections bounds the connections of clients; zero means DefaultConnections.
	Connections int
	// DrainTimeout is how long tunnels may go on after the context of Serve is done.
	DrainTimeout time.Duration
	// HeadTimeout is that of front.Config.
	HeadTimeout time.Duration

	// TraceParent is the trace of requests that name none (W3C Trace Context); "" means none.
	TraceParent string
	// Attribute returns what is known of the process at the other end of a connection, as a
	// structured dictionary (RFC 8941); nil means nothing.
	Attribute func(net.Conn) string
}

// Agent serves the doors. It is safe for concurrent use.
type Agent struct {
	cfg       Config
	uplink    *Uplink
	forwarder *forward.Forwarder
	h1        *front.H1
	socks5    *front.SOCKS5
	listeners []door
	datagrams []*listen.UDP
	queries   chan struct{} // has one element for each datagram that is being answered
	draining  atomic.Bool
}

// door is an open door for connections.
type door struct {
	*listen.Listener

	protocol Protocol
}

// New opens the doors. Nothing is served before Serve, and after an error nothing is open.
func New(ctx context.Context, cfg Config) (*Agent, error) {
	if len(cfg.Doors) == 0 || cfg.Log == nil {
		return nil, errors.New("agent: a door and a log are required")
	}
	cfg.Uplink.Log = cfg.Log
	uplink, err := NewUplink(ctx, cfg.Uplink)
	if err != nil {
		return nil, err
	}
	if cfg.Connections <= 0 {
		cfg.Connections = DefaultConnections
	}
	fronts := front.Config{HeadTimeout: cfg.HeadTimeout}
	a := &Agent{
		cfg: cfg, uplink: uplink, h1: front.NewH1(fronts), socks5: front.NewSOCKS5(fronts), queries: make(chan struct{}, maxDatagrams),
	}
	a.forwarder, err = forward.New(forward.Config{RoundTripper: &roundTripper{uplink}, NoVia: true, PassForwarded: true, Idle: plainIdle, Max: forever})
	if err == nil {
		err = a.open(ctx)
	}
	if err != nil {
		a.closeDoors()
		uplink.Close()
		return nil, err
	}
	return a, nil
}

// open opens the doors.
func (a *Agent) open(ctx context.Context) error {
	n := a.cfg.Connections
	slots := limit.NewSlots(limit.Shares{Unidentified: n, PerSource: n, Identified: n, PerIdentity: n, PerLocal: n})
	sources := limit.NewSources(limit.Config{Connections: n})
	for i, d := range a.cfg.Doors {
		cfg := listen.Config{
			Name: d.Protocol.String() + "-" + strconv.Itoa(i+1), Address: d.Address, SocketMode: d.SocketMode,
			Fixed: a.identity, Slots: slots, Sources: sources, Panicked: a.panicked, Log: a.cfg.Log,
		}
		l, err := listen.Listen(ctx, cfg)
		if err != nil {
			return err
		}
		a.listeners = append(a.listeners, door{l, d.Protocol})
		if d.Protocol == DNS {
			if err := a.openDatagrams(ctx, l, cfg); err != nil {
				return err
			}
		}
	}
	return nil
}

// openDatagrams opens the socket for datagrams at the address of a door for DNS over TCP.
func (a *Agent) openDatagrams(ctx context.Context, l *listen.Listener, cfg listen.Config) error {
	tcp, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return fmt.Errorf("listener %s: DNS needs an IP address, for its datagrams", cfg.Name)
	}
	u, err := listen.OpenUDP(ctx, listen.UDPConfig{Name: cfg.Name, Address: tcp.AddrPort(), Fixed: cfg.Fixed})
	if err == nil {
		a.datagrams = append(a.datagrams, u)
	}
	return err
}

// identity returns the identity of the workload, zero as long as there is none. Only the
// gateway's decision depends on it.
func (a *Agent) identity() spiffeid.ID {
	if snap := a.cfg.Uplink.Provider.Snapshot(); snap != nil {
		return snap.ID()
	}
	return spiffeid.ID{}
}

// panicked logs a panic that ended a connection or a query.
func (a *Agent) panicked(ctx context.Context, cause any, stack []byte) {
	a.cfg.Log.LogAttrs(ctx, slog.LevelError, "panic in a connection", slog.Any("cause", cause), slog.String("stack", string(stack)))
}

// Listening is an address at which the agent listens.
type Listening struct {
	Name     string // such as http-1
	Protocol Protocol
	Addr     net.Addr
}

// Listening returns the addresses of the doors, in the order of the configuration.
func (a *Agent) Listening() []Listening {
	all := make([]Listening, 0, len(a.listeners))
	for _, d := range a.listeners {
		all = append(all, Listening{d.Name(), d.protocol, d.Addr()})
	}
	return all
}

// Connect makes a connection to a gateway if there is none, and returns why that is not
// possible.
func (a *Agent) Connect(ctx context.Context) error { return a.uplink.Connect(ctx) }

// Serve serves until ctx is done. Then it refuses new requests, lets tunnels go on for
// DrainTimeout, and ends what is left. It reads the identity at once when it receives from
// reread, which may be nil.
func (a *Agent) Serve(ctx context.Context, reread <-chan struct{}) {
	lasting, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var serving, following sync.WaitGroup
	followed, unfollow := context.WithCancel(lasting)
	defer unfollow()
	following.Go(func() { a.uplink.Follow(followed, reread) })
	for _, d := range a.listeners {
		serving.Go(func() {
			if err := d.Serve(lasting, a.handler(d.protocol)); err != nil && lasting.Err() == nil {
				a.cfg.Log.LogAttrs(ctx, slog.LevelError, "a door has closed", slog.String("listener", d.Name()), slog.Any("error", err))
			}
		})
	}
	for _, u := range a.datagrams {
		serving.Go(func() { _ = u.Serve(func(socket *net.UDPConn) { dnsDoor{a}.serveDatagrams(lasting, socket) }) }) // an error of its close
	}
	<-ctx.Done()
	a.draining.Store(true)
	a.h1.Drain()
	a.socks5.Drain()
	a.closeDoors()
	ended := make(chan struct{})
	go func() {
		serving.Wait()
		close(ended)
	}()
	timer := time.NewTimer(a.cfg.DrainTimeout)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		a.h1.Stop()
		a.socks5.Stop()
		cut()
		<-ended
	}
	unfollow()
	following.Wait()
	a.uplink.Close()
}

// Close closes what New has opened, if Serve is not called.
func (a *Agent) Close() {
	a.closeDoors()
	a.uplink.Close()
}

func (a *Agent) closeDoors() {
	for _, d := range a.listeners {
		_ = d.Close()
	}
	for _, u := range a.datagrams {
		_ = u.Close()
	}
}

// handler returns the function that serves the connections of a door.
func (a *Agent) handler(p Protocol) func(context.Context, *listen.Conn) {
	return func(ctx context.Context, conn *listen.Conn) {
		c := &client{agent: a, lasting: ctx, conn: conn, why: a.notAllowed(conn)}
		wire := front.Conn{Conn: conn.Conn, Cut: conn.Cut, Abort: conn.Abort, Panicked: func(cause any, stack []byte) { a.panicked(ctx, cause, stack) }}
		switch p {
		case HTTP:
			conn.Continue = a.h1.Serve(ctx, wire, c)
		case SOCKS5:
			conn.Continue = a.socks5.Serve(ctx, wire, c)
		case DNS:
			dnsDoor{a}.serve(ctx, conn)
		}
	}
}

// notAllowed returns the refusal for a user who may not use a unix socket, or nil.
func (a *Agent) notAllowed(conn *listen.Conn) *refusal.Response {
	uid, isUnix := listen.UserOf(conn)
	if !isUnix || uid >= 0 && slices.Contains(a.cfg.Users, uint32(uid)) { //nolint:gosec // G115: a user id has 32 bits
		return nil
	}
	text := fmt.Sprintf("the user %d may not use this agent", uid)
	if uid < 0 {
		text = "the system does not say which user is at the other end of the socket"
	}
	resp := refusal.Plain(server, http.StatusForbidden, "http_request_denied", "user-not-allowed", text)
	return &resp
}
