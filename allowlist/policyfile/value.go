package policyfile

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

const (
	maxName   = 64
	maxNote   = 256 // bytes of an owner or a ticket
	hashChars = 10  // length of the hash that is the name of an unnamed rule
)

// readName reads the name of a rule.
func readName(v *strictyaml.Node) string {
	name, ok := v.Text()
	if !ok {
		return ""
	}
	if problem := badName(name); problem != "" {
		v.Errorf("%q %s", name, problem)
		return ""
	}
	return name
}

// badName returns the end of a message about what is wrong with the name of a rule or of
// a destination, or "" if it is valid.
func badName(name string) string {
	hexDigits := 0
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
			hexDigits++
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '.', c == '_', c == '-':
		default:
			return "is not a name: write letters, digits, dots, underscores and hyphens"
		}
	}
	switch {
	case name == "" || len(name) > maxName:
		return fmt.Sprintf("has %d characters: write 1 to %d", len(name), maxName)
	case len(name) == hashChars && hexDigits == hashChars:
		return "looks like the hash that names an unnamed rule: write another name"
	}
	return ""
}

// readNote reads an owner or a ticket, one line for people. Its length is bounded because
// the records of the entry or the rule contain it.
func readNote(v *strictyaml.Node) string {
	text, ok := v.Text()
	if ok && len(text) > maxNote {
		v.Errorf("has %d bytes, and stands in every record: write %d at most", len(text), maxNote)
		return ""
	}
	return text
}

func readHost(v *strictyaml.Node) allowlist.HostPattern {
	text, ok := v.Text()
	if !ok {
		return allowlist.HostPattern{}
	}
	host, err := allowlist.ParseHostPattern(text)
	switch {
	case errors.Is(err, allowlist.ErrHost):
		v.Errorf("%v: write a DNS name, *.name or **.name", err)
	case err != nil:
		v.Errorf("%v", err)
	}
	return host
}

func readPorts(v *strictyaml.Node) (allowlist.PortRange, bool) {
	text, ok := v.Text()
	if !ok {
		return allowlist.PortRange{}, false
	}
	ports, err := allowlist.ParsePortRange(text)
	if err != nil {
		v.Errorf("%v", err)
		return allowlist.PortRange{}, false
	}
	return ports, true
}

// readPrefix reads a range of addresses. An IPv4-mapped range becomes IPv4, because
// addresses are unmapped before they are compared.
func readPrefix(v *strictyaml.Node) (netip.Prefix, bool) {
	text, ok := v.Text()
	if !ok {
		return netip.Prefix{}, false
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		addr = addr.Unmap()
		if addr.Zone() != "" {
			v.Errorf("%q has a zone, which is known on one host only: write the range without it", text)
			return netip.Prefix{}, false
		}
		v.Errorf("%q is an address: write %s/%d", text, addr, addr.BitLen())
		return netip.Prefix{}, false
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		v.Errorf("%q is not a range of addresses: write one such as 10.20.0.0/16 or 2001:db8::/32, without a zone", text)
		return netip.Prefix{}, false
	}
	const mappedBits = 96 // RFC 4291 section 2.5.5.2
	if prefix.Addr().Is4In6() && prefix.Bits() >= mappedBits {
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-mappedBits)
	}
	if masked := prefix.Masked(); masked != prefix {
		v.Errorf("%q has bits beyond its length: write %s, or the whole address with /%d", text, masked, prefix.Addr().BitLen())
		return netip.Prefix{}, false
	}
	return prefix, true
}

// reportClosed adds an error at v if an allow rule for the range allows nothing.
func reportClosed(v *strictyaml.Node, prefix netip.Prefix, classes *allowlist.Classifier) {
	if why := neverOpens(prefix, classes); why != "" {
		v.Errorf("%s", why)
	}
}

// neverOpens returns a message that says why an allow rule for a range allows nothing, or
// "" if the rule may allow something.
func neverOpens(prefix netip.Prefix, classes *allowlist.Classifier) string {
	class := classes.SingleOnly(prefix)
	if class == allowlist.Invalid {
		return ""
	}
	return fmt.Sprintf("%s never opens: it lies inside %s, where only single addresses open: write each one that is meant, as /%d", prefix, class, prefix.Addr().BitLen())
}

func readTrustDomain(v *strictyaml.Node) (spiffeid.TrustDomain, bool) {
	text, ok := v.Text()
	if !ok {
		return spiffeid.TrustDomain{}, false
	}
	td, err := spiffeid.TrustDomainFromString(text)
	switch {
	case err != nil:
		v.Errorf("%q is not a trust domain: %v", text, err)
		return spiffeid.TrustDomain{}, false
	case td.Name() != text:
		v.Errorf("%q is not the name of a trust domain: write %s", text, td.Name())
		return spiffeid.TrustDomain{}, false
	}
	return td, true
}

func readMethod(v *strictyaml.Node) (string, bool) {
	text, ok := v.Text()
	if !ok {
		return "", false
	}
	switch {
	case !allowlist.IsMethod(strings.ToUpper(text)):
		v.Errorf("%q is not a method: write one such as GET", text)
	case text != strings.ToUpper(text):
		v.Errorf("methods are upper case: write %s, not %q", strings.ToUpper(text), text)
	case text == "CONNECT":
		v.Errorf("CONNECT opens a tunnel, and a rule with methods admits none: remove it")
	default:
		return text, true
	}
	return "", false
}

func readPath(v *strictyaml.Node) (allowlist.PathPattern, bool) {
	text, ok := v.Text()
	if !ok {
		return allowlist.PathPattern{}, false
	}
	path, err := allowlist.ParsePathPattern(text)
	if err != nil {
		v.Errorf("%v", err)
		return allowlist.PathPattern{}, false
	}
	return path, true
}

// readType reads a DNS query type that not every rule has.
func readType(v *strictyaml.Node) (allowlist.QueryType, bool) {
	text, ok := v.Text()
	if !ok {
		return 0, false
	}
	t, ok := allowlist.ParseQueryType(text)
	switch {
	case !ok:
		v.Errorf("%q is not a query type that a rule can add: write one of SRV, MX, TXT, NS, SOA, CAA, SVCB, NAPTR, PTR, SSHFP, TLSA and URI", text)
		return 0, false
	case t == allowlist.TypeA, t == allowlist.TypeAAAA, t == allowlist.TypeHTTPS, t == allowlist.TypeCNAME:
		v.Errorf("%s is in every rule: remove it", text)
		return 0, false
	}
	return t, true
}
