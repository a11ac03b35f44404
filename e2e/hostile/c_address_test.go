package hostile

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// special returns the cases of addresses of one class. Each address is the host of a
// request where a range with every address is allowed, and the answer for two names: the
// rule of one has no addresses, and that of the other has all.
func special(class allowlist.Class, addrs ...string) []scenario {
	var cases []scenario
	for _, text := range addrs {
		addr := netip.MustParseAddr(text)
		target := allowlist.Destination{Host: allowlist.HostOf(addr), Port: 443}
		cases = append(cases, ask{
			name: text, who: "wide", head: connectTo(target.String()), host: target.Host.String(),
			reason: allowlist.ResolvedAddressDenied, class: class,
		}.scenario())
		for _, name := range []string{"anywhere.example", "everywhere.example"} {
			cases = append(cases, resolves(name, ask{reason: allowlist.ResolvedAddressDenied, class: class, drops: 1}, answers(text)))
		}
	}
	return cases
}

// resolves returns the case of a request for a name that resolves to the sets, in turn.
func resolves(name string, a ask, sets ...answerSet) scenario {
	a.head, a.host, a.lookups = connectTo(name+port), name, 1
	title := name + " is"
	for _, set := range sets {
		title += set.String()
	}
	return scenario{name: title, run: func(t *testing.T, g *gateway) {
		g.names.say(name, sets...)
		a.run(t, g)
	}}
}

// String returns the set for the name of a case.
func (s answerSet) String() string {
	switch {
	case s.stall:
		return " never answered"
	case s.err != nil:
		return " " + s.err.Error()
	case len(s.addrs) == 0:
		return " empty"
	}
	text := ""
	for _, a := range s.addrs {
		text += " " + a.String()
	}
	return text
}

