package forward

import (
	"bytes"
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dial"
)

// The bounds of the pools.
const (
	maxPools      = 1024
	idlePerPool   = 16
	idleTimeout   = 30 * time.Second
	continueAfter = time.Second // RFC 9110 section 10.1.1: an origin need not send 100
	maxAnswerHead = 64 << 10    // bytes; an exchange may hold it three times, for as long as a client reads slowly
	maxInterims   = 32          // answers with a status of 1xx before the final one
)

// poolKey is who may use a connection for another request. A rule says which
// addresses its destination may have, and its name changes when it does.
type poolKey struct {
	holder  allowlist.Holder
	dest    allowlist.Destination
	rule    string
	observe bool
}

func keyOf(d *allowlist.Decision) poolKey {
	key := poolKey{holder: d.Holder(), dest: d.Dest, observe: d.Verdict == allowlist.Observe}
	if d.Rule != nil {
		key.rule = d.Rule.Name()
	}
	return key
}

// lane is a way to an origin: a transport that has one connection at most. An
// exchange takes a lane and is then the only one to use it. Who may be the next
// is decided when that exchange has ended and everything about it is known.
type lane struct {
	key       poolKey
	closings  uint64 // pools.closings when it was made
	transport *http.Transport
	conn      *upstream // the last connection that a request went out on; nil before the first
	own       bool      // it belongs to one connection of a client, for good
}

func (l *lane) close() { l.transport.CloseIdleConnections() }

// pools are the lanes that no exchange has: those that any exchange of their key
// may take, and those that belong to one connection of a client. The least
// recently used pool goes first.
type pools struct {
	response time.Duration
	scarce   func() bool // nil is never

	mu       sync.Mutex
	byKey    map[poolKey]*pool
	logins   map[*Logins]struct{} // those that have lanes
	uses     uint64
	closings uint64 // calls of closeIdle
}

type pool struct {
	idle []*lane // the one used last is the last
	used uint64  // the number of the last use of any pool
}

// take returns a lane for an exchange: that of its client connection, if one
// belongs to it; otherwise one of the pool, unless the request has credentials
// for a connection, or may make a tunnel of it: these go out on one that nobody
// else has used.
func (p *pools) take(ex *Exchange) *lane {
	own := tiesRequest(ex.Head)
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := ex.Logins.take(&ex.Decision); l != nil {
		return l
	}
	key := keyOf(&ex.Decision)
	if found := p.byKey[key]; found != nil && !own && ex.Upgrade == "" {
		p.use(found)
		for len(found.idle) > 0 {
			n := len(found.idle) - 1
			l := found.idle[n]
			found.idle = slices.Delete(found.idle, n, n+1)
			if !l.conn.isClosed() && ex.Decision.CheckWay(l.conn.dialed.Way) == allowlist.NoReason {
				return l
			}
			l.close()
		}
	}
	return &lane{key: key, closings: p.closings, transport: p.newTransport(), own: own}
}

// give takes a lane back from an exchange that has ended. It is closed if
// that did not end well, if another state has come into force meanwhile, or if
// there is no descriptor to spare for it.
func (p *pools) give(l *lane, logins *Logins, well bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !well || l.conn == nil || l.closings != p.closings:
		l.close()
	case l.own:
		p.giveTo(logins, l)
	case p.scarce != nil && p.scarce():
		l.close()
	default:
		p.giveToAll(l)
	}
}

// giveToAll puts a lane into the pool of its key.
func (p *pools) giveToAll(l *lane) {
	found := p.byKey[l.key]
	if found == nil {
		if p.byKey == nil {
			p.byKey = make(map[poolKey]*pool)
		}
		p.makeRoom()
		found = new(pool)
		p.byKey[l.key] = found
	}
	p.use(found)
	found.idle = slices.DeleteFunc(found.idle, func(l *lane) bool { return l.conn.isClosed() })
	if len(found.idle) == idlePerPool {
		l.close()
		return
	}
	found.idle = append(found.idle, l)
}

func (p *pools) use(found *pool) {
	p.uses++
	found.used = p.uses
}

// makeRoom removes the least recently used pool if there are as many as may be.
func (p *pools) makeRoom() {
	if len(p.byKey) < maxPools {
		return
	}
	var last poolKey
	least := uint64(math.MaxUint64)
	for key, pool := range p.byKey {
		if pool.used < least {
			last, least = key, pool.used
		}
	}
	closeAll(p.byKey[last].idle)
	delete(p.byKey, last)
}

func closeAll(lanes []*lane) {
	for _, l := range lanes {
		l.close()
	}
}

func (p *pools) newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            connect,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        idleTimeout,
		ResponseHeaderTimeout:  p.response,
		ExpectContinueTimeout:  continueAfter,
		MaxResponseHeaderBytes: maxAnswerHead,
	}
}

