package hostile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// shows returns the case of a valid request with a certificate that is not accepted.
func shows(name string, reason allowlist.Reason, certificate func(t *testing.T, g *gateway) tls.Certificate) scenario {
	return ask{name: name, shows: certificate, head: connectTo("allowed.example:PORT"), reason: reason, host: "allowed.example"}.scenario()
}

// issued returns the case of a certificate that the trusted authority has signed.
func issued(name string, reason allowlist.Reason, change ...func(*x509.Certificate)) scenario {
	return shows(name, reason, func(t *testing.T, g *gateway) tls.Certificate {
		t.Helper()
		return g.ca.issue(t, change...)
	})
}

// ids returns the cases of certificates of the trusted authority that are valid but for
// the ID.
func ids(reason allowlist.Reason, all ...string) []scenario {
	var cases []scenario
	for _, text := range all {
		cases = append(cases, issued(text[:min(len(text), 60)], reason, withURIs(text)))
	}
	return cases
}

// foreign returns the case of a certificate that another authority has signed.
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
		{"F2", "a certificate from an authority that is not trusted, whatever the certificate says", "407 `identity-untrusted`", []scenario{
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
		{"F5", "no URI among the names, or two; an ID in a DNS name, a common name or an organizational unit", "407 `identity-invalid`: only the single URI is an identity", []scenario{
			issued("no name", invalid),
			issued("a DNS name only", invalid, withDNS("builder.test.example")),
			issued("an ID as DNS name", invalid, withDNS(id("builder"))),
			issued("two IDs", invalid, withURIs(id("builder"), id("wide"))),
			issued("the same ID twice", invalid, withURIs(id("builder"), id("builder"))),
			issued("an ID in the common name", invalid, func(c *x509.Certificate) { c.Subject.CommonName = id("builder") }),
			issued("an ID in an organizational unit", invalid, func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{id("builder")} }),
		}},
		{"F6", "a certificate that is not an SVID: one for e-mail, one of a web server", "407", []scenario{
			foreign("for e-mail", invalid, func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "alice"} }),
			foreign("of a web server", invalid, withDNS("www.example")),
		}},
		{"F7", "IDs that are not canonical: upper case in scheme or trust domain, a port, a query, a fragment, userinfo, dot segments, `//`, a final slash, escapes, other bytes, over 2,048 bytes, a trust domain alone", "407 `identity-invalid`", ids(invalid,
			"SPIFFE://test.example/builder", "spiffe://Test.example/builder", "spiffe://test.example:443/builder", "spiffe://test.example/builder?", "spiffe://test.example/builder?a=b",
			"spiffe://test.example/builder#", "spiffe://test.example/builder#a", "spiffe://u@test.example/builder", "spiffe://@test.example/builder", "spiffe://test.example/./builder",
			"spiffe://test.example/x/../builder", "spiffe://test.example//builder", "spiffe://test.example/builder/", "spiffe://test.example/%62uilder", "spiffe://test.example/ns%2fa",
			"spiffe://test.example/builder%00", "spiffe://test.example/a|b", "spiffe://test.example/a%0ab", "https://test.example/builder", "spiffe://test.example",
			"spiffe://test.example/"+strings.Repeat("a", 2049-22), "spiffe://test.example/"+strings.Repeat("|", 10_000))},
		{"F8", "a certificate that cannot be parsed, or TLS before 1.3", "the handshake fails, and is recorded", []scenario{
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
			{name: "TLS 1.2", only: noWire, run: oldTLS},
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
			[]scenario{{name: "and the pattern itself matches", run: func(t *testing.T, g *gateway) {
				for _, name := range []string{"ns/a", "ns/one/b"} {
					ask{who: name, head: connectTo("allowed.example:PORT"), host: "allowed.example", lookups: 1, dials: 1}.run(t, g)
				}
			}}})},
		{"F11", "an authority that was removed from the bundle", "new handshakes and resumed sessions are refused at once, and open tunnels end", []scenario{{name: "rolled", run: rolled}}},
		{"F12", "an identity of 2 kB in records and answers", "bounded: the answer's sentence has at most 200 bytes", []scenario{{name: "2,048 bytes", run: longIdentity}}},
		{"F13", "what real clients do: HTTP/1.0 without Host, a Host without the port, no server name or that of the target to the gateway, `h2` in ALPN and then HTTP/1.1", "it works", []scenario{
			opens("CONNECT allowed.example:PORT HTTP/1.0\r\n\r\n", "allowed.example"),
			real("no server name", func(c *tls.Config) { c.ServerName = "" }),
			real("the target's server name", func(c *tls.Config) { c.ServerName = "allowed.example" }),
			real("an address as server name", func(c *tls.Config) { c.ServerName = "127.0.0.1" }),
			real("h2 only in ALPN", func(c *tls.Config) { c.NextProtos = []string{"h2"} }),
			real("no ALPN", func(c *tls.Config) { c.NextProtos = nil }),
		}},
		{"F14", "a PROXY protocol header: from a peer that may not send one; from one that must, none, two, or garbage", "the connection closes, and a record says so; a valid one sets the caller's address, never its identity", proxiedCases()},
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
		{"F16", "certificates that take a hundred times their size in memory once parsed, alone or beside a good one: thousands of names, extensions or other parts; nine certificates; more than 16 KiB", "407 `identity-invalid`, and the connection closes; beyond 16 KiB the handshake fails, and is recorded", slices.Concat(exploding(), tooLong())},
		{"F17", "a certificate with a key that is expensive to verify with, or that TLS 1.3 does not know; false authorities with the name of the real one", "407 `identity-invalid`, and the connection closes; no signature in a certificate is checked with a key that the caller brought", expensive()},
		{"F18", "certificates that do not verify, many times, the same or others", "the connection is closed once its address has used up its processor time; each is recorded; a caller whose certificate is known is served meanwhile", []scenario{
			{name: "the same", run: func(t *testing.T, g *gateway) {
				cert := newAuthority(t).svid(t, "builder")
				sourceStrangers(t, g, func(*testing.T) tls.Certificate { return cert })
			}},
			{name: "others", run: func(t *testing.T, g *gateway) {
				other := newAuthority(t)
				sourceStrangers(t, g, func(t *testing.T) tls.Certificate { return other.issue(t, withURIs(id("builder"))) })
			}},
		}},
	}
}

