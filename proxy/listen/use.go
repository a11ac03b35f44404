package listen

import (
	"sync/atomic"

	"github.com/exeat-dev/exeat/allowlist"
)

// Use says whether a connection has carried a request. The zero value is for a
// connection without TLS.
type Use struct {
	asked atomic.Bool

	shaken     bool                   // says that a handshake was completed, after which the caller can send requests
	why        allowlist.Reason       // why the handshake gave no identity
	detail     string                 // detail of why
	handshaken func(allowlist.Reason) // called for the first request; nil means not at all
}

// Ask notes that the connection has carried a request, which will have a record. It may
// be called at any time.
func (u *Use) Ask() {
	if u.asked.Load() || u.asked.Swap(true) {
		return
	}
	if u.shaken && u.handshaken != nil {
		u.handshaken(u.why)
	}
}

// Asked reports whether Ask has been called.
func (u *Use) Asked() bool { return u.asked.Load() }
