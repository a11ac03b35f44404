package listen

import (
	"sync/atomic"

	"github.com/exeat-dev/exeat/allowlist"
)

// Use says whether a connection has carried a request. The zero value is for a
// connection without TLS.
type Use struct {
	used atomic.Bool

	handshakeDone bool                   // says that a handshake was completed, after which the caller can send requests
	reason        allowlist.Reason       // why the handshake gave no identity
	detail        string                 // detail of reason
	handshaken    func(allowlist.Reason) // called for the first request; nil means not at all
}

// MarkUsed notes that the connection has carried a request, which will have a record. It
// may be called at any time.
func (u *Use) MarkUsed() {
	if u.used.Load() || u.used.Swap(true) {
		return
	}
	if u.handshakeDone && u.handshaken != nil {
		u.handshaken(u.reason)
	}
}

// Used reports whether MarkUsed has been called.
func (u *Use) Used() bool { return u.used.Load() }
