package live

import (
	"crypto/x509"
	"net/netip"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Decided is what was decided of an entry, and what every new state decides
// again.
type Decided struct {
	// Request is what was asked. Without a destination the entry is a connection
	// over which its caller may ask for many things: a state forbids it that does
	// not know the identity.
	Request allowlist.Request
	// Name is the host that the first bytes asked for, if the request was for an
	// address; it is decided as well. Zero if there is none.
	Name allowlist.Host
	// Addr is the address that was dialled; zero while it is being dialled.
	Addr netip.AddrPort
	// Way is how the look-up of the host led to the address, as far as that is known.
	Way allowlist.Way
	// FirstBytes are those of the client, and ECH means that they offer Encrypted
	// Client Hello: it may then ask for any of Hidden, too, which is nil if the
	// request was for a name.
	FirstBytes FirstBytes
	ECH        bool
	Hidden     []Hidden
}

// Hidden is a name that Encrypted Client Hello may ask for, and how its look-up led to
// the address.
type Hidden struct {
	Name allowlist.Host
	Way  allowlist.Way
}

// isConnection reports whether nothing was asked for yet.
func (d *Decided) isConnection() bool { return d.Request.Dest.Host.IsZero() }

// isOpen reports whether it is more than a request that is being dialled.
func (d *Decided) isOpen() bool { return d.isConnection() || d.Addr.IsValid() }

// End closes an entry for a reason, and says by which reason of the closed set a
// state forbids it, if one does. It returns at once and may be called from any
// goroutine.
type End func(reason tunnel.Reason, why allowlist.Reason)

// Entry is what the registry knows of something that lasts longer than one
// decision: a request that is being dialled, a tunnel, an exchange, a connection
// over which queries come. Its fields are set before [Registry.Add] and are not
// touched afterwards but by its methods, which are safe for concurrent use.
type Entry struct {
	// ID is that of its decision, "" of a connection, which has none.
	ID string
	// Start is when it began.
	Start time.Time
	// Certificates are those of the caller that led to an authority, the leaf
	// first, for a request whose source they are; without them such a request is not
	// trusted.
	Certificates []*x509.Certificate
	// NotAfter is when the caller's identity expires; zero if it does not.
	NotAfter time.Time
	// Decided is what was decided when it began; see Change.
	Decided Decided
	// End ends it, once; see Promote.
	End End
	// Counts returns the bytes so far; nil while it does not count any.
	Counts func() (up, down int64)
	// Hurry is called when a state lets it go on and demands a ClientHello, which is to
	// come; nil is not. It returns at once. See Await.
	Hurry func()

	mu      sync.Mutex       // over what follows, and over Decided, End and Counts from Add on
	changes int              // how often Decided was changed
	why     allowlist.Reason // why it was told to end; NoReason if it was not
}

// Change changes what the next state decides of the entry. Whoever calls it must
// look at [Current] afterwards, as after [Registry.Add].
func (e *Entry) Change(change func(*Decided)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.Decided)
	e.changes++
}

// Promote gives an entry another end, once it has become something else: a
// tunnel, for example, that counts its bytes. An entry that was told to end
// before is not told again: see Why.
func (e *Entry) Promote(end End, counts func() (up, down int64)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.End, e.Counts = end, counts
}

// Await sets Hurry, of an entry whose first bytes are to come; nil once they have.
// Whoever calls it must look at [Current] afterwards.
func (e *Entry) Await(hurry func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.Hurry = hurry
}

// Why returns the reason for which the entry was told to end, NoReason if it was
// not. That of the shutdown is Draining.
func (e *Entry) Why() allowlist.Reason {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.why
}

// judged returns what is to be judged, and how often it was changed; see changed.
func (e *Entry) judged() (d Decided, changes int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.Decided, e.changes
}

// hurry tells an entry that it must not wait for its first bytes for ever.
func (e *Entry) hurry() {
	e.mu.Lock()
	hurry := e.Hurry
	e.mu.Unlock()
	if hurry != nil {
		hurry()
	}
}

// isConnection reports whether nothing was asked for yet.
func (e *Entry) isConnection() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.Decided.isConnection()
}

// changed reports whether the entry has been changed since judged returned a number.
func (e *Entry) changed(since int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changes != since
}

// tell tells the entry to end. It calls End without any lock, for it may call
// Remove.
func (e *Entry) tell(reason tunnel.Reason, why allowlist.Reason) {
	e.mu.Lock()
	end := e.End
	e.why = why
	if why == allowlist.NoReason {
		e.why = allowlist.Draining
	}
	e.mu.Unlock()
	end(reason, why)
}

func (e *Entry) expired(now time.Time) bool { return !e.NotAfter.IsZero() && now.After(e.NotAfter) }

// Standing is an entry as it was at one moment.
type Standing struct {
	ID       string
	Start    time.Time
	Decided  Decided
	Up, Down int64 // bytes so far
	// Ending means that it was told to end and has not left yet.
	Ending bool
}

func (e *Entry) standing(told bool) Standing {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Standing{ID: e.ID, Start: e.Start, Decided: e.Decided, Ending: told}
	if e.Counts != nil {
		s.Up, s.Down = e.Counts()
	}
	return s
}
