// Package tunnel relays bytes both ways between two connections.
//
//	client := tls.Server(tunnel.Wrap(accepted), config)
//	… handshake, CONNECT, dial, answer …
//	t := tunnel.New(client, upstream, tunnel.Config{})
//	register(t.Close)
//	result := t.Run(early)
//
// A tunnel sends the early bytes first, forwards a half-close and lets the other
// direction drain, counts the bytes of both directions, and ends by itself after an
// idle time and a maximum duration. Close ends it earlier, with a reason. While no
// byte moves it holds no copy buffer, if its sockets can be waited for; see Wrap.
//
// It does not interpret the bytes, does not dial, retry or log, and knows neither
// destinations nor identities.
package tunnel

import (
	"cmp"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The defaults of Config.
const (
	DefaultIdle          = 15 * time.Minute
	DefaultMax           = 12 * time.Hour
	DefaultProgressEvery = time.Minute
	DefaultProgressBytes = 64 << 20
)

// A Config holds the bounds of a tunnel. The zero value uses the defaults.
type Config struct {
	// Idle is how long the tunnel may last without a byte in either direction,
	// also while one direction has ended and the other drains. 0 means
	// DefaultIdle.
	Idle time.Duration
	// Max is how long the tunnel may last. 0 means DefaultMax.
	Max time.Duration

	// Spend, if not nil, is called before every write to the upstream with the
	// number of bytes. If it returns false the tunnel ends as Limit, and the bytes
	// are not written.
	Spend func(n int) bool

	// Progress, if not nil, is called from time to time with the bytes relayed so
	// far, if there are more than at the last call. Calls never overlap and never
	// come after Run has returned. The relay may wait for a call to return.
	Progress func(up, down int64)
	// ProgressEvery is the time between calls of Progress. 0 means
	// DefaultProgressEvery.
	ProgressEvery time.Duration
	// ProgressBytes is the number of bytes in both directions together after which
	// Progress is called earlier. 0 means DefaultProgressBytes.
	ProgressBytes int64

	// Pipes lends the pipes for bulk between plain sockets. Nil means the pipes that
	// all tunnels share.
	Pipes *Pipes
}

// A Result says how a tunnel ended.
type Result struct {
	Up       int64         // bytes written to the upstream, early ones included
	Down     int64         // bytes written to the client
	Duration time.Duration // from the call of Run to its end
	Reason   Reason        // why the tunnel ended; never None
	Err      error         // the error if Reason is Error, else nil
}

// A Tunnel relays between a client and an upstream, once.
type Tunnel struct {
	cfg              Config
	gate             *Gate // nil if there is none, and once it has begun to rule
	client, upstream *side
	up, down         atomic.Int64

	relayed  sync.WaitGroup // the goroutine that relays to the client; for a stream, the direction to the upstream
	panicked any            // the first panic of that goroutine or direction; guarded by ending

	paid    int  // for a stream: bytes that Config.Spend was called for and that were not written yet
	upEnded bool // for a stream: the direction to the upstream has ended

	start time.Time
	last  atomic.Int64 // when a byte last moved, in nanoseconds since start

	ending   sync.Mutex    // guards the next seven fields
	hurried  bool          // Hurry was called while the gate had not ruled yet
	gateWait time.Duration // Gate.Wait while the gate rules over the first bytes; zero before, and negative after that
	reason   Reason        // why both directions were cut; None if they were not
	refusal  *Gate         // the gate that has refused the first bytes; nil if none has
	err      error         // the error if reason is Error
	first    Reason        // the side that finished first, Client or Upstream
	broken   Reason        // the side that failed, Client or Upstream, if reason is Error

	// One timer serves the idle time, the maximum duration and Progress.
	reporting   sync.Mutex // locked while Progress runs; guards the fields below
	timer       *time.Timer
	stopped     bool          // Run is about to return
	reported    int64         // up + down at the last report
	reportAt    time.Duration // when the next report is due, since start
	reportBytes atomic.Int64  // the value of up + down at which it is due earlier; read without the lock
}

// New returns a tunnel between two connections, which the tunnel owns from now on. A
// tunnel holds no buffer while it is idle if client is a *Conn or a *tls.Conn on a
// *Conn or a [Stream], and upstream is one of these, a *net.TCPConn or a *net.UnixConn. Any other
// connection works, too. If one has no CloseWrite method, the end of one direction ends
// both.
func New(client, upstream net.Conn, cfg Config) *Tunnel {
	t := new(Tunnel)
	t.Init(client, upstream, cfg)
	return t
}

// Init does what New does, for a zero Tunnel that is a part of another value.
func (t *Tunnel) Init(client, upstream net.Conn, cfg Config) {
	cfg.Idle = cmp.Or(cfg.Idle, DefaultIdle)
	cfg.Max = cmp.Or(cfg.Max, DefaultMax)
	cfg.ProgressEvery = cmp.Or(cfg.ProgressEvery, DefaultProgressEvery)
	cfg.ProgressBytes = cmp.Or(cfg.ProgressBytes, DefaultProgressBytes)
	t.cfg, t.client, t.upstream = cfg, newSide(Client, client), newSide(Upstream, upstream)
	t.reportBytes.Store(cfg.ProgressBytes)
}

// Guard sets the gate that rules over the client's first bytes; nil means none. A
// tunnel that the gate refuses ends as Denied. Guard must not be called after Run, nor
// concurrently with it.
func (t *Tunnel) Guard(g *Gate) { t.gate = g }

// Run relays until both directions have ended or the tunnel is closed, and
// closes both connections. The early bytes, which the client sent before Run,
// go to the upstream first. Run removes the deadlines of both connections. It must be
// called once, even if Close was called before; then it relays nothing. It starts one
// goroutine, which has ended when Run returns; if the client is a [Stream], that goroutine
// runs only while bytes of the client wait.
func (t *Tunnel) Run(early []byte) Result {
	t.start = time.Now()
	if t.begin() {
		t.startTimer()
		if t.client.stream != nil {
			t.startStream()
			t.relayDown()
		} else {
			t.relayed.Go(t.relayDown)
			if t.sendEarly(early) {
				t.relay(t.client, t.upstream, &t.up)
			}
		}
		t.relayed.Wait()
		t.stopTimer()
		if cause := t.contained(); cause != nil { // panic in the caller's goroutine, where the caller can recover
			t.end()
			panic(cause)
		}
		if t.refusal != nil {
			t.sayFarewell()
		}
	}
	return t.end()
}

// relayDown relays the bytes of the upstream to the client.
func (t *Tunnel) relayDown() {
	defer func() { t.contain(recover()) }()
	if socket := t.upstream.socket(); t.client.stream != nil && socket != nil {
		t.pull(socket)
		return
	}
	t.relay(t.upstream, t.client, &t.down)
}

// contained returns what contain has kept.
func (t *Tunnel) contained() any {
	t.ending.Lock()
	defer t.ending.Unlock()
	return t.panicked
}

// contain ends the tunnel if cause, a panic, is not nil. Run panics with it.
func (t *Tunnel) contain(cause any) {
	if cause == nil {
		return
	}
	t.ending.Lock()
	if t.panicked == nil {
		t.panicked = cause
	}
	t.ending.Unlock()
	t.cut(Error, nil)
}

// Close ends the tunnel. Run then returns soon, even if the peers do not read. The
// Result has the reason of the first call; Close does nothing if the tunnel is ending
// already. It may be called from any goroutine at any time, also before and after Run.
// The reason None counts as Error.
func (t *Tunnel) Close(r Reason) { t.cut(cmp.Or(r, Error), nil) }

// Counts returns the bytes relayed so far to the upstream and to the client. It may be
// called at any time.
func (t *Tunnel) Counts() (up, down int64) { return t.up.Load(), t.down.Load() }

// begin removes the deadlines of the connections. It returns false if Close was called.
func (t *Tunnel) begin() bool {
	t.ending.Lock()
	defer t.ending.Unlock()
	if t.reason != None {
		return false
	}
	// An error means that the connection is closed; the next read returns it as well.
	_ = t.client.begin()
	_ = t.upstream.begin()
	return true
}

// cut ends both directions. Only the first reason counts, so that an error which cut
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

// end closes the connections after both directions have ended.
func (t *Tunnel) end() Result {
	t.ending.Lock()
	t.reason = cmp.Or(t.reason, t.first) // from here on cut does nothing
	t.ending.Unlock()
	t.client.close(t.reason != Error)
	if t.client.stream != nil && t.broken == Client {
		t.upstream.reset()
	} else {
		t.upstream.close(t.reason != Error)
	}
	up, down := t.Counts()
	return Result{Up: up, Down: down, Duration: time.Since(t.start), Reason: t.reason, Err: t.err}
}
