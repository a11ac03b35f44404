package live

import (
	"cmp"
	"crypto/x509"
	"net/netip"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Tunnel is one open tunnel and what was decided of it, or a connection over
// which its caller may ask for many things. It does not change.
type Tunnel struct {
	// Request is what was asked; it is asked again of every new state. Without
	// a destination it stands for a connection, which a state forbids that does
	// not know the identity.
	Request allowlist.Request
	// Name is the host that the first bytes asked for, if the request was for an
	// address; it is decided as well. Zero if there is none.
	Name allowlist.Host
	// Addr is the address that was dialled; zero while it is being dialled.
	Addr netip.AddrPort
	// Certificates are the caller's, verified in the handshake; nil if the
	// listener gives the identity.
	Certificates []*x509.Certificate
	// NotAfter is when the caller's identity expires; zero if it does not.
	NotAfter time.Time
	// End closes it for a reason, and says by which reason of the closed set a
	// state forbids it, if one does. It returns at once, may be called from
	// any goroutine and any number of times.
	End func(reason tunnel.Reason, why allowlist.Reason)
}

// Registry knows every open tunnel. The zero value is ready; all methods are
// safe for concurrent use.
type Registry struct {
	mu      sync.Mutex
	open    map[*Tunnel]bool // true: it was told to end and is on its way
	ended   tunnel.Reason    // not zero: no tunnel may open any more
	waiting chan struct{}    // closed when the last tunnel leaves; nil if nobody waits
}

// Add takes up a tunnel. After EndAll it is ended at once. An [Enforcer] ends
// it by the states to come, but not by the one that came into force just before:
// whoever adds must look at [Current] afterwards, and leave if that has changed
// and does not allow the tunnel.
func (r *Registry) Add(t *Tunnel) {
	r.mu.Lock()
	if r.open == nil {
		r.open = make(map[*Tunnel]bool)
	}
	ended := r.ended
	r.open[t] = ended != 0
	r.mu.Unlock()
	if ended != 0 {
		t.End(ended, allowlist.NoReason)
	}
}

// Remove forgets a tunnel; one that is not there is no error.
func (r *Registry) Remove(t *Tunnel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, t)
	if len(r.open) == 0 && r.waiting != nil {
		close(r.waiting)
		r.waiting = nil
	}
}

// Len returns how many tunnels and connections are open.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// Tunnels returns how many tunnels are open, without connections.
func (r *Registry) Tunnels() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for t := range r.open {
		if !t.Request.Dest.Host.IsZero() {
			n++
		}
	}
	return n
}

// Drain waits until no tunnel is open or the time has passed, and ends those
// that are left, for the reason drain, as well as any that is added later. It
// does not wait for those it ends.
func (r *Registry) Drain(timeout time.Duration) {
	empty := r.emptied()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-empty:
	case <-timer.C:
	}
	r.EndAll(tunnel.Drain)
}

// emptied returns a channel that is closed when no tunnel is open, the same for
// all who wait.
func (r *Registry) emptied() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.open) == 0 {
		none := make(chan struct{})
		close(none)
		return none
	}
	if r.waiting == nil {
		r.waiting = make(chan struct{})
	}
	return r.waiting
}

// EndAll ends every tunnel for a reason, also those added later. None counts
// as Error, as it does for a tunnel.
func (r *Registry) EndAll(reason tunnel.Reason) {
	reason = cmp.Or(reason, tunnel.Error)
	r.mu.Lock()
	r.ended = reason
	r.mu.Unlock()
	for _, t := range r.standing() {
		r.end(t, reason, allowlist.NoReason)
	}
}

// standing returns the tunnels that are open now and were not told to end.
func (r *Registry) standing() []*Tunnel {
	r.mu.Lock()
	defer r.mu.Unlock()
	standing := make([]*Tunnel, 0, len(r.open))
	for t, told := range r.open {
		if !told {
			standing = append(standing, t)
		}
	}
	return standing
}

// end tells a tunnel to end and reports whether it was standing until now.
func (r *Registry) end(t *Tunnel, reason tunnel.Reason, why allowlist.Reason) bool {
	r.mu.Lock()
	told, open := r.open[t]
	if open {
		r.open[t] = true
	}
	r.mu.Unlock()
	if told || !open {
		return false
	}
	t.End(reason, why) // without the lock, for it may call Remove
	return true
}
