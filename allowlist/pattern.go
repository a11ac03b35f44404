package allowlist

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/publicsuffix"
)

type patternKind uint8

const (
	patternNone  patternKind = iota
	patternExact             // the value itself
	patternOne               // the value and exactly one more label or segment
	patternMany              // the value and one or more labels or segments
	patternAll               // all identities of a trust domain
)

// maxSegments bounds the literal part of an identity pattern, and so the number of
// entries that can match one identity.
const maxSegments = 32

const maxID = 2048 // bytes of a SPIFFE ID (section 2.3 of the SPIFFE-ID standard)

// HostPattern is an exact name, *.x (exactly one label below x, as in TLS
// certificates) or **.x (one or more); neither matches x itself. It is
// comparable; the zero value matches nothing.
type HostPattern struct {
	kind patternKind
	name string // canonical name; the x of a wildcard
}

// ParseHostPattern parses a pattern, which has one accepted spelling. The error says how
// to write the pattern. A wildcard over an ICANN public suffix is an error.
func ParseHostPattern(s string) (HostPattern, error) {
	kind, name := patternExact, s
	if rest, ok := strings.CutPrefix(s, "**."); ok {
		kind, name = patternMany, rest
	} else if rest, ok := strings.CutPrefix(s, "*."); ok {
		kind, name = patternOne, rest
	}
	if strings.Contains(name, "*") || name == "" {
		return HostPattern{}, fmt.Errorf("%q is not a host pattern: write a name, *.name for one label below it, or **.name for one or more", s)
	}
	host, err := ParseHost(name)
	if err != nil {
		return HostPattern{}, patternError(s, name, err)
	}
	if host.IsAddr() {
		return HostPattern{}, fmt.Errorf("%q is an address: write cidr: %s/%d", s, host.Addr(), host.Addr().BitLen())
	}
	if host.String() != name {
		return HostPattern{}, fmt.Errorf("host %q is not canonical: write %q", s, strings.TrimSuffix(s, name)+host.String())
	}
	if kind != patternExact {
		if publicSuffix(name) {
			return HostPattern{}, fmt.Errorf("%q is a wildcard over the public suffix %s, where anybody can register a name: list the names below it", s, name)
		}
	}
	return HostPattern{kind: kind, name: name}, nil
}

// publicSuffix reports whether name, or every name one label below it, is an ICANN public
// suffix. The list has entries such as com and entries such as *.ck.
func publicSuffix(name string) bool {
	if suffix, icann := publicsuffix.PublicSuffix(name); icann && suffix == name {
		return true
	}
	below := "-." + name // no entry of the list has the label "-"
	suffix, icann := publicsuffix.PublicSuffix(below)
	return icann && suffix == below
}

func patternError(pattern, name string, err error) error {
	if alabel, ok := toALabels(name); ok {
		return fmt.Errorf("host %q is not ASCII: write %q", pattern, strings.TrimSuffix(pattern, name)+alabel)
	}
	if _, err := netip.ParsePrefix(pattern); err == nil {
		return fmt.Errorf("%q is a range of addresses: write cidr: %s", pattern, pattern)
	}
	if strings.ContainsAny(name, ":/") {
		return fmt.Errorf("host %q is more than a name: write only that, without scheme, port and path, and the port in ports", pattern)
	}
	return fmt.Errorf("host %q: %w", pattern, err)
}

// String returns the pattern as it is written in a policy.
func (p HostPattern) String() string {
	switch p.kind {
	case patternExact:
		return p.name
	case patternOne:
		return "*." + p.name
	case patternMany:
		return "**." + p.name
	case patternNone, patternAll:
	}
	return ""
}

// isWildcard reports whether p matches more than one name.
func (p HostPattern) isWildcard() bool { return p.kind == patternOne || p.kind == patternMany }

// IsZero reports whether p is the zero value, which matches nothing.
func (p HostPattern) IsZero() bool { return p == HostPattern{} }

// IdentityPattern is an exact SPIFFE ID, or a SPIFFE ID with /* (one more segment) or /**
// (one or more) at its end, or stands for all identities of a trust domain. It is
// comparable; the zero value matches nothing.
type IdentityPattern struct {
	kind   patternKind
	prefix string // the ID, or the part before /* or /**
	depth  int    // number of path segments of prefix
}

// ParseIdentityPattern parses a pattern in the spelling of the policy.
func ParseIdentityPattern(s string) (IdentityPattern, error) {
	kind, text := patternExact, s
	if rest, ok := strings.CutSuffix(s, "/**"); ok {
		kind, text = patternMany, rest
	} else if rest, ok := strings.CutSuffix(s, "/*"); ok {
		kind, text = patternOne, rest
	}
	if strings.Contains(text, "*") {
		return IdentityPattern{}, fmt.Errorf("%q: only the last segment may be * or **, and the trust domain is always literal", s)
	}
	if len(text) > maxID {
		return IdentityPattern{}, fmt.Errorf("%.64q... is longer than %d bytes", s, maxID)
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		return IdentityPattern{}, fmt.Errorf("%q is not a SPIFFE ID: %w", s, err)
	}
	depth := strings.Count(id.Path(), "/")
	if kind == patternExact && depth == 0 {
		return IdentityPattern{}, fmt.Errorf("%q is a trust domain and no workload: write %s/** for all of its identities", s, s)
	}
	if depth > maxSegments {
		return IdentityPattern{}, fmt.Errorf("%q has more than %d segments", s, maxSegments)
	}
	return IdentityPattern{kind: kind, prefix: id.String(), depth: depth}, nil
}