func addressRows() []row {
	return []row{
		{"C1", "this host: `0.0.0.0/8` `::`", "denied as `unspecified`", special(allowlist.Unspecified, "0.0.0.0", "0.0.0.1", "0.255.255.255", "::")},
		{"C2", "loopback: `127.0.0.0/8` `::1`", "denied as `loopback`", special(allowlist.Loopback, "127.0.0.1", "127.0.0.2", "127.255.255.255", "::1")},
		{"C3", "private: `10.0.0.0/8` `172.16.0.0/12` `192.168.0.0/16` `fc00::/7`", "denied as `private`", special(allowlist.Private,
			"10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255", "fc00::1", "fdff::1")},
		{"C4", "link-local: `169.254.0.0/16` `fe80::/10`", "denied as `link-local`", special(allowlist.LinkLocal, "169.254.0.1", "169.254.255.255", "fe80::1", "febf::1")},
		{"C5", "metadata services of clouds, also those in public and shared ranges", "denied as `metadata`", special(allowlist.Metadata,
			"169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200", "192.0.0.192", "100.96.0.96",
			"fd00:ec2::254", "fd00:ec2::23", "fd00:42::42", "fd20:ce::254", "fe80::a9fe:a9fe")},
		{"C6", "shared address space: `100.64.0.0/10`", "denied as `shared-space`", special(allowlist.SharedSpace, "100.64.0.0", "100.127.255.255")},
		{"C7", "other IPv4 addresses that are no destinations: protocol, documentation, relays, benchmarks, reserved, broadcast", "denied by class", slices.Concat(
			special(allowlist.ProtocolUse, "192.0.0.1", "192.0.0.255"),
			special(allowlist.Documentation, "192.0.2.1", "198.51.100.1", "203.0.113.255"),
			special(allowlist.Transition, "192.88.99.1"),
			special(allowlist.Benchmarking, "198.18.0.1", "198.19.255.255"),
			special(allowlist.Reserved, "240.0.0.1", "255.255.255.254"),
			special(allowlist.Broadcast, "255.255.255.255"))},
		{"C8", "multicast: `224.0.0.0/4` `ff00::/8`", "denied as `multicast`", special(allowlist.Multicast, "224.0.0.1", "239.255.255.255", "ff02::1")},
		{"C9", "IPv4-mapped: `::ffff:0:0/96`", "the class of the IPv4 address", slices.Concat(
			special(allowlist.Private, "::ffff:10.0.0.1"), special(allowlist.Metadata, "::ffff:169.254.169.254"), special(allowlist.Loopback, "::ffff:127.0.0.1"))},
		{"C10", "IPv4-compatible and IPv4-translated: `::/96` `::ffff:0:0:0/96`", "denied as `transition`", special(allowlist.Transition, "::7f00:1", "::808:808", "::ffff:0:a00:1", "::ffff:0:808:808")},
		{"C11", "NAT64: `64:ff9b::/96`", "the class of the IPv4 address inside", slices.Concat(
			special(allowlist.Loopback, "64:ff9b::7f00:1"), special(allowlist.Metadata, "64:ff9b::a9fe:a9fe"), special(allowlist.Private, "64:ff9b::a00:1"),
			[]scenario{classified("64:ff9b::808:808", allowlist.Public)})},
		{"C12", "other NAT64 prefixes", "as above where the gateway is told of the prefix, denied as `local-nat64` below `64:ff9b:1::/48`", slices.Concat(
			special(allowlist.LocalNAT64, "64:ff9b:1::a00:1", "64:ff9b:1:ffff::808:808"),
			special(allowlist.Private, "2001:470:64:ff9b::a00:1", "2001:470:65:a00:0:100::"), special(allowlist.Metadata, "2001:470:64:ff9b::a9fe:a9fe", "2001:470:65:a9fe:a9:fe00::"),
			[]scenario{classified("2001:470:64:ff9b::808:808", allowlist.Public), classified("2001:470:65:808:8:800::", allowlist.Public)})},
		{"C13", "6to4 and Teredo: `2002::/16` `2001::/32`", "denied as `transition`", special(allowlist.Transition, "2002:a00:1::1", "2002:808:808::1", "2001:0:808:808::1")},
		{"C14", "ISATAP below any prefix", "denied as `transition`", special(allowlist.Transition, "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:8.8.8.8", "2600::5efe:7f00:1")},
		{"C15", "other IPv6 addresses that are no destinations: site-local, discard, benchmarks, ORCHID, documentation, segment routing, unassigned", "denied by class", slices.Concat(
			special(allowlist.SiteLocal, "fec0::1", "feff::1"),
			special(allowlist.ProtocolUse, "100::1", "2001:10::1", "2001:20::1", "2001:1ff::1", "5f00::1"),
			special(allowlist.Benchmarking, "2001:2::1"),
			special(allowlist.Documentation, "2001:db8::1", "3fff::1"),
			special(allowlist.Reserved, "4000::1", "8000::1", "e000::1", "100:0:0:1::1"))},
		{"C16", "the gateway's own addresses and listeners", "denied as `own-address` and `own-listener`; a listener stays closed whatever a rule says", slices.Concat(
			special(allowlist.OwnAddress, ownAddress, "::ffff:"+ownAddress, "64:ff9b::5db8:d822"),
			[]scenario{
				literal("exact", "127.0.0.1:LISTENER", "127.0.0.1", allowlist.ResolvedAddressDenied, allowlist.OwnListener),
				literal("exact", "[::ffff:127.0.0.1]:LISTENER", "127.0.0.1", allowlist.ResolvedAddressDenied, allowlist.OwnListener),
				ask{
					head: connectTo("self.wild.example:LISTENER"), host: "self.wild.example", reason: allowlist.ResolvedAddressDenied,
					class: allowlist.OwnListener, drops: 1, lookups: 1,
				}.scenario(),
			})},
		{"C17", "a rule with a range that is not wholly inside the class, such as `0.0.0.0/0`; or, for loopback, link-local and metadata, that is more than one address", "the class stays closed; a policy with a range that lies wholly inside loopback, link-local or metadata and is more than one address is refused", []scenario{
			resolves("loopback.example", ask{reason: allowlist.ResolvedAddressDenied, class: allowlist.Loopback, drops: 1}, answers("127.0.0.1")),
			opensOnly("10.1.2.3", []string{"10.1.2.3/32", "10.1.0.0/16", "10.0.0.0/8"}, []string{"8.0.0.0/5", "0.0.0.0/0"}),
			opensOnly("127.0.0.1", []string{"127.0.0.1/32"}, []string{"126.0.0.0/7", "0.0.0.0/0"}),
			neverLoads("127.0.0.0/31", "127.0.0.0/8", "::ffff:127.0.0.0/104", "64:ff9b::7f00:0/104"),
			opensOnly("169.254.169.254", []string{"169.254.169.254/32"}, []string{"168.0.0.0/6"}),
			opensOnly("169.254.1.1", []string{"169.254.1.1/32"}, []string{"168.0.0.0/6"}),
			neverLoads("169.254.169.0/24", "169.254.169.254/31", "169.254.1.0/24", "169.254.0.0/16", "0.0.0.0/8"),
			opensOnly("100.64.0.1", []string{"100.64.0.0/10"}, []string{"100.0.0.0/8"}),
			opensOnly("fd00::1", []string{"fd00::1/128", "fd00::/8", "fc00::/7"}, []string{"f800::/5", "::/0"}),
			opensOnly("fe80::1", []string{"fe80::1/128"}, []string{"fe00::/8"}),
			neverLoads("fe80::/10", "fe80::/64", "fe80::a9fe:a9fe/127"),
			opensOnly("64:ff9b::a00:1", []string{"64:ff9b::a00:0/104"}, []string{"64:ff9b::/96", "::/0"}),
			opensOnly("8.8.8.8", []string{"8.8.8.8/32", "0.0.0.0/0"}, []string{"9.9.9.9/32"}),
		}},
		{"C18", "a name with public and private addresses", "only what is permitted is dialled, and the record counts what was dropped", []scenario{
			resolves("allowed.example", ask{class: allowlist.Private, drops: 1, dials: 1}, answers("10.0.0.1", "127.0.0.1")),
			resolves("allowed.example", ask{class: allowlist.Metadata, drops: 3, dials: 1}, answers("127.0.0.2", "10.0.0.1", "127.0.0.1", "169.254.169.254")),
			resolves("allowed.example", ask{dials: 1}, answers("127.0.0.1", "127.0.0.1", "::ffff:127.0.0.1")),
		}},
		{"C19", "a name with denied addresses only", "denied", []scenario{
			resolves("anywhere.example", ask{reason: allowlist.ResolvedAddressDenied, class: allowlist.Metadata, drops: 2}, answers("10.0.0.1", "169.254.169.254")),
			resolves("allowed.example", ask{reason: allowlist.ResolvedAddressDenied, class: allowlist.OutsideRule, drops: 1}, answers("8.8.8.8")),
			resolves("allowed.example", ask{reason: allowlist.ResolvedAddressDenied, class: allowlist.Loopback, drops: 1}, answers("127.0.0.2")),
		}},
		{"C20", "no answer: an empty one, no such name, a server that fails, a time-out", "502 or 504, never recorded as allowed", []scenario{
			resolves("allowed.example", ask{reason: allowlist.ResolveFailed}, answers()),
			resolves("allowed.example", ask{reason: allowlist.ResolveFailed}, answerSet{err: &net.DNSError{Err: "no such host", IsNotFound: true}}),
			resolves("allowed.example", ask{reason: allowlist.ResolveFailed}, answerSet{err: &net.DNSError{Err: "server misbehaving", IsTemporary: true}}),
			resolves("allowed.example", ask{reason: allowlist.ResolveTimeout}, answerSet{err: os.ErrDeadlineExceeded}),
			resolves("allowed.example", ask{reason: allowlist.ResolveTimeout}, answerSet{err: context.DeadlineExceeded}),
		}},
		{"C21", "a name server whose first answer is permitted and whose second one is not, or the other way round", "one lookup, and the address that was checked is dialled", []scenario{
			resolves("allowed.example", ask{dials: 1}, answers("127.0.0.1"), answers("127.0.0.2")),
			resolves("allowed.example", ask{reason: allowlist.ResolvedAddressDenied, class: allowlist.Loopback, drops: 1}, answers("127.0.0.2"), answers("127.0.0.1")),
		}},
		{"C22", "an allowed name that resolves to a metadata address", "denied by class, although the name is allowed", []scenario{
			resolves("anywhere.example", ask{reason: allowlist.ResolvedAddressDenied, class: allowlist.Metadata, drops: 1}, answers("169.254.169.254")),
			resolves("a.wild.example", ask{reason: allowlist.ResolvedAddressDenied, class: allowlist.Metadata, drops: 1}, answers("fd00:ec2::254")),
		}},
		{"C23", "an allowed name that resolves into a range under `deny`", "denied as `deny-rule`", []scenario{
			resolves("allowed.example", ask{who: "fenced", reason: allowlist.ResolvedAddressDenied, class: allowlist.DenyRule, drops: 1}, answers("127.0.0.1")),
			resolves("allowed.example", ask{who: "fenced", reason: allowlist.ResolvedAddressDenied, class: allowlist.DenyRule, drops: 1}, answers("64:ff9b::7f00:1")),
		}},
		{"C24", "a new policy that comes during the lookup and no longer permits the address", "denied, and the origin sees no byte", []scenario{
			{name: "held.example without its addresses", run: func(t *testing.T, g *gateway) {
				g.names.say("held.example", answers("127.0.0.1"))
				c := g.call(t, "builder")
				c.send(t, g.fill(connectTo("held.example"+port))+"early")
				<-g.names.asked
				g.put(t, g.fill("version: 1\nidentities:\n  - id: "+id("builder")+"\n    allow: [{host: held.example, ports: [PORT]}]\n"))
				g.names.answer <- struct{}{}
				if got := c.answer(t); got.reason() != "resolved-address-denied" {
					t.Errorf("answered %s", got.phrase)
				}
				if r := g.next(t, audit.EventDecision); r.Verdict != "deny" || r.AddressClass != "loopback" || r.Generation != 2 {
					t.Errorf("record %+v", r)
				}
				c.gone(t)
				for _, conn := range g.origin.rest(t) {
					if got := readAll(t, conn); got != "" {
						t.Errorf("the origin got %q", got)
					}
				}
				g.put(t, g.policy())
			}},
		}},
		{"C25", "a plain request that could reuse another identity's connection, from an identity that may not reach the address of that connection", "denied, and the origin sees no byte of it", []scenario{{name: "a warm connection", run: warmed}}},
	}
}

