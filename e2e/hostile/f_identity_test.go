package hostile

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
)

// shows is a good request with a certificate that is not accepted.
func shows(name string, reason allowlist.Reason, certificate func(t *testing.T, g *gateway) tls.Certificate) scenario {
	return ask{name: name, shows: certificate, head: connectTo("allowed.example:PORT"), reason: reason, host: "allowed.example"}.scenario()
}

// issued shows a certificate of the trusted authority.
func issued(name string, reason allowlist.Reason, change ...func(*x509.Certificate)) scenario {
	return shows(name, reason, func(t *testing.T, g *gateway) tls.Certificate {
		t.Helper()
		return g.ca.issue(t, change...)
	})
}

// ids are certificates of the trusted authority that are good but for the ID.
func ids(reason allowlist.Reason, all ...string) []scenario {
	var cases []scenario
	for _, text := range all {
		cases = append(cases, issued(text[:min(len(text), 60)], reason, withURIs(text)))
	}
	return cases
}

// foreign shows a certificate that another authority has signed.
func foreign(name string, reason allowlist.Reason, change ...func(*x509.Certificate)) scenario {
	return shows(name, reason, func(t *testing.T, _ *gateway) tls.Certificate {
		t.Helper()
		return newAuthority(t).issue(t, change...)
	})
}

