package allowlist

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// classOf returns the class in an error of CheckAddr, or Public for a nil error.
func classOf(err error) Class {
	var refused *AddrError
	switch {
	case err == nil:
		return Public
	case errors.As(err, &refused):
		return refused.Class
	}
	return Invalid
}

// TestAddressesThatARuleOpens checks to which addresses an allowed name may lead, by the
// addresses of its rule.
func TestAddressesThatARuleOpens(t *testing.T) {
	for _, row := range []struct {
		why       string
		addresses []string // addresses of the rule; nil if it has none
		addr      string
		want      Class
	}{
		{"a public address needs no range", nil, "8.8.8.8", Public},
		{"a mapped address is what it maps", nil, "::ffff:8.8.8.8", Public},
		{"NAT64 of a public address", nil, "64:ff9b::808:808", Public},
		{"a private address is closed", nil, "10.20.0.1", Private},
		{"a private address in mapped form is closed", nil, "::ffff:10.20.0.1", Private},
		{"a private address in NAT64 form is closed", nil, "64:ff9b::a14:1", Private},
		{"metadata is closed", nil, "169.254.169.254", Metadata},
		{"a zone is refused", nil, "fe80::1%eth0", Invalid},

		{"a range inside the class opens it", []string{"10.20.0.0/16"}, "10.20.0.1", Public},
		{"the whole class opens it", []string{"10.0.0.0/8"}, "10.20.0.1", Public},
		{"outside the range is closed", []string{"10.20.0.0/16"}, "10.21.0.1", Private},
		{"ranges are exhaustive", []string{"10.20.0.0/16"}, "8.8.8.8", OutsideRule},
		{"no range at all admits nothing", []string{}, "8.8.8.8", OutsideRule},
		{"a range written in mapped form", []string{"::ffff:10.20.0.0/112"}, "10.20.0.1", Public},
		{"a wider range than the class opens nothing", []string{"8.0.0.0/5"}, "10.20.0.1", Private},
		{"a wider range than the class does not hide a good one", []string{"0.0.0.0/0", "10.20.0.0/16"}, "10.20.0.1", Public},
		{"an own address in an open range stays closed", []string{"10.0.0.0/8"}, "10.1.2.3", OwnAddress},
		{"an own address opens by a range of its own", []string{"10.1.2.3/32"}, "10.1.2.3", Public},
		{"an IPv4 range does not open NAT64", []string{"10.20.0.0/16"}, "64:ff9b::a14:1", Private},
		{"a NAT64 range inside the class", []string{"64:ff9b::a14:0/112"}, "64:ff9b::a14:1", Public},

		{"all of IPv4 opens no loopback", []string{"0.0.0.0/0"}, "127.0.0.1", Loopback},
		{"all of IPv4 opens no private address", []string{"0.0.0.0/0"}, "10.0.0.1", Private},
		{"all of IPv4 opens no metadata address", []string{"0.0.0.0/0"}, "169.254.169.254", Metadata},
		{"all of IPv4 does not open Azure's wireserver", []string{"0.0.0.0/0"}, "168.63.129.16", Metadata},
		{"all of IPv6 opens no unique local address", []string{"::/0"}, "fd00::1", Private},
		{"all of IPv6 does not open ::1", []string{"::/0"}, "::1", Loopback},
		{"all of IPv6 does not open the unspecified address, which is this host", []string{"::/0"}, "::", OwnListener},
		{"all of IPv6 opens no ISATAP address", []string{"::/0"}, "2606:4700::5efe:10.0.0.1", Transition},
		{"all of IPv6 opens no 6to4 address", []string{"::/0"}, "2002:a00:1::", Transition},
		{"all of IPv6 opens no private address in NAT64 form", []string{"::/0", "64:ff9b::/96"}, "64:ff9b::a00:1", Private},
		{"all of IPv6 opens a public address", []string{"::/0"}, "2606:4700::1", Public},

		{"a loopback range does not open loopback", []string{"127.0.0.0/8"}, "127.0.0.1", Loopback},
		{"a range of two loopback addresses does not open loopback", []string{"127.0.0.0/31"}, "127.0.0.1", Loopback},
		{"one loopback address opens itself", []string{"127.0.0.1/32"}, "127.0.0.1", Public},
		{"a link-local range does not open link-local", []string{"169.254.0.0/16"}, "169.254.1.1", LinkLocal},
		{"one link-local address opens itself", []string{"169.254.1.1/32"}, "169.254.1.1", Public},
		{"a link-local range does not open metadata", []string{"169.254.0.0/16"}, "169.254.169.254", Metadata},
		{"one metadata address opens itself", []string{"169.254.169.254/32"}, "169.254.169.254", Public},
		{"a range of shared space does not open the metadata address in it", []string{"100.64.0.0/10"}, "100.100.100.200", Metadata},
		{"a range of two addresses does not open the metadata address in it", []string{"100.100.100.200/31"}, "100.100.100.200", Metadata},
		{"a range of shared space opens the address next to the metadata address", []string{"100.64.0.0/10"}, "100.100.100.201", Public},
		{"a range of unique local addresses does not open the metadata address in it", []string{"fd00::/8"}, "fd00:ec2::254", Metadata},
		{"a range of reserved addresses does not open broadcast", []string{"240.0.0.0/4"}, "255.255.255.255", Broadcast},
		{"documentation opens by a range", []string{"203.0.113.0/24"}, "203.0.113.7", Public},
		{"a range does not open an ISATAP address in it", []string{"2606:4700::/64"}, "2606:4700::5efe:a00:1", Transition},
		{"multicast opens by a range", []string{"224.0.0.0/24"}, "224.0.0.1", Public},
		{"a listener never opens", []string{"10.1.2.3/32", "10.1.2.4/32"}, "10.1.2.4", OwnListener},
	} {
		t.Run(row.why, func(t *testing.T) {
			r := rule("api.example")
			if row.addresses != nil {
				r = rule("api.example", addresses(row.addresses...))
			}
			p := policyOf(t, entryOf(checkout, allow(r))).WithClassifier(NewClassifier(Local{
				Addresses: []netip.Addr{netip.MustParseAddr("10.1.2.3")},
				Listeners: []netip.AddrPort{netip.MustParseAddrPort("10.1.2.4:443")},
			}))
			d := p.Decide(tunnel(checkout, "api.example:443"))
			if !d.Allowed() {
				t.Fatalf("the name is not allowed: %s", d.Reason)
			}
			err := d.CheckAddr(netip.AddrPortFrom(netip.MustParseAddr(row.addr), 443))
			if got := classOf(err); got != row.want {
				t.Errorf("CheckAddr(%s) under %v = %s, want %s", row.addr, row.addresses, got, row.want)
			}
			if err != nil && !strings.Contains(err.Error(), row.want.String()) {
				t.Errorf("error %q does not name the class", err)
			}
		})
	}
}

