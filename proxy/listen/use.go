package listen

import (
	"sync/atomic"

	"github.com/exeat-dev/exeat/allowlist"
)

// Use says whether something was asked over a connection. Its zero value is that of
// one without TLS.
type Use struct {
	asked atomic.Bool

	shaken     bool                   // there was a handshake, after which the caller may ask
	why        allowlist.Reason       // why the handshake gave no identity
	detail     string                 // of why
	handshaken func(allowlist.Reason) // called when something is asked; nil is nobody
}

// Ask notes that something is asked of which there will be a record. It may be called
// at any time.
func (u *Use) Ask() {
	if u.asked.Load() || u.asked.Swap(true) {
		return
	}
	if u.shaken && u.handshaken != nil {
		u.handshaken(u.why)
	}
}

// Asked reports whether Ask was called.
func (u *Use) Asked() bool { return u.asked.Load() }