func identityRows() []row {
	const (
		invalid   = allowlist.IdentityInvalid
		untrusted = allowlist.IdentityUntrusted
	)
	builder := withURIs(id("builder"))
	return []row{
		{"F1", "no certificate", "407 `identity-missing`: a certificate is asked for, never demanded", []scenario{
			ask{name: "none", who: nobody, head: connectTo("allowed.example:PORT"), reason: allowlist.IdentityMissing, host: "allowed.example"}.scenario(),
		}},
		{"F2", "a certificate that nobody trusted has signed, whatever it says", "407 `identity-untrusted`", []scenario{
			shows("self-signed", untrusted, func(t *testing.T, _ *gateway) tls.Certificate {
				t.Helper()
				return selfSigned(t, builder)
			}),
			foreign("of another authority", untrusted, builder),
			foreign("of another authority, and expired", untrusted, builder, valid(-2*time.Hour, -time.Hour)),
			issued("of another trust domain", untrusted, withURIs("spiffe://other.example/builder")),
		}},
		{"F3", "a certificate that has expired, or is not valid yet", "407 `identity-expired`, `identity-invalid`", []scenario{
			issued("expired", allowlist.IdentityExpired, builder, valid(-2*time.Hour, -time.Hour)),
			issued("not yet valid", invalid, builder, valid(time.Hour, 2*time.Hour)),
		}},
		{"F4", "a certificate for another use: servers, code signing, an authority", "407 `identity-invalid`", []scenario{
			issued("for servers", invalid, builder, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
			issued("for code signing", invalid, builder, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }),
			issued("CA:TRUE", invalid, builder, func(c *x509.Certificate) { c.IsCA = true }),
			issued("that may sign certificates", invalid, builder, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }),
		}},
		{"F5", "no URI among the names, or two; an ID in a DNS name, a common name or an organizational unit", "407 `identity-invalid`: an identity is the one URI", []scenario{
			issued("no name", invalid),
			issued("a DNS name only", invalid, withDNS("builder.test.example")),
			issued("an ID as DNS name", invalid, withDNS(id("builder"))),
			issued("two IDs", invalid, withURIs(id("builder"), id("wide"))),
			issued("the same ID twice", invalid, withURIs(id("builder"), id("builder"))),
			issued("an ID in the common name", invalid, func(c *x509.Certificate) { c.Subject.CommonName = id("builder") }),
			issued("an ID in an organizational unit", invalid, func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{id("builder")} }),
		}},
		{"F6", "a certificate that the client happened to have", "407", []scenario{
			foreign("for e-mail", invalid, func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "alice"} }),
			foreign("of a web server", invalid, withDNS("www.example")),
		}},
		{"F7", "IDs that are not canonical: upper case in scheme or trust domain, a port, a query, a fragment, userinfo, dot segments, `//`, a final slash, escapes, other bytes, over 2,048 bytes, a trust domain alone", "407 `identity-invalid`", ids(invalid,
			"SPIFFE://test.example/builder", "spiffe://Test.example/builder", "spiffe://test.example:443/builder", "spiffe://test.example/builder?", "spiffe://test.example/builder?a=b",
			"spiffe://test.example/builder#", "spiffe://test.example/builder#a", "spiffe://u@test.example/builder", "spiffe://@test.example/builder", "spiffe://test.example/./builder",
			"spiffe://test.example/x/../builder", "spiffe://test.example//builder", "spiffe://test.example/builder/", "spiffe://test.example/%62uilder", "spiffe://test.example/ns%2fa",
			"spiffe://test.example/builder%00", "spiffe://test.example/a|b", "spiffe://test.example/a%0ab", "https://test.example/builder", "spiffe://test.example",
			"spiffe://test.example/"+strings.Repeat("a", 2049-22), "spiffe://test.example/"+strings.Repeat("|", 20_000))},
		{"F8", "a certificate that no library reads, or TLS before 1.3", "the handshake fails, and is recorded", []scenario{
			fails("an ID with a broken escape", func(t *testing.T, g *gateway) tls.Certificate {
				t.Helper()
				return g.ca.issue(t, withURIs("spiffe://test.example/%zz"))
			}),
			fails("an ID beyond ASCII", func(t *testing.T, g *gateway) tls.Certificate {
				t.Helper()
				return g.ca.issue(t, withURIs("spiffe://test.example/b\u00fcilder"))
			}),
			fails("no certificate but random bytes", func(t *testing.T, g *gateway) tls.Certificate {
				t.Helper()
				good := g.ca.issue(t, builder)
				return tls.Certificate{Certificate: [][]byte{[]byte("nothing that parses")}, PrivateKey: good.PrivateKey, Leaf: good.Leaf}
			}),
			{"TLS 1.2", oldTLS},
		}},
		{"F9", "an accepted identity without an entry in the policy", "403 `identity-unknown`", slices.Concat(
			ids(allowlist.IdentityUnknown, id("stranger"), id("Builder"), id(strings.Repeat("a", 2048-22))),
			[]scenario{shows("quarantined", allowlist.QuarantinedIdentity, func(t *testing.T, g *gateway) tls.Certificate {
				t.Helper()
				return g.ca.svid(t, "legacy")
			})})},
		{"F10", "IDs and trust domains that begin or end like one with an entry", "no match", slices.Concat(
			ids(allowlist.IdentityUnknown, id("ns/ab"), id("ns/a/b"), id("ns"), id("ns/one"), id("ns/one/b/c"), id("ns/ones/b"), id("builder2")),
			ids(untrusted, "spiffe://test.example.evil/builder", "spiffe://evil.test.example/builder", "spiffe://est.example/builder"),
			[]scenario{{"and the pattern itself matches", func(t *testing.T, g *gateway) {
				for _, name := range []string{"ns/a", "ns/one/b"} {
					ask{who: name, head: connectTo("allowed.example:PORT"), host: "allowed.example", lookups: 1, dials: 1}.run(t, g)
				}
			}}})},
		{"F11", "an authority that was taken out of the bundle", "refused at once: new handshakes, resumed sessions, open tunnels", []scenario{{"rolled", rolled}}},
		{"F12", "an identity of 2 kB in records and answers", "bounded: the answer's sentence has at most 200 bytes", []scenario{{"2,048 bytes", longIdentity}}},
		{"F13", "what real clients do: HTTP/1.0 without Host, a Host without the port, no server name or that of the target to the gateway, `h2` in ALPN and then HTTP/1.1", "it works", []scenario{
			opens("CONNECT allowed.example:PORT HTTP/1.0\r\n\r\n", "allowed.example"),
			real("no server name", func(c *tls.Config) { c.ServerName = "" }),
			real("the target's server name", func(c *tls.Config) { c.ServerName = "allowed.example" }),
			real("an address as server name", func(c *tls.Config) { c.ServerName = "127.0.0.1" }),
			real("h2 only in ALPN", func(c *tls.Config) { c.NextProtos = []string{"h2"} }),
			real("no ALPN", func(c *tls.Config) { c.NextProtos = nil }),
		}},
		{"F14", "a PROXY protocol header: from a peer that may not send one; from one that must, none, two, or garbage", "the connection closes, and a record says so; a good one tells the caller's address, never its identity", proxiedCases()},
		{"F15", "an observing pattern, or an observing `everyone`, above an entry that has a list of its own", "403 `not-on-allowlist`, unless the entry says `mode: inherit`; an entry that only denies is observed", []scenario{
			below("an exact entry", false, "- {id: ID, allow: [{host: only.example}]}", "- {id: PATTERN, OBSERVE}"),
			below("an exact entry, where the pattern has a list too", false, "- {id: ID, allow: [{host: only.example}]}", "- {id: PATTERN, OBSERVE, allow: [{host: more.example}]}"),
			below("an exact entry with a name to resolve", false, "- {id: ID, allow: [{host: _sip.example, dns: SRV, tunnel: false}]}", "- {id: PATTERN, OBSERVE}"),
			below("an exact entry with an empty list", false, "- {id: ID, allow: []}", "- {id: PATTERN, OBSERVE}"),
			below("an exact entry below everyone", false, "- {id: ID, allow: [{host: only.example}]}", "everyone: {OBSERVE}"),
			below("a pattern below everyone", false, "- {id: PATTERN, allow: [{host: only.example}]}", "everyone: {OBSERVE, unlisted: true}"),
			below("an entry that inherits from one that enforces", false, "- {id: ID, mode: inherit, allow: [{host: only.example}]}", "- {id: PATTERN, allow: [{host: only.example}]}", "everyone: {OBSERVE}"),
			below("an entry that inherits", true, "- {id: ID, mode: inherit, allow: [{host: only.example}]}", "- {id: PATTERN, OBSERVE}"),
			below("an entry that denies", true, "- {id: ID, deny: [{host: bad.example}]}", "- {id: PATTERN, OBSERVE}"),
			below("an entry without rules", true, "- {id: ID, owner: team-ci, limits: {tunnels: 9}}", "everyone: {OBSERVE}"),
		}},
	}
}