// EveryonePattern returns the pattern of all identities of a trust domain.
func EveryonePattern(td spiffeid.TrustDomain) IdentityPattern {
	return IdentityPattern{kind: patternAll, prefix: td.IDString()}
}

// String returns the pattern as it is written in a policy, or "everyone of " and the ID
// of the trust domain if the pattern stands for all its identities.
func (p IdentityPattern) String() string {
	switch p.kind {
	case patternExact:
		return p.prefix
	case patternOne:
		return p.prefix + "/*"
	case patternMany:
		return p.prefix + "/**"
	case patternAll:
		return "everyone of " + p.prefix
	case patternNone:
	}
	return ""
}

// IsZero reports whether p is the zero value, which matches nothing.
func (p IdentityPattern) IsZero() bool { return p == IdentityPattern{} }

// Contains reports whether p matches every identity that q matches. The scope of a policy
// file must contain the patterns of its entries.
func (p IdentityPattern) Contains(q IdentityPattern) bool {
	if p == q {
		return true
	}
	rest, below := strings.CutPrefix(q.prefix, p.prefix+"/")
	switch p.kind {
	case patternOne:
		return q.kind == patternExact && below && !strings.Contains(rest, "/")
	case patternMany:
		return below || (q.prefix == p.prefix && q.kind == patternOne)
	case patternAll:
		return below || q.prefix == p.prefix
	case patternExact, patternNone:
	}
	return false
}

// PathPattern is an exact path, or a path with /* (one more segment) or /** (the rest of
// the path, which may be empty) at its end. The zero value matches nothing.
type PathPattern struct {
	kind patternKind
	path string // the path; the part before the stars, which ends in a slash, of a wildcard
}

// ParsePathPattern parses a pattern in the spelling of the policy. Its literal part must
// pass CheckPath.
func ParsePathPattern(s string) (PathPattern, error) {
	kind, path := patternExact, s
	if rest, ok := strings.CutSuffix(s, "/**"); ok {
		kind, path = patternMany, rest+"/"
	} else if rest, ok := strings.CutSuffix(s, "/*"); ok {
		kind, path = patternOne, rest+"/"
	}
	switch {
	case !strings.HasPrefix(path, "/"):
		return PathPattern{}, fmt.Errorf("path %q: begin it with /", s)
	case strings.Contains(path, "*"):
		return PathPattern{}, fmt.Errorf("path %q: only the last segment may be * or **", s)
	case strings.ContainsAny(path, "?#"):
		return PathPattern{}, fmt.Errorf("path %q: a path has no query and no fragment", s)
	}
	if err := CheckPath(path); err != nil {
		return PathPattern{}, fmt.Errorf("path %q: no request that is spelled so is accepted: %w", s, err)
	}
	return PathPattern{kind: kind, path: path}, nil
}

// String returns the pattern as it is written in a policy.
func (p PathPattern) String() string {
	switch p.kind {
	case patternExact:
		return p.path
	case patternOne:
		return p.path + "*"
	case patternMany:
		return p.path + "**"
	case patternNone, patternAll:
	}
	return ""
}

func (p PathPattern) matches(path string) bool {
	switch p.kind {
	case patternExact:
		return path == p.path
	case patternOne:
		rest, ok := strings.CutPrefix(path, p.path)
		return ok && rest != "" && !strings.Contains(rest, "/")
	case patternMany:
		return strings.HasPrefix(path, p.path)
	case patternNone, patternAll:
	}
	return false
}

// contains reports whether p matches every path that q matches.
func (p PathPattern) contains(q PathPattern) bool {
	switch p.kind {
	case patternOne:
		return p == q || q.kind == patternExact && p.matches(q.path)
	case patternMany:
		return strings.HasPrefix(q.path, p.path)
	case patternExact, patternNone, patternAll:
	}
	return p == q
}

// PortRange is an inclusive range of ports. First equals Last if it is one port.
type PortRange struct{ First, Last uint16 }

// ParsePortRange parses a port such as "443" or a range such as "8000-8999", with ports
// from 1 to 65535.
func ParsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, err := parsePort(first)
	if err != nil {
		return PortRange{}, fmt.Errorf("port %q: write a number from 1 to 65535, or \"first-last\"", s)
	}
	b, err := parsePort(last)
	if err != nil {
		return PortRange{}, fmt.Errorf("port %q: write a number from 1 to 65535, or \"first-last\"", s)
	}
	if a > b {
		return PortRange{}, fmt.Errorf("port range %q is empty: write \"%d-%d\"", s, b, a)
	}
	return PortRange{First: a, Last: b}, nil
}

func (r PortRange) has(port uint16) bool { return r.First <= port && port <= r.Last }

// String returns "443" or "8000-8999".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}