// sourceStrangers connects with certificates of an untrusted authority until one gets no
// answer.
func sourceStrangers(t *testing.T, g *gateway, certificate func(*testing.T) tls.Certificate) {
	g = g.another(t, options{config: gw.Config{Limits: limit.Config{Strangers: 500 * time.Microsecond}}})
	known := ask{who: "builder", head: connectTo("allowed.example:PORT"), host: "allowed.example", lookups: 1, dials: 1}
	known.run(t, g)
	for range 1000 {
		c := g.callWith(t, certificate(t))
		_, _ = io.WriteString(c, connectTo("allowed.example:443"))
		got, err := c.tryAnswer()
		_ = c.Close()
		if err == nil {
			if r := g.next(t, audit.EventDecision); got.reason() != "identity-untrusted" || r.Reason != got.reason() {
				t.Errorf("answered %s, record %+v", got.phrase, r)
			}
			continue
		}
		if r := g.next(t, audit.EventHandshake); r.Reason != "rate-limited" || r.Client == "" || r.Detail == "" {
			t.Errorf("record %+v", r)
		}
		known.run(t, g)
		return
	}
	t.Error("a thousand strangers were answered")
}

// closing returns the case of a valid request that must be the last on its connection,
// while a caller that has sent no certificate may send another one.
func closing(name string, reason allowlist.Reason, certificate func(t *testing.T, g *gateway) tls.Certificate) scenario {
	return scenario{name: name, run: func(t *testing.T, g *gateway) {
		c := g.callWith(t, certificate(t, g))
		got := c.ask(t, g.fill(connectTo("allowed.example:PORT")))
		if got.status != 407 || got.reason() != reason.String() {
			t.Fatalf("answered %s", got.phrase)
		}
		c.answeredLast(t, got)
		if r := g.next(t, audit.EventDecision); r.Reason != reason.String() || r.Detail == "" || r.Identity != "" {
			t.Errorf("record %+v", r)
		}
	}}
}

// junk returns a self-signed certificate.
func junk(t *testing.T, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	return selfSigned(t, change...)
}

// besideSVID returns a valid SVID with other certificates behind it.
func besideSVID(t *testing.T, g *gateway, others ...tls.Certificate) tls.Certificate {
	t.Helper()
	good := g.ca.svid(t, "builder")
	chain := slices.Clone(good.Certificate)
	for _, other := range others {
		chain = append(chain, other.Certificate...)
	}
	return tls.Certificate{Certificate: chain, PrivateKey: good.PrivateKey, Leaf: good.Leaf}
}