// below is a request for a name that no entry lists, under a policy of its own.
// Where it is observed, the name is looked up and its address refused, for that
// is loopback.
func below(name string, observed bool, parts ...string) scenario {
	text := "version: 1\nidentities:\n"
	for _, part := range parts {
		if everyone, ok := strings.CutPrefix(part, "everyone"); ok {
			text = "everyone" + everyone + "\n" + text
		} else {
			text += part + "\n"
		}
	}
	text = strings.NewReplacer("ID", id("builder"), "PATTERN", `"`+id("**")+`"`, "OBSERVE", "mode: observe, observe_until: 2100-01-01").Replace(text)
	a := ask{head: connectTo("other.example:PORT"), host: "other.example", reason: allowlist.NotOnAllowlist}
	if observed {
		a.reason, a.class, a.drops, a.lookups = allowlist.ResolvedAddressDenied, allowlist.Loopback, 1, 1
	}
	return scenario{name, func(t *testing.T, g *gateway) {
		g.put(t, text)
		a.run(t, g)
		g.put(t, g.policy())
	}}
}

// fails is a handshake that dies inside the TLS library.
func fails(name string, certificate func(t *testing.T, g *gateway) tls.Certificate) scenario {
	return scenario{name, func(t *testing.T, g *gateway) {
		before := g.counts()
		c, err := g.tryCallWith(t, certificate(t, g))
		if err == nil {
			_, _ = c.Write([]byte(g.fill(connectTo("allowed.example:PORT"))))
			c.gone(t)
		}
		r := g.next(t, audit.EventHandshake)
		if r.Reason != allowlist.TLSHandshakeFailed.String() || r.Client == "" {
			t.Errorf("record %+v", r)
		}
		if g.counts() != before {
			t.Error("a lookup or a dial for a failed handshake")
		}
	}}
}

