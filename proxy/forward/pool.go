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
	maxAnswerHead = 64 << 10    // bytes; an exchange may have it in memory three times while a client reads slowly
	maxInterims   = 32          // answers with a status of 1xx before the final one
)

// poolKey identifies the requests that may share a connection. A rule says which addresses
// its destination may have; its name changes when they change.
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

// lane is a transport that has at most one connection, to one origin. Only one exchange
// uses a lane at a time. After the exchange has ended, and only then, it is decided which
// exchanges may use the lane next.
type lane struct {
	key        poolKey
	closeCount uint64 // pools.closeCount when the lane was made
	transport  *http.Transport
	conn       *upstream // the last connection that a request went out on; nil before the first
	dedicated  bool      // the lane belongs to one connection of a client until it is closed
}

func (l *lane) close() { l.transport.CloseIdleConnections() }

// pools holds the lanes that no exchange uses: those that any exchange with their key may
// take, and those that belong to one connection of a client. If there are too many pools,
// the least recently used one is closed.
type pools struct {
	response time.Duration // Config.Response
	scarce   func() bool   // Config.Scarce

	mu         sync.Mutex // guards the fields below, and the lanes of all Logins
	byKey      map[poolKey]*pool
	logins     map[*Logins]struct{} // the Logins that have lanes
	uses       uint64               // number of uses of all pools
	closeCount uint64               // number of calls of closeIdle
}

type pool struct {
	idle []*lane // in the order of their last use; the last one was used most recently
	used uint64  // value of pools.uses at the last use of this pool
}

// acquire returns a lane for an exchange: the lane of its client's connection, if there is
// one, or else one of the pool. A request that may log its connection in, or may turn it
// into a tunnel, does not use the pool: it gets a new lane.
func (p *pools) acquire(ex *Exchange) *lane {
	own := mayLogIn(ex.Head)
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := ex.logins().take(&ex.Decision); l != nil {
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
	return &lane{key: key, closeCount: p.closeCount, transport: p.newTransport(), dedicated: own}
}

// release takes a lane back from an exchange that has ended. It closes the lane if the
// exchange did not end well, if another state has come into force meanwhile, or if
// descriptors are scarce and the lane does not belong to a client's connection.
func (p *pools) release(l *lane, logins *Logins, well bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !well || l.conn == nil || l.closeCount != p.closeCount:
		l.close()
	case l.dedicated:
		p.addLogin(logins, l)
	case p.scarce != nil && p.scarce():
		l.close()
	default:
		p.addIdle(l)
	}
}

// addIdle puts a lane into the pool of its key, or closes it if the pool is full.
func (p *pools) addIdle(l *lane) {
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

// makeRoom removes the least recently used pool if there are maxPools.
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

// closeIdle closes the lanes that no exchange uses. The others will be closed when their
// exchanges have ended.
func (p *pools) closeIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeCount++
	for _, pool := range p.byKey {
		closeAll(pool.idle)
	}
	clear(p.byKey)
	for logins := range p.logins {
		p.closeLogins(logins)
	}
}

// connect dials for a transport. It ignores the address that the transport passes, and
// dials the destination of the decision about the request.
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

// dialError is the error of a dial, with its result.
type dialError struct {
	err    error
	result dial.Result
}

// Error implements error.
func (e *dialError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *dialError) Unwrap() error { return e.err }

// upstream is a connection to an origin. The bytes that are written to it are counted in
// the exchange that uses it.
type upstream struct {
	net.Conn
	dialed dial.Result
	closed chan struct{} // closed by Close
	once   sync.Once     // for closed

	// upgradeSent receives nil when a request for an upgrade has been written completely,
	// or the error of writing it. upgradeHead holds the bytes that were written so far.
	upgradeSent chan error
	upgradeHead []byte

	mu      sync.Mutex // guards the fields below
	run     *run       // the exchange that uses the connection; nil if none does
	reading bool       // the transport waits for bytes
	readErr error      // the first error of a read, also one before an exchange used the connection; nil if there was none
	changed sync.Cond  // signals that reading has become true or the connection was closed
}

func newUpstream(res dial.Result) *upstream {
	u := &upstream{Conn: res.Conn, dialed: res, closed: make(chan struct{})}
	u.changed.L = &u.mu
	return u
}

// assign sets the exchange that uses the connection from now on. The transport puts a
// connection into its pool before it has read on, so that it could take bytes behind the
// last answer for the next one. For a reused connection, assign therefore waits until the
// transport reads from it or has closed it. Bytes that come before that end the
// connection.
func (u *upstream) assign(r *run, reused bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for reused && !u.reading && !u.isClosed() {
		u.changed.Wait()
	}
	u.run, u.upgradeSent, u.upgradeHead = r, make(chan error, 1), nil
}

// ended returns a channel that is closed by Close; nil if there is no connection.
func (u *upstream) ended() <-chan struct{} {
	if u == nil {
		return nil
	}
	return u.closed
}

func (u *upstream) isClosed() bool {
	select {
	case <-u.closed:
		return true
	default:
		return false
	}
}

// release ends the use of the connection by an exchange.
func (u *upstream) release(r *run) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.run == r {
		u.run = nil
	}
}

// Close implements io.Closer. It also interrupts a read of the request's body, because the
// transport waits for its writer, which may wait for the client.
func (u *upstream) Close() error {
	u.once.Do(func() { close(u.closed) })
	u.mu.Lock()
	defer u.mu.Unlock()
	u.changed.Broadcast()
	if u.run != nil {
		u.run.body.interrupt()
	}
	return u.Conn.Close()
}

// readError returns the first error of a read, or nil if there was none.
func (u *upstream) readError() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.readErr
}

// errUnsolicited ends a connection on which bytes come while no exchange uses it.
var errUnsolicited = errors.New("the origin speaks without being asked")

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
	if u.run != nil {
		u.run.heads.add(p[:n])
	} else if n > 0 {
		n, err = 0, errUnsolicited
	}
	if u.readErr == nil {
		u.readErr = err
	}
	return n, err
}

// writesFor returns the exchange that uses the connection, and notes that its request may
// have gone out. It returns nil if nothing may be written, because no exchange uses the
// connection, its exchange is to end, or the connection is closed. The transport itself
// notices the end of an exchange only while it waits.
func (u *upstream) writesFor() *run {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.run == nil || u.isClosed() {
		return nil
	}
	select {
	case <-u.run.done:
		return nil
	default:
	}
	u.run.mayHaveSent.Store(true)
	return u.run
}

// Write implements io.Writer. An origin that stops reading may already have answered. On
// an error, Write returns only after the connection was closed, because the transport
// would give up at once otherwise, instead of reading the answer first.
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
		u.addUpgradeBytes(p[:n], err)
	}
	if err != nil {
		<-u.closed
	}
	return n, err
}

// addUpgradeBytes adds written bytes of a request for an upgrade, which has no body. It
// sends to upgradeSent when the request is complete or could not be written.
func (u *upstream) addUpgradeBytes(p []byte, err error) {
	u.upgradeHead = append(u.upgradeHead, p...)
	if err == nil && !bytes.HasSuffix(u.upgradeHead, []byte("\r\n\r\n")) {
		return
	}
	select {
	case u.upgradeSent <- err:
	default:
	}
}