// exploding returns the cases of certificates that are small enough in bytes, but exceed
// another limit.
func exploding() []scenario {
	kinds := []struct {
		name   string
		change func(*x509.Certificate)
	}{
		{"7,000 URI names", withURIs(make([]string, 7000)...)},
		{"65 URI names", withURIs(make([]string, 65)...)},
		{"4,000 DNS names", withDNS(slices.Repeat([]string{"a"}, 4000)...)},
		{"1,000 extensions", func(c *x509.Certificate) {
			for i := range 1000 {
				c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 3, i}})
			}
		}},
		{"3,000 key usages", func(c *x509.Certificate) {
			for range 3000 {
				c.UnknownExtKeyUsage = append(c.UnknownExtKeyUsage, []int{1, 3})
			}
		}},
		{"500 attributes", func(c *x509.Certificate) { c.Subject.OrganizationalUnit = slices.Repeat([]string{"a"}, 500) }},
		{"2,000 constraints", func(c *x509.Certificate) { c.PermittedDNSDomains = slices.Repeat([]string{"a"}, 2000) }},
		{"an object identifier of 10,000 numbers", func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: append([]int{1, 3}, make([]int, 10_000)...)})
		}},
	}
	var cases []scenario
	for _, kind := range kinds {
		cases = append(cases,
			closing(kind.name, allowlist.IdentityInvalid, func(t *testing.T, _ *gateway) tls.Certificate { return junk(t, kind.change) }),
			closing(kind.name+" beside an SVID", allowlist.IdentityInvalid, func(t *testing.T, g *gateway) tls.Certificate {
				return besideSVID(t, g, junk(t, kind.change))
			}))
	}
	return append(cases, closing("nine certificates", allowlist.IdentityInvalid, func(t *testing.T, g *gateway) tls.Certificate {
		return besideSVID(t, g, slices.Repeat([]tls.Certificate{junk(t)}, 8)...)
	}))
}

func tooLong() []scenario {
	names := withURIs(make([]string, 15_500)...)
	return []scenario{
		fails("15,500 URI names in 30 KB", func(t *testing.T, _ *gateway) tls.Certificate { return junk(t, names) }),
		fails("15,500 URI names beside an SVID", func(t *testing.T, g *gateway) tls.Certificate { return besideSVID(t, g, junk(t, names)) }),
	}
}

// expensive returns the cases of chains whose verification would be expensive.
func expensive() []scenario {
	named := func(t *testing.T, g *gateway, key any) tls.Certificate {
		t.Helper()
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			RawSubject: g.ca.cert.RawSubject, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
		}
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key, other)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}}
	}
	modulus := func(bits uint, exponent int) *rsa.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: exponent}
	}
	fresh := func(t *testing.T, curve elliptic.Curve) *ecdsa.PublicKey {
		t.Helper()
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return &key.PublicKey
	}
	beside := func(name string, key func(t *testing.T) any) scenario {
		return closing(name, allowlist.IdentityInvalid, func(t *testing.T, g *gateway) tls.Certificate {
			return besideSVID(t, g, named(t, g, key(t)))
		})
	}
	return []scenario{
		beside("RSA of 8,192 bits", func(*testing.T) any { return modulus(8192, 65537) }),
		beside("RSA with a long exponent", func(*testing.T) any { return modulus(2048, 1<<31-1) }),
		beside("P-224", func(t *testing.T) any { return fresh(t, elliptic.P224()) }),
		closing("four authorities of RSA of 8,192 bits", allowlist.IdentityInvalid, func(t *testing.T, g *gateway) tls.Certificate {
			chain := newAuthority(t).svid(t, "builder")
			for range 4 {
				chain.Certificate = append(chain.Certificate, named(t, g, modulus(8192, 65537)).Certificate...)
			}
			return chain
		}),
		shows("seven authorities of P-521", allowlist.IdentityUntrusted, func(t *testing.T, g *gateway) tls.Certificate {
			chain := newAuthority(t).svid(t, "builder")
			for range 7 {
				chain.Certificate = append(chain.Certificate, named(t, g, fresh(t, elliptic.P521())).Certificate...)
			}
			return chain
		}),
	}
}

// below returns the case of a request for a name that no entry lists, under a policy with
// the parts. If the request is observed, its name is looked up, and its address refused,
// because it is loopback.
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
	return scenario{name: name, run: func(t *testing.T, g *gateway) {
		g.put(t, text)
		a.run(t, g)
		g.put(t, g.policy())
	}}
}

