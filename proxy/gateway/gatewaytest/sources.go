// Package gatewaytest has providers for the tests of a gateway: a policy and an identity
// that change when the test calls a method, and have changed when the method returns.
package gatewaytest

import (
	"context"
	"sync/atomic"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/live"
)

// Policy is a gateway.PolicyProvider.
type Policy struct {
	first     live.Change
	following chan func(live.Change)
}

// NewPolicy returns a provider that has loaded a policy without a quarantine list; nil
// means that there is no policy.
func NewPolicy(p *allowlist.Policy) *Policy {
	s := &Policy{following: make(chan func(live.Change), 1)}
	if p != nil {
		s.first = Only(p)
	}
	return s
}

// Only returns the load of a policy without a quarantine list.
func Only(p *allowlist.Policy) live.Change {
	return live.Change{Policy: p, Quarantine: allowlist.NewQuarantineList(nil)}
}

// Loaded implements gateway.PolicyProvider.
func (s *Policy) Loaded() live.Change { return s.first }

// Follow implements gateway.PolicyProvider.
func (s *Policy) Follow(ctx context.Context, reread <-chan struct{}, loaded func(context.Context, live.Change, error)) {
	s.following <- func(c live.Change) { loaded(ctx, c, nil) }
	for {
		select {
		case <-ctx.Done():
			return
		case <-reread:
			loaded(ctx, live.Change{}, nil)
		}
	}
}

// Put loads a policy. When it returns the policy is in force, or held, and everything
// that it forbids was told to end. The gateway must be served.
func (s *Policy) Put(p *allowlist.Policy) {
	loaded := <-s.following
	loaded(Only(p))
	s.following <- loaded
}

// Identity is a gateway.IdentityProvider.
type Identity struct {
	snapshot  atomic.Pointer[identity.Snapshot]
	following chan func()
}

// NewIdentity returns a provider with a snapshot.
func NewIdentity(s *identity.Snapshot) *Identity {
	i := &Identity{following: make(chan func(), 1)}
	i.snapshot.Store(s)
	return i
}

// Snapshot implements identity.Provider.
func (i *Identity) Snapshot() *identity.Snapshot { return i.snapshot.Load() }

// Follow implements gateway.IdentityProvider.
func (i *Identity) Follow(ctx context.Context, reread <-chan struct{}, changed func(context.Context)) {
	i.following <- func() { changed(ctx) }
	for {
		select {
		case <-ctx.Done():
			return
		case <-reread:
		}
	}
}

// Set replaces the current snapshot without a call to the gateway, which reads the
// snapshot at every handshake.
func (i *Identity) Set(s *identity.Snapshot) { i.snapshot.Store(s) }

// Tell passes the current snapshot to the gateway. When it returns, everything that
// depends on a removed authority was told to end. The gateway must be served.
func (i *Identity) Tell() {
	changed := <-i.following
	changed()
	i.following <- changed
}