// closeIdle closes all that carries no request. What carries one is closed when
// that has ended.
func (p *pools) closeIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closings++
	for _, pool := range p.byKey {
		closeAll(pool.idle)
	}
	clear(p.byKey)
	for logins := range p.logins {
		p.closeOf(logins)
	}
}

// connect dials for a transport. The destination is that of the decision of the
// request that the transport dials for, and not its own reading of the request.
func connect(ctx context.Context, _, _ string) (net.Conn, error) {
	r := runOf(ctx)
	if r == nil {
		return nil, errors.New("forward: a connection for no request")
	}
	conn, err := r.dial(ctx)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (r *run) dial(ctx context.Context) (conn *upstream, err error) {
	defer r.panics.contain(&err)
	res, err := r.cfg.Dial(ctx, &r.Decision)
	if err != nil {
		return nil, &dialError{err: err, result: res}
	}
	return newUpstream(res), nil
}

// dialError is a dial that failed, with what is known of it.
type dialError struct {
	err    error
	result dial.Result
}

// Error implements error.
func (e *dialError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *dialError) Unwrap() error { return e.err }

// upstream is a connection to an origin. What is written to it is counted for
// the exchange that it carries.
type upstream struct {
	net.Conn
	dialed dial.Result
	closed chan struct{} // closed by Close
	once   sync.Once     // for closed

	// sent receives nil once a request for an upgrade has been written whole, or
	// the error that ended the writing; asking holds what was written so far.
	sent   chan error
	asking []byte

	mu      sync.Mutex
	carries *run      // nil: nobody
	reading bool      // it is waited for what comes next
	ended   error     // why nothing more comes for the exchange; nil if that is not known
	changed sync.Cond // reading is true now, or closed is closed
}

func newUpstream(res dial.Result) *upstream {
	u := &upstream{Conn: res.Conn, dialed: res, closed: make(chan struct{})}
	u.changed.L = &u.mu
	return u
}

// carry says whose bytes are written and read from now on. A connection that was
// used before must have nothing left of that: the transport, which puts it into
// its pool before it looks, would take what came behind one answer for the next.
// It looks now, and reads on or closes it.
func (u *upstream) carry(r *run, reused bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for reused && !u.reading && !u.isClosed() {
		u.changed.Wait()
	}
	u.carries, u.ended, u.sent, u.asking = r, nil, make(chan error, 1), nil
}

func (u *upstream) isClosed() bool {
	select {
	case <-u.closed:
		return true
	default:
		return false
	}
}

// release forgets an exchange. Nothing is done for it from here afterwards.
func (u *upstream) release(r *run) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.carries == r {
		u.carries = nil
	}
}

// Close implements io.Closer. The transport then waits for its writer, which
// may be waiting for the client.
func (u *upstream) Close() error {
	u.once.Do(func() { close(u.closed) })
	u.mu.Lock()
	defer u.mu.Unlock()
	u.changed.Broadcast()
	if u.carries != nil {
		u.carries.body.interrupt()
	}
	return u.Conn.Close()
}

// end returns why nothing more comes; nil if that is not known.
func (u *upstream) end() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ended
}

// errUnasked ends a connection on which something comes that is no answer.
var errUnasked = errors.New("the origin speaks without being asked")

// Read implements io.Reader.
func (u *upstream) Read(p []byte) (int, error) {
	u.mu.Lock()
	u.reading = true
	u.changed.Broadcast()
	u.mu.Unlock()
	n, err := u.Conn.Read(p)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reading = false
	switch {
	case u.carries != nil:
		u.carries.heads.add(p[:n])
		if u.ended == nil {
			u.ended = err
		}
	case n > 0:
		return 0, errUnasked
	}
	return n, err
}

// writesFor returns the exchange that is carried, which counts as sent from now
// on. It is nil where nothing goes out any more: the exchange is over or has been
// ended, which the transport looks at only while it waits, or the connection closed.
func (u *upstream) writesFor() *run {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.carries == nil || u.isClosed() {
		return nil
	}
	select {
	case <-u.carries.done:
		return nil
	default:
	}
	u.carries.wrote.Store(true)
	return u.carries
}

// Write implements io.Writer. An origin that takes no more may have answered
// before: the transport, which reads that and then closes, is not told before it
// has, or it would give up at once.
func (u *upstream) Write(p []byte) (int, error) {
	r := u.writesFor()
	if r == nil {
		return 0, errStopped
	}
	n, err := u.Conn.Write(p)
	if n > 0 {
		r.meter.add(int64(n), 0)
	}
	if r.Upgrade != "" {
		u.asks(p[:n], err)
	}
	if err != nil {
		<-u.closed
	}
	return n, err
}

// asks notes what was written of a request for an upgrade, which has no body, and
// reports on sent when that is whole or could not be written.
func (u *upstream) asks(p []byte, err error) {
	u.asking = append(u.asking, p...)
	if err == nil && !bytes.HasSuffix(u.asking, []byte("\r\n\r\n")) {
		return
	}
	select {
	case u.sent <- err:
	default:
	}
}