// TestAddressLiterals checks the decision on a destination that is an address.
func TestAddressLiterals(t *testing.T) {
	for _, row := range []struct {
		why, cidr, dest, want string
	}{
		{"IPv4 under its range", "8.8.8.0/24", "8.8.8.8:443", "allow"},
		{"IPv6 under its range", "2606:4700::/32", "[2606:4700:4700::1111]:443", "allow"},
		{"a mapped literal under an IPv4 rule", "8.8.8.8/32", "[::ffff:8.8.8.8]:443", "allow"},
		{"a literal under a rule in mapped form", "::ffff:8.8.8.8/128", "8.8.8.8:443", "allow"},
		{"host bits in a rule do not matter", "8.8.8.8/24", "8.8.8.9:443", "allow"},
		{"outside the range", "8.8.8.0/24", "8.8.9.8:443", "ip-not-on-allowlist"},
		{"another port", "8.8.8.0/24", "8.8.8.8:80", "port-not-allowed"},
		{"a public address under all of IPv4", "0.0.0.0/0", "8.8.8.8:443", "allow"},
		{"loopback under all of IPv4", "0.0.0.0/0", "127.0.0.1:443", "resolved-address-denied"},
		{"IPv6 under all of IPv4", "0.0.0.0/0", "[2606:4700::1]:443", "ip-not-on-allowlist"},
		{"loopback by itself", "127.0.0.1/32", "127.0.0.1:443", "allow"},
		{"private by a range inside", "10.20.0.0/16", "10.20.9.9:443", "allow"},
		{"an own listener by itself", "10.1.2.4/32", "10.1.2.4:443", "resolved-address-denied"},
		{"::1 under all of IPv6", "::/0", "[::1]:443", "resolved-address-denied"},
		{"NAT64 of a public address", "::/0", "[64:ff9b::808:808]:443", "allow"},
		{"NAT64 of a private one", "::/0", "[64:ff9b::a00:1]:443", "resolved-address-denied"},
	} {
		p := policyOf(t, entryOf(checkout, allow(rule(row.cidr)))).WithClassifier(NewClassifier(Local{
			Listeners: []netip.AddrPort{netip.MustParseAddrPort("10.1.2.4:443")},
		}))
		d := p.Decide(tunnel(checkout, row.dest))
		if got := answer(d); got != row.want {
			t.Errorf("%s: %s under %s: %s, want %s", row.why, row.dest, row.cidr, got, row.want)
		}
		if (d.Reason == ResolvedAddressDenied) != (d.Class != Invalid) {
			t.Errorf("%s: reason %s with class %s", row.why, d.Reason, d.Class)
		}
		if d.Allowed() && classOf(d.CheckAddr(netip.MustParseAddrPort("8.8.4.4:443"))) != NotDestination {
			t.Errorf("%s: another address is admitted", row.why)
		}
	}
}