func oldTLS(t *testing.T, g *gateway) {
	_, err := g.tryCallWith(t, g.ca.svid(t, "builder"), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
	if err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	if r := g.next(t, audit.EventHandshake); r.Reason != allowlist.TLSHandshakeFailed.String() {
		t.Errorf("record %+v", r)
	}
}

// rolled takes the authority away while a tunnel is open and a client holds a
// session.
func rolled(t *testing.T, _ *gateway) {
	g := newGateway(t, options{})
	sessions := tls.NewLRUClientSessionCache(1)
	resuming := func(c *tls.Config) { c.ClientSessionCache, c.ServerName = sessions, "gateway" }
	connect := g.fill(connectTo("allowed.example:PORT"))
	first := g.callWith(t, g.ca.svid(t, "builder"), resuming)
	if got := first.ask(t, connect); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	o := g.origin.next(t)

	old := g.ca.svid(t, "builder")
	g.ca = newAuthority(t)
	g.identity.Set(g.ca.snapshot(t, 2))
	g.identity.Tell()
	first.gone(t)
	_ = o.Close()
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "revoked" || r.Reason != "identity-untrusted" {
		t.Errorf("record %+v", r)
	}
	for range 2 {
		c := g.callWith(t, old, resuming)
		if c.Conn.(*tls.Conn).ConnectionState().DidResume {
			t.Error("the session was resumed")
		}
		if got := c.ask(t, connect); got.reason() != "identity-untrusted" {
			t.Errorf("answered %s", got.phrase)
		}
		_ = c.Close()
		g.next(t, audit.EventDecision)
	}
}

func longIdentity(t *testing.T, g *gateway) {
	long := id(strings.Repeat("a", 2048-22))
	c := g.callWith(t, g.ca.issue(t, withURIs(long)))
	got := c.ask(t, g.fill(connectTo("allowed.example:PORT")))
	if got.reason() != "identity-unknown" || len(got.phrase) > 204 {
		t.Errorf("answered %d bytes: %s", len(got.phrase), got.phrase)
	}
	for field, values := range got.header {
		if len(values[0]) > 4096 || strings.ContainsAny(values[0], "\r\n") {
			t.Errorf("%s has %d bytes", field, len(values[0]))
		}
	}
	if r := g.next(t, audit.EventDecision); r.Identity != long || len(r.Line) > 8<<10 {
		t.Errorf("a record of %d bytes for %.40q", len(r.Line), r.Identity)
	}
	c.gone(t)
}

// real is a good request after a handshake of another kind.
func real(name string, change func(*tls.Config)) scenario {
	return scenario{name, func(t *testing.T, g *gateway) {
		c := g.callWith(t, g.ca.svid(t, "builder"), change)
		ask{head: connectTo("allowed.example:PORT"), host: "allowed.example", lookups: 1, dials: 1}.on(t, g, c)
	}}
}

// proxiedCases are connections through a load balancer, or not.
func proxiedCases() []scenario {
	const v1 = "PROXY TCP4 198.51.100.7 192.0.2.1 4711 443\r\n"
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + "\xc6\x33\x64\x07" + "\xc0\x00\x02\x01" + "\x12\x67\x01\xbb"
	cases := []scenario{
		{"version 1, from anybody", func(t *testing.T, g *gateway) { unwanted(t, g, v1) }},
		{"version 2, from anybody", func(t *testing.T, g *gateway) { unwanted(t, g, v2) }},
	}
	for name, header := range map[string]string{"version 1": v1, "version 2": v2} {
		cases = append(cases, scenario{name + ", from a load balancer", func(t *testing.T, _ *gateway) { balanced(t, header) }})
	}
	for name, header := range map[string]string{
		"none": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "a request": "CONNECT allowed.example:443 HTTP/1.1\r\n\r\n", "one that is too long": "PROXY TCP4 " + strings.Repeat("1", 200) + "\r\n",
		"one without an address": "PROXY TCP4\r\n", "an address that is none": "PROXY TCP4 198.51.100.777 192.0.2.1 4711 443\r\n", "one that is cut short": v2[:20], "version 2 of 64 kB": v2[:14] + "\xff\xff" + strings.Repeat("a", 1<<10),
		"a unix socket": v2[:13] + "\x31" + v2[14:],
	} {
		cases = append(cases, scenario{name + ", from a load balancer", func(t *testing.T, _ *gateway) { unbalanced(t, header) }})
	}
	slices.SortFunc(cases, func(a, b scenario) int { return strings.Compare(a.name, b.name) })
	return append(cases, scenario{"two, from a load balancer", func(t *testing.T, _ *gateway) { balancedTwice(t, v1) }})
}

// unwanted sends a header where a handshake should begin.
func unwanted(t *testing.T, g *gateway, header string) {
	conn := g.connect(t, g.secure)
	_, _ = conn.Write([]byte(header))
	_, _ = io.Copy(io.Discard, conn)
	if r := g.next(t, audit.EventHandshake); r.Reason != allowlist.TLSHandshakeFailed.String() || strings.HasPrefix(r.Client, "198.") {
		t.Errorf("record %+v", r)
	}
}

// loadBalanced is a gateway that expects headers from loopback, and takes no
// longer than that for them.
func loadBalanced(t *testing.T) *gateway {
	t.Helper()
	return newGateway(t, options{proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, config: gw.Config{HandshakeTimeout: 500 * time.Millisecond}})
}

func balanced(t *testing.T, header string) {
	g := loadBalanced(t)
	conn := g.connect(t, g.secure)
	_, _ = conn.Write([]byte(header))
	c := g.secureOver(t, conn, g.ca.svid(t, "builder"))
	if got := c.ask(t, g.fill(connectTo("allowed.example:PORT"))); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Client != "198.51.100.7:4711" || r.Identity != id("builder") {
		t.Errorf("record %+v", r)
	}
	g.finish(t, c, g.origin)
}

func unbalanced(t *testing.T, header string) {
	g := loadBalanced(t)
	conn := g.connect(t, g.secure)
	_, _ = conn.Write([]byte(header))
	_, _ = io.Copy(io.Discard, conn)
	if r := g.next(t, audit.EventHandshake); r.Reason != allowlist.MalformedHeader.String() || !strings.HasPrefix(r.Client, "127.0.0.1:") {
		t.Errorf("record %+v", r)
	}
}

// balancedTwice sends a second header, which is where the handshake begins.
func balancedTwice(t *testing.T, header string) {
	g := loadBalanced(t)
	conn := g.connect(t, g.secure)
	_, _ = conn.Write([]byte(header + header))
	_, _ = io.Copy(io.Discard, conn)
	if r := g.next(t, audit.EventHandshake); r.Reason != allowlist.TLSHandshakeFailed.String() {
		t.Errorf("record %+v", r)
	}
}