// classified returns the case of a public address. It checks the decision itself, because
// a request would send packets to the address.
func classified(text string, want allowlist.Class) scenario {
	return scenario{name: text + " is " + want.String(), only: noWire, run: func(t *testing.T, g *gateway) {
		addr := netip.MustParseAddr(text)
		d := g.decide("wide", allowlist.Destination{Host: allowlist.HostOf(addr), Port: 443})
		if err := d.CheckAddr(netip.AddrPortFrom(addr, 443)); err != nil {
			t.Errorf("CheckAddr says %v, want %s", err, want)
		}
	}}
}

func (g *gateway) decide(who string, dest allowlist.Destination) allowlist.Decision {
	return g.running.State().Decide(allowlist.Request{
		ID: spiffeid.RequireFromString(id(who)), Proof: allowlist.ProofX509SVID, Dest: dest, Time: time.Now(),
	})
}

// opensOnly returns a case that checks which ranges of a rule allow an address, and which
// do not.
func opensOnly(text string, opening, closed []string) scenario {
	return scenario{name: "what opens " + text, only: noWire, run: func(t *testing.T, _ *gateway) {
		addr := netip.AddrPortFrom(netip.MustParseAddr(text), 443)
		for i, cidr := range slices.Concat(opening, closed) {
			policy := load(t, addressPolicy(cidr)).WithClassifier(allowlist.NewClassifier(allowlist.Local{}))
			d := policy.Decide(allowlist.Request{
				ID: spiffeid.RequireFromString(id("builder")), Proof: allowlist.ProofX509SVID, Time: time.Now(),
				Dest: allowlist.Destination{Host: mustHost("allowed.example"), Port: 443},
			})
			if err := d.CheckAddr(addr); (err == nil) != (i < len(opening)) {
				t.Errorf("addresses: %s gives %v", cidr, err)
			}
		}
	}}
}