// TestCheckAddrNeedsAnAllowedDecision checks that CheckAddr refuses every address unless
// the decision is that of a policy and allows the request.
func TestCheckAddrNeedsAnAllowedDecision(t *testing.T) {
	public := netip.MustParseAddrPort("8.8.8.8:443")
	p := policyOf(t, entryOf(checkout, allow(rule("api.example"))))
	allowed := p.Decide(tunnel(checkout, "api.example:443"))
	failed := allowed
	failed.Verdict = Fail
	for why, d := range map[string]Decision{
		"the zero decision":            {},
		"a verdict without a policy":   {Outcome: Outcome{Verdict: Allow}, Request: Request{Dest: must(ParseDestination("api.example:443"))}},
		"a denial":                     p.Decide(tunnel(checkout, "other.example:443")),
		"an unknown identity":          p.Decide(tunnel(builder, "api.example:443")),
		"no policy":                    (*Policy)(nil).Decide(tunnel(checkout, "api.example:443")),
		"a decision that failed since": failed,
	} {
		if got := classOf(d.CheckAddr(public)); got != Invalid {
			t.Errorf("%s: CheckAddr = %s, want invalid", why, got)
		}
	}
	if got := classOf(allowed.CheckAddr(netip.MustParseAddrPort("8.8.8.8:80"))); got != NotDestination {
		t.Errorf("another port than the destination's: %s, want not-destination", got)
	}
	if got := classOf(allowed.CheckAddr(netip.AddrPort{})); got != Invalid {
		t.Errorf("no address: %s, want invalid", got)
	}
}

// TestDenyRulesCoverResolvedAddresses checks that deny rules for ranges of addresses
// apply to the addresses of allowed names.
func TestDenyRulesCoverResolvedAddresses(t *testing.T) {
	p := policyOf(t,
		entryOf(checkout,
			allow(rule("api.example port 443,80", addresses("10.20.0.0/16", "8.0.0.0/8", "64:ff9b::/96", "64:ff9b::a14:0/112"))),
			deny(rule("10.20.9.0/24", named("no-nine")), rule("8.8.8.8/32 port 80"))),
		entryOf("spiffe://prod.example/**", deny(rule("8.8.4.0/24"))))
	for _, row := range []struct {
		dest, addr string
		want       Class
	}{
		{"api.example:443", "10.20.8.1", Public},
		{"api.example:443", "10.20.9.1", DenyRule},
		{"api.example:80", "10.20.9.1", DenyRule}, // a deny rule without ports covers every port
		{"api.example:443", "::ffff:10.20.9.1", DenyRule},
		{"api.example:443", "64:ff9b::a14:801", Public},
		{"api.example:443", "64:ff9b::a14:901", DenyRule}, // NAT64 reaches the same host
		{"api.example:80", "8.8.8.8", DenyRule},
		{"api.example:443", "8.8.8.8", Public},
		{"api.example:443", "8.8.4.4", DenyRule}, // denied by a less specific entry
	} {
		d := p.Decide(tunnel(checkout, row.dest))
		err := d.CheckAddr(netip.AddrPortFrom(netip.MustParseAddr(row.addr), d.Dest.Port))
		if got := classOf(err); got != row.want {
			t.Errorf("%s at %s: %s, want %s", row.dest, row.addr, got, row.want)
		}
	}
	var refused *AddrError
	err := p.Decide(tunnel(checkout, "api.example:443")).CheckAddr(netip.MustParseAddrPort("10.20.9.1:443"))
	if !errors.As(err, &refused) || refused.Rule != "no-nine" {
		t.Errorf("the error %v does not name the deny rule", err)
	}
}
