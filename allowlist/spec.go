package allowlist

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Spec is what a policy says: typed values, each checked, not yet compiled.
// Package policyfile makes one from YAML; tests write them by hand.
type Spec struct {
	// Version names the policy in records. "" means a hash over everything that
	// the policy means, so that equal policies have the same version on every
	// replica, in whatever files they are written.
	Version string
	// Entries, each with a pattern of its own. Their order means nothing; that
	// of the rules in a list matters only where two are for the same hosts.
	Entries []Entry
	// Quarantine cuts identities off whatever else allows them.
	Quarantine []Quarantined
}

// Entry is all that the policy says of one identity pattern.
type Entry struct {
	Pattern IdentityPattern
	// Unlisted, in an everyone entry, also admits identities that no other
	// entry names.
	Unlisted bool
	// Owner is shown to a denied caller; "" is none.
	Owner string
	// Accept lists the ways to prove the identity; zero means not set.
	Accept Sources
	// Mode, if not ModeUnset, is the mode of the identities of which no more
	// specific entry decides it. An entry with Allow decides it by having that:
	// without a Mode it enforces.
	Mode Mode
	// InheritMode leaves the mode to less specific entries in spite of Allow.
	InheritMode bool
	// Force makes ModeEnforce final: no more specific entry overrides it.
	Force bool
	// ObserveUntil is the instant from which ModeObserve no longer holds;
	// required with ModeObserve.
	ObserveUntil time.Time
	// ObservePrivate lets ModeObserve reach private addresses too.
	ObservePrivate bool
	// Limits of each identity; SharedLimits of all of the pattern together.
	Limits, SharedLimits Limits
	// Allow and Deny are the rules. An Allow that is not nil is a list, if an
	// empty one.
	Allow, Deny []Rule
}

// decidedMode is the mode that the entry decides, ModeUnset if it leaves that
// to less specific entries.
func (e *Entry) decidedMode() Mode {
	if e.Mode == ModeUnset && e.Allow != nil && !e.InheritMode {
		return ModeEnforce
	}
	return e.Mode
}

// Limits bounds what an identity may use. Zero means not set, for each key.
type Limits struct {
	Tunnels           int   // open at one time
	ConnectsPerSecond int   // new tunnels
	DNSPerSecond      int   // queries
	UploadPerHour     int64 // bytes
}

// Rule is one line of an allow or deny list. Exactly one of Host and CIDR is
// set.
type Rule struct {
	// Name is as written; "" means a hash of the rule stands for it.
	Name string
	// At is file:line of the rule, UseAt of the use: that named it, or "".
	At, UseAt string
	// Ticket is free text.
	Ticket string

	Host HostPattern
	CIDR netip.Prefix
	// Ports; nil means 443 in an allow rule and every port in a deny rule.
	Ports []PortRange
	// Expires is the instant from which the rule no longer holds; zero means
	// never. Not in deny rules.
	Expires time.Time

	// Addresses, if not nil, are the only ranges that the name may resolve
	// into.
	Addresses []netip.Prefix
	// TLS and ECH say how the first bytes of a tunnel are checked.
	TLS TLSMode
	ECH ECHMode
	// Methods and Paths restrict the rule to plain HTTP requests; such a rule
	// admits no tunnel.
	Methods []string
	Paths   []PathPattern
	// Upgrade admits plain requests that must become a tunnel; no rule without
	// it does.
	Upgrade bool
	// NoTunnel makes it a name to resolve and not to connect to.
	NoTunnel bool
	// Types are the DNS query types beyond A, AAAA, HTTPS and CNAME.
	Types []QueryType
}

// TLSMode says what the first bytes of a tunnel must be.
type TLSMode uint8

// The TLS modes. TLSDefault is require on port 443 and auto elsewhere.
const (
	TLSDefault TLSMode = iota
	TLSRequire
	TLSAuto
	TLSOff
)

// ECHMode says what to do with a ClientHello that offers ECH.
type ECHMode uint8

// The ECH modes; the zero value records.
const (
	ECHRecord ECHMode = iota
	ECHRefuse
)

// Quarantined is one line of a quarantine list.
type Quarantined struct {
	Pattern IdentityPattern
	Reason  string // free text, for records
	At      string // file:line
}

// Upgrade says whether a plain request asks to become a tunnel (RFC 9110
// section 7.8).
type Upgrade uint8

// What a request asks; the zero value asks for no upgrade. A client that may
// upgrade takes a plain answer, too: Decide looks for a rule that allows the
// upgrade and, if there is none, answers as if NoUpgrade had been asked.
const (
	NoUpgrade Upgrade = iota
	MayUpgrade
	MustUpgrade
)

// Request is one question to the policy.
type Request struct {
	ID     spiffeid.ID // verified; zero is never allowed
	Source Source
	Dest   Destination
	// Method is "" for a tunnel; else Path is the raw path of a plain request.
	Method, Path string
	// Upgrade says whether a plain request asks to become a tunnel. Of a
	// Decision it says whether it may.
	Upgrade Upgrade
	// Time is compared with expiry dates.
	Time time.Time
}