func mustHost(text string) allowlist.Host {
	h, err := allowlist.ParseHost(text)
	if err != nil {
		panic(err) // the text is a constant of a test
	}
	return h
}

// addressPolicy returns a policy with one rule, which allows that range of addresses.
func addressPolicy(cidr string) string {
	return "version: 1\nidentities:\n  - id: " + id("builder") + "\n    allow: [{host: allowed.example, addresses: \"" + cidr + "\"}]\n"
}

// neverLoads returns a case that checks ranges which an allow rule may not have but a
// deny rule may.
func neverLoads(ranges ...string) scenario {
	return scenario{name: "no policy allows " + strings.Join(ranges, ", "), only: noWire, run: func(t *testing.T, _ *gateway) {
		for _, cidr := range ranges {
			literal := "version: 1\nidentities:\n  - id: " + id("builder") + "\n    allow: [{cidr: \"" + cidr + "\"}]\n"
			for _, text := range []string{addressPolicy(cidr), literal} {
				if _, err := parsePolicy(text); err == nil || !strings.Contains(err.Error(), "only single addresses open") {
					t.Errorf("%s: the policy is refused by %v", cidr, err)
				}
			}
			if _, err := parsePolicy(strings.Replace(literal, "allow", "deny", 1)); err != nil {
				t.Errorf("%s: to deny it is refused: %v", cidr, err)
			}
		}
	}}
}
