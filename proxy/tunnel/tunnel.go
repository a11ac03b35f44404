// Package tunnel relays bytes both ways between two connections.
//
//	client := tls.Server(tunnel.Wrap(accepted), config)
//	… handshake, CONNECT, dial, answer …
//	t := tunnel.New(client, upstream, tunnel.Config{})
//	register(t.Close)
//	result := t.Run(early)
//
// A tunnel sends the early bytes first, passes a half-close on and lets the
// other direction drain, counts both directions, and ends by itself after an
// idle time and a maximum duration. Whoever no longer wants it calls Close
// with the reason. While nothing moves it holds no copy buffer, if its sockets
// can be waited for; see Wrap.
//
// It does not look into the bytes, does not dial, retry or log, and knows
// neither destinations nor identities.
package tunnel

import (
	"cmp"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// What a zero field of Config means.
const (
	DefaultIdle          = 15 * time.Minute
	DefaultMax           = 12 * time.Hour
	DefaultProgressEvery = time.Minute
	DefaultProgressBytes = 64 << 20
)

// A Config bounds a tunnel. Its zero value is good.
type Config struct {
	// Idle is how long no byte may move either way, also while one
	// direction has ended and the other drains. 0 means DefaultIdle.
	Idle time.Duration
	// Max is how long the tunnel may last at all. 0 means DefaultMax.
	Max time.Duration

	// Spend, if not nil, is asked before every write to the upstream, with the
	// number of bytes. False ends the tunnel as Limit, without that write.
	Spend func(n int) bool

	// Progress, if not nil, is called now and then with the bytes relayed
	// so far, if there are more than at the last call. Calls never overlap
	// and never come after Run has returned. The relay may wait for it.
	Progress func(up, down int64)
	// ProgressEvery is the time between calls of Progress. 0 means
	// DefaultProgressEvery.
	ProgressEvery time.Duration
	// ProgressBytes is the number of bytes, both ways together, after which
	// Progress is called before its time. 0 means DefaultProgressBytes.
	ProgressBytes int64

	// Pipes are what bulk between bare sockets goes through; nil means those that
	// all tunnels share.
	Pipes *Pipes
}

// A Result is what became of a tunnel.
type Result struct {
	Up       int64         // bytes written to the upstream, early ones included
	Down     int64         // bytes written to the client
	Duration time.Duration // from the call of Run to its end
	Reason   Reason        // never None
	Err      error         // what failed, if Reason is Error; else nil
}

// A Tunnel relays between a client and an upstream, once.
type Tunnel struct {
	cfg              Config
	gate             *Gate // nil: none, or it has let the first bytes pass
	client, upstream *side
	up, down         atomic.Int64

	relayed  sync.WaitGroup // the way to the client
	panicked any            // what it panicked with; read once it is over

	start time.Time
	last  atomic.Int64 // when a byte last moved, in nanoseconds since start

	ending  sync.Mutex
	hurried bool          // Hurry was called while it had something to do
	waits   time.Duration // Gate.Wait of the gate that rules over the first bytes; zero before it does, negative once it has passed them
	reason  Reason        // why both ways were cut; None if they were not
	err     error
	first   Reason // who finished first, Client or Upstream

	// One timer serves the idle time, the maximum duration and Progress.
	reporting   sync.Mutex // held while Progress runs; guards what follows
	timer       *time.Timer
	over        bool
	reported    int64         // up + down at the last report
	reportAt    time.Duration // when the next is due, since start
	reportBytes atomic.Int64  // or at which up + down; read without the lock
}

// New returns a tunnel between two connections, which belong to it from now
// on. For a tunnel that holds no buffer while idle, client is a *Conn or a
// *tls.Conn on one, and upstream a *net.TCPConn, *net.UnixConn or the same as
// client. Any other connection works; where it has no CloseWrite method, the
// end of one direction ends both.
func New(client, upstream net.Conn, cfg Config) *Tunnel {
	cfg.Idle = cmp.Or(cfg.Idle, DefaultIdle)
	cfg.Max = cmp.Or(cfg.Max, DefaultMax)
	cfg.ProgressEvery = cmp.Or(cfg.ProgressEvery, DefaultProgressEvery)
	cfg.ProgressBytes = cmp.Or(cfg.ProgressBytes, DefaultProgressBytes)
	t := &Tunnel{cfg: cfg, client: newSide(Client, client), upstream: newSide(Upstream, upstream)}
	t.reportBytes.Store(cfg.ProgressBytes)
	return t
}

// Guard sets the gate that rules over the client's first bytes; nil is none. A
// tunnel that it refuses ends as Denied. It must be called before Run, if at
// all, and not concurrently with it.
func (t *Tunnel) Guard(g *Gate) { t.gate = g }

// Run relays until both directions have ended or the tunnel is closed, and
// closes both connections. The early bytes, which the client sent before Run,
// go to the upstream first. Deadlines set on the connections before are
// lifted. Run must be called once, also if Close was called before: it then
// relays nothing. It uses one goroutine more, which has ended when it returns.
func (t *Tunnel) Run(early []byte) Result {
	t.start = time.Now()
	if t.begin() {
		t.startTimer()
		t.relayed.Go(t.relayDown)
		if t.sendEarly(early) {
			t.relay(t.client, t.upstream, &t.up)
		}
		t.relayed.Wait()
		t.stopTimer()
		if t.panicked != nil { // in the goroutine that the caller protects
			t.end()
			panic(t.panicked)
		}
	}
	return t.end()
}

// relayDown relays what the upstream sends.
func (t *Tunnel) relayDown() {
	defer func() {
		if t.panicked = recover(); t.panicked != nil {
			t.cut(Error, nil)
		}
	}()
	t.relay(t.upstream, t.client, &t.down)
}

// Close ends the tunnel: Run returns soon, also if the peers do not read. The
// first reason given is the one in the Result; Close on a tunnel that is
// ending does nothing. It may be called from any goroutine at any time, before
// Run and after it too. The reason should not be None, which counts as Error.
func (t *Tunnel) Close(r Reason) { t.cut(cmp.Or(r, Error), nil) }

// Counts returns the bytes relayed so far: to the upstream, to the client. It
// may be called at any time.
func (t *Tunnel) Counts() (up, down int64) { return t.up.Load(), t.down.Load() }

// begin prepares the connections, unless Close was called.
func (t *Tunnel) begin() bool {
	t.ending.Lock()
	defer t.ending.Unlock()
	if t.reason != None {
		return false
	}
	// An error here is that of a closed connection, which reading repeats.
	_ = t.client.begin()
	_ = t.upstream.begin()
	return true
}

// cut ends both directions. The first reason wins, so an error that a cut
// itself causes is never taken for the cause of the end.
func (t *Tunnel) cut(r Reason, err error) {
	t.ending.Lock()
	defer t.ending.Unlock()
	if t.reason != None {
		return
	}
	t.reason, t.err = r, err
	t.client.unblock()
	t.upstream.unblock()
}

// end closes the connections when nobody uses them any more.
func (t *Tunnel) end() Result {
	t.ending.Lock()
	t.reason = cmp.Or(t.reason, t.first) // from here on, cut does nothing
	t.ending.Unlock()
	t.client.close(t.reason != Error)
	t.upstream.close(t.reason != Error)
	up, down := t.Counts()
	return Result{Up: up, Down: down, Duration: time.Since(t.start), Reason: t.reason, Err: t.err}
}