// fails returns the case of a handshake that fails in the TLS library.
func fails(name string, certificate func(t *testing.T, g *gateway) tls.Certificate) scenario {
	return scenario{name: name, only: noWire, run: func(t *testing.T, g *gateway) {
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

// rolled removes the authority while a tunnel is open and a client has a TLS session.
func rolled(t *testing.T, g *gateway) {
	g = g.another(t, options{})
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
		if c.secured().ConnectionState().DidResume {
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

// real returns the case of a valid request whose handshake has another configuration.
func real(name string, change func(*tls.Config)) scenario {
	return scenario{name: name, run: func(t *testing.T, g *gateway) {
		c := g.callWith(t, g.ca.svid(t, "builder"), change)
		ask{head: connectTo("allowed.example:PORT"), host: "allowed.example", lookups: 1, dials: 1}.on(t, g, c)
	}}
}

// proxiedCases returns the cases of PROXY headers, from load balancers and from others.
func proxiedCases() []scenario {
	const v1 = "PROXY TCP4 198.51.100.7 192.0.2.1 4711 443\r\n"
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + "\xc6\x33\x64\x07" + "\xc0\x00\x02\x01" + "\x12\x67\x01\xbb"
	cases := []scenario{
		{name: "version 1, from anybody", only: noWire, run: func(t *testing.T, g *gateway) { unwanted(t, g, v1) }},
		{name: "version 2, from anybody", only: noWire, run: func(t *testing.T, g *gateway) { unwanted(t, g, v2) }},
	}
	for name, header := range map[string]string{"version 1": v1, "version 2": v2} {
		cases = append(cases, scenario{name: name + ", from a load balancer", run: func(t *testing.T, g *gateway) { balanced(t, g, header) }})
	}
	for name, header := range map[string]string{
		"none": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "a request": "CONNECT allowed.example:443 HTTP/1.1\r\n\r\n", "one that is too long": "PROXY TCP4 " + strings.Repeat("1", 200) + "\r\n",
		"one without an address": "PROXY TCP4\r\n", "an address that is none": "PROXY TCP4 198.51.100.777 192.0.2.1 4711 443\r\n", "one that is cut short": v2[:20], "version 2 of 64 kB": v2[:14] + "\xff\xff" + strings.Repeat("a", 1<<10),
		"a unix socket": v2[:13] + "\x31" + v2[14:],
	} {
		cases = append(cases, scenario{name: name + ", from a load balancer", only: noWire, run: func(t *testing.T, g *gateway) { unbalanced(t, g, header) }})
	}
	slices.SortFunc(cases, func(a, b scenario) int { return strings.Compare(a.name, b.name) })
	return append(cases, scenario{name: "two, from a load balancer", only: noWire, run: func(t *testing.T, g *gateway) { balancedTwice(t, g, v1) }})
}

// unwanted sends a PROXY header in the place of a handshake, and checks that it fails.
func unwanted(t *testing.T, g *gateway, header string) {
	conn := g.connect(t, g.secure)
	_, _ = conn.Write([]byte(header))
	_, _ = io.Copy(io.Discard, conn)
	if r := g.next(t, audit.EventHandshake); r.Reason != allowlist.TLSHandshakeFailed.String() || strings.HasPrefix(r.Client, "198.") {
		t.Errorf("record %+v", r)
	}
}

// loadBalanced returns a gateway that expects PROXY headers from loopback, and waits at
// most 500 ms for them.
func loadBalanced(t *testing.T, g *gateway) *gateway {
	t.Helper()
	return g.another(t, options{proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, config: gw.Config{HandshakeTimeout: 500 * time.Millisecond}})
}

func balanced(t *testing.T, g *gateway, header string) {
	g = loadBalanced(t, g)
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

func unbalanced(t *testing.T, g *gateway, header string) {
	g = loadBalanced(t, g)
	conn := g.connect(t, g.secure)
	_, _ = conn.Write([]byte(header))
	_, _ = io.Copy(io.Discard, conn)
	if r := g.next(t, audit.EventHandshake); r.Reason != allowlist.MalformedHeader.String() || !strings.HasPrefix(r.Client, "127.0.0.1:") {
		t.Errorf("record %+v", r)
	}
}

// balancedTwice sends a second PROXY header where the handshake should begin.
func balancedTwice(t *testing.T, g *gateway, header string) {
	g = loadBalanced(t, g)
	conn := g.connect(t, g.secure)
	_, _ = conn.Write([]byte(header + header))
	_, _ = io.Copy(io.Discard, conn)
	if r := g.next(t, audit.EventHandshake); r.Reason != allowlist.TLSHandshakeFailed.String() {
		t.Errorf("record %+v", r)
	}
}
