package live

import (
	"crypto/x509"
	"net/netip"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Decided holds everything that the decision about an entry was made from. Every new
// state decides it again.
type Decided struct {
	// Request is the caller's request. If it has no destination, the entry is a
	// connection over which the caller may send many requests; a state forbids it if
	// it refuses every request of the identity.
	Request allowlist.Request
	// Name is the host that the ClientHello names in a tunnel to an address; it is
	// decided as well. It is zero if there is none.
	Name allowlist.Host
	// Addr is the address that was dialled; it is zero while the dial lasts.
	Addr netip.AddrPort
	// Way is the chain of names that led from the host to the address, as far as it
	// is known.
	Way allowlist.Way
	// FirstBytes says what the client's first bytes were. ECH says that they offer
	// Encrypted Client Hello; the name that it encrypts may be any of Hidden, which
	// is nil if the request was for a name.
	FirstBytes FirstBytes
	ECH        bool
	Hidden     []Hidden
}

// Hidden is a name that Encrypted Client Hello may hide, and the chain of names that
// led from it to the address.
type Hidden struct {
	Name allowlist.Host
	Way  allowlist.Way
}

// isConnection reports whether the entry is a connection without a request.
func (d *Decided) isConnection() bool { return d.Request.Dest.Host.IsZero() }

// isOpen reports whether the entry is a connection, a tunnel or an exchange, and not a
// request that is being dialled.
func (d *Decided) isOpen() bool { return d.isConnection() || d.Addr.IsValid() }

// End closes an entry. reason goes into its last record; why is the policy's reason if
// a state forbids the entry, else NoReason. End returns at once and may be called from
// any goroutine.
type End func(reason tunnel.Reason, why allowlist.Reason)

// Entry is something in the registry that lasts longer than one decision: a request
// that is being dialled, a tunnel, an exchange, or a connection over which queries
// come. Its fields are set before [Registry.Add]. Afterwards only its methods change
// them; these are safe for concurrent use.
type Entry struct {
	// ID is the ID of the decision; it is "" for a connection, which has no decision.
	ID string
	// Start is when the entry began.
	Start time.Time
	// Certificates is the verified chain of the caller, the leaf first, if it has proven
	// the identity. Without a chain, such a request is not trusted.
	Certificates []*x509.Certificate
	// NotAfter is when the caller's identity expires; it is zero if it does not.
	NotAfter time.Time
	// Decided is what the decision was made from; see Change.
	Decided Decided
	// End ends the entry, once; see Promote.
	End End
	// Counts returns the bytes so far; it is nil while nothing is counted.
	Counts func() (up, down int64)
	// Hurry is called when a new state allows the entry but demands a ClientHello, and
	// the client's first bytes have not come yet. It returns at once. It is nil if no
	// first bytes are waited for. See Await.
	Hurry func()

	mu      sync.Mutex       // guards the fields below, and after Add also Decided, End, Counts and Hurry
	changes uint32           // how often Decided was changed
	why     allowlist.Reason // why the entry was told to end; NoReason if it was not
	by      *State           // the state that told the entry to end; nil if none did
}

// Change changes Decided, which the next state decides again. The caller must load
// [Current] afterwards, as after [Registry.Add].
func (e *Entry) Change(change func(*Decided)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.Decided)
	e.changes++
}

// Promote replaces End and Counts when an entry has become something else, for example
// when a request that was being dialled has become a tunnel. An entry that was told to
// end before is not told again; see Why.
func (e *Entry) Promote(end End, counts func() (up, down int64)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.End, e.Counts = end, counts
}

// Await sets Hurry while first bytes are waited for, and clears it with nil when they
// have come. The caller must load [Current] afterwards.
func (e *Entry) Await(hurry func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.Hurry = hurry
}

// Why returns the reason for which the entry was told to end, or NoReason if it was
// not. A shutdown's reason is Draining.
func (e *Entry) Why() allowlist.Reason {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.why
}

// EndedBy returns the state that has told the entry to end, or nil if none has.
func (e *Entry) EndedBy() *State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.by
}

// judged returns a copy of Decided and how often it was changed; see changed.
func (e *Entry) judged() (d Decided, changes uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.Decided, e.changes
}

// hurry calls Hurry, if it is set.
func (e *Entry) hurry() {
	e.mu.Lock()
	hurry := e.Hurry
	e.mu.Unlock()
	if hurry != nil {
		hurry()
	}
}

// isConnection reports whether the entry is a connection without a request.
func (e *Entry) isConnection() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.Decided.isConnection()
}

// changed reports whether Decided was changed after judged had returned the number since.
func (e *Entry) changed(since uint32) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changes != since
}

// tell tells the entry to end; by is the state that demands it, or nil. It calls End without
// holding a lock, because End may call Remove.
func (e *Entry) tell(reason tunnel.Reason, why allowlist.Reason, by *State) {
	e.mu.Lock()
	end := e.End
	e.why, e.by = why, by
	if why == allowlist.NoReason {
		e.why = allowlist.Draining
	}
	e.mu.Unlock()
	end(reason, why)
}

func (e *Entry) expired(now time.Time) bool { return !e.NotAfter.IsZero() && now.After(e.NotAfter) }

// EntrySnapshot is a snapshot of an entry.
type EntrySnapshot struct {
	ID       string
	Start    time.Time
	Decided  Decided
	Up, Down int64 // bytes so far
	// Ending says that the entry was told to end and has not been removed yet.
	Ending bool
}

func (e *Entry) snapshot(told bool) EntrySnapshot {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := EntrySnapshot{ID: e.ID, Start: e.Start, Decided: e.Decided, Ending: told}
	if e.Counts != nil {
		s.Up, s.Down = e.Counts()
	}
	return s
}
