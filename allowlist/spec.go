package allowlist

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Spec is the content of a policy: typed values, each checked, not yet compiled. Package
// policyfile makes one from YAML; tests write it by hand.
type Spec struct {
	// Version names the policy in records. "" means a hash over everything that the
	// policy means, so that equal policies have the same version on every replica, in
	// whatever files they are written.
	Version string
	// Entries are the entries of the policy, at most one for each pattern. Their order
	// does not matter. The order of the rules in a list matters only if two are for the
	// same hosts.
	Entries []Entry
	// Quarantine lists identities that are refused whatever else allows them.
	Quarantine []Quarantined
}

// Entry holds everything that the policy sets for one identity pattern.
type Entry struct {
	Pattern IdentityPattern
	// Unlisted, in an everyone entry, also admits identities that no other entry names.
	Unlisted bool
	// Owner is shown to a caller that is denied; "" if there is none.
	Owner string
	// Accept is the set of proofs that are accepted; zero means not set.
	Accept Proofs
	// Mode, if not ModeUnset, is the mode of the identities for which no more specific
	// entry decides the mode. An entry with an Allow list and without a Mode decides it
	// too: it enforces.
	Mode Mode
	// InheritMode leaves the mode to less specific entries although there is an Allow
	// list.
	InheritMode bool
	// Force makes ModeEnforce final: no more specific entry overrides it.
	Force bool
	// ObserveUntil is the time at which ModeObserve ends; required with ModeObserve.
	ObserveUntil time.Time
	// ObservePrivate also lets requests through ModeObserve to private addresses.
	ObservePrivate bool
	// Limits apply to each identity by itself, SharedLimits to all identities of the
	// pattern together.
	Limits, SharedLimits Limits
	// Allow and Deny are the rules. An Allow that is empty and not nil is a list too; see
	// Mode.
	Allow, Deny []Rule
}

// decidedMode returns the mode that the entry decides, or ModeUnset if it leaves the mode
// to less specific entries.
func (e *Entry) decidedMode() Mode {
	if e.Mode == ModeUnset && e.Allow != nil && !e.InheritMode {
		return ModeEnforce
	}
	return e.Mode
}

// Limits bounds what an identity may use. A field that is zero is not set.
type Limits struct {
	Tunnels           int   // tunnels and plain requests that are open at the same time
	ConnectsPerSecond int   // new tunnels
	DNSPerSecond      int   // DNS queries
	UploadPerHour     int64 // bytes sent to destinations
}

// Rule is one rule of an allow or deny list. Exactly one of Host and CIDR is set.
type Rule struct {
	// Name is the name in the policy file; if it is "" a hash of the rule is its name.
	Name string
	// At is file:line of the rule. UseAt is file:line of the use: that adds the rule to
	// the entry, or "".
	At, UseAt string
	// Ticket is free text.
	Ticket string

	Host HostPattern
	CIDR netip.Prefix
	// Ports are the ports that the rule covers; nil means 443 in an allow rule and every
	// port in a deny rule.
	Ports []PortRange
	// Expires is the time at which the rule ends; zero means never. Deny rules have none.
	Expires time.Time

	// Addresses, if not nil, are the only ranges whose addresses may be reached by the
	// name.
	Addresses []netip.Prefix
	// TLS and ECH say how the first bytes of a tunnel are checked.
	TLS TLSMode
	ECH ECHMode
	// Methods and Paths restrict the rule to plain HTTP requests; such a rule admits no
	// tunnel.
	Methods []string
	Paths   []PathPattern
	// Upgrade admits plain requests that must become a tunnel. Rules without it do not
	// admit them.
	Upgrade bool
	// NoTunnel means that the rule only makes its name resolvable and admits no
	// connection.
	NoTunnel bool
	// Types are the DNS query types that the rule allows beside A, AAAA, HTTPS and CNAME.
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

// ECHMode says whether a ClientHello that offers ECH is refused or only recorded.
type ECHMode uint8

// The ECH modes. The zero value records.
const (
	ECHRecord ECHMode = iota
	ECHRefuse
)

// Quarantined is one line of a quarantine list.
type Quarantined struct {
	Pattern IdentityPattern
	Reason  string // free text, for records
	At      string // file:line of the line
}

// Upgrade says whether a plain request asks to become a tunnel (RFC 9110 section 7.8).
type Upgrade uint8

// The kinds of upgrade. NoUpgrade, the zero value, is a request without one. MayUpgrade
// is a request whose client also accepts a plain answer: Decide decides it as NoUpgrade
// if no rule allows the upgrade. MustUpgrade is a request that is useless without the
// upgrade.
const (
	NoUpgrade Upgrade = iota
	MayUpgrade
	MustUpgrade
)

// Request is a request that the policy decides.
type Request struct {
	ID    spiffeid.ID // verified; the zero ID is never allowed
	Proof Proof       // proof of the identity
	Dest  Destination
	// Method and Path are the method and the raw path of a plain request. Method is ""
	// for a tunnel.
	Method, Path string
	// Upgrade says whether a plain request asks to become a tunnel. In a Decision it says
	// whether the request may become one.
	Upgrade Upgrade
	// Time is the time of the request, which is compared with expiry dates.
	Time time.Time
}
