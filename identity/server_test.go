package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// rotate replaces our CA in the bundle by another one.
func (f fixture) rotate(t *testing.T) testCA {
	t.Helper()
	next := newCA(t, "next")
	f.source.Store(newSnapshot(t, f.source.Load().Generation()+1, next.issue(t, gatewayID), bundles{"prod.example": {next}}))
	return next
}

// TestARemovedCAIsRefusedAtOnce checks that the next handshake, and an open connection
// that is verified again, are refused when the CA of the client has left the bundle.
func TestARemovedCAIsRefusedAtOnce(t *testing.T) {
	f := newFixture(t)
	client := presenting(f.ca.issue(t, callerID))
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	client.ServerName = "gateway"

	for range 2 {
		got := handshake(t, f.server, f.verifier, client)
		checkPeer(t, got.peer, Verified, "")
		if got.server.DidResume || got.client.DidResume {
			t.Error("a session was resumed; tickets should be off")
		}
	}
	open := handshake(t, f.server, f.verifier, client).server

	f.rotate(t)

	got := handshake(t, f.server, f.verifier, client)
	checkPeer(t, got.peer, Untrusted, "not issued by")
	if got.server.DidResume {
		t.Error("a session was resumed; tickets should be off")
	}
	if got.peer.generation != 2 {
		t.Errorf("generation %d, want 2", got.peer.generation)
	}
	checkPeer(t, f.verifier.Peer(open), Untrusted, "not issued by")
}

// TestARemovedCAIsRefusedOnAResumedSession checks that a resumed session is verified
// again. Tickets are off, and this holds even if they were on.
func TestARemovedCAIsRefusedOnAResumedSession(t *testing.T) {
	f := newFixture(t)
	withTickets := f.server.Clone()
	withTickets.GetConfigForClient = nil
	withTickets.SessionTicketsDisabled = false
	client := presenting(f.ca.issue(t, callerID))
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	client.ServerName = "gateway"

	checkPeer(t, handshake(t, withTickets, f.verifier, client).peer, Verified, "")
	got := handshake(t, withTickets, f.verifier, client)
	checkPeer(t, got.peer, Verified, "")
	if !got.server.DidResume {
		t.Fatal("the session was not resumed, so that this test shows nothing")
	}

	f.rotate(t)

	got = handshake(t, withTickets, f.verifier, client)
	checkPeer(t, got.peer, Untrusted, "not issued by")
	if !got.server.DidResume {
		t.Fatal("the session was not resumed, so that this test shows nothing")
	}
}

// TestTheHandshakeFollowsTheSource checks that the listener presents, and trusts, what
// the current snapshot says, and has one configuration for each snapshot.
func TestTheHandshakeFollowsTheSource(t *testing.T) {
	f := newFixture(t)
	before, err := f.server.GetConfigForClient(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.server.GetConfigForClient(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	if before != again {
		t.Error("two handshakes of one snapshot got two configurations")
	}

	next := f.rotate(t)

	got := handshake(t, f.server, f.verifier, presenting(next.issue(t, callerID)))
	checkPeer(t, got.peer, Verified, "")
	if want := f.source.Load().Certificate().Leaf; !got.client.PeerCertificates[0].Equal(want) {
		t.Error("the listener still presents the old certificate")
	}
}

// TestClientsSeeTheNamesOfTheTrustedCAs checks that the names of the trusted CAs are
// sent to clients, also after a rotation.
func TestClientsSeeTheNamesOfTheTrustedCAs(t *testing.T) {
	f := newFixture(t)
	var names [][]byte
	client := &tls.Config{
		InsecureSkipVerify: true,
		GetClientCertificate: func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			names = info.AcceptableCAs
			return &tls.Certificate{}, nil
		},
	}
	handshake(t, f.server, f.verifier, client)
	want := [][]byte{f.ca.cert.RawSubject, f.other.cert.RawSubject}
	slices.SortFunc(names, bytes.Compare)
	slices.SortFunc(want, bytes.Compare)
	if !slices.EqualFunc(names, want, bytes.Equal) {
		t.Errorf("got %q, want %q", names, want)
	}

	next := f.rotate(t)
	handshake(t, f.server, f.verifier, client)
	if len(names) != 1 || !bytes.Equal(names[0], next.cert.RawSubject) {
		t.Errorf("after a rotation got %q, want %q", names, next.cert.RawSubject)
	}
}

// TestAGoClientWithholdsACertificateOfAnotherCA checks that a Go client sends no
// certificate if its CA is not among the names that the listener sends, and that the
// detail names them.
func TestAGoClientWithholdsACertificateOfAnotherCA(t *testing.T) {
	f := newFixture(t)
	stranger := newCA(t, "stranger").issue(t, callerID)
	client := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{stranger}}
	got := handshake(t, f.server, f.verifier, client)
	checkPeer(t, got.peer, Missing, "none issued by partner.example, prod.example")
}

// TestManyCAsDoNotBreakTheHandshake checks a bundle of so many CAs that their names
// exceed 64 KiB, which crypto/tls cannot send.
func TestManyCAsDoNotBreakTheHandshake(t *testing.T) {
	ca := newCA(t, "prod")
	long := func(c *x509.Certificate) {
		c.Subject.OrganizationalUnit = slices.Repeat([]string{string(bytes.Repeat([]byte{'x'}, 4000))}, 20)
	}
	source := newSource(newSnapshot(t, 1, ca.issue(t, gatewayID), bundles{"prod.example": {ca, newCA(t, "long", long)}}))
	verifier := newVerifier(t, source)
	server, err := ServerConfig{Provider: source, Verifier: verifier}.TLS()
	if err != nil {
		t.Fatal(err)
	}
	got := handshake(t, server, verifier, presenting(ca.issue(t, callerID)))
	checkPeer(t, got.peer, Verified, "")
}

func TestCertificateThatAListenerPresents(t *testing.T) {
	f := newFixture(t)
	named := func(name string) map[string]string {
		cert := f.ca.issue(t, "", func(c *x509.Certificate) { c.DNSNames = []string{name} })
		return map[string]string{"cert": certPEM(cert), "key": keyPEM(t, cert.PrivateKey)}
	}
	dir := write(t, named("proxy.example"))
	web, err := LoadWebCertificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := ServerConfig{Provider: f.source, Verifier: f.verifier, Web: web}.TLS()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(f.ca.cert)
	got := handshake(t, config, f.verifier, &tls.Config{
		RootCAs: roots, ServerName: "proxy.example", NextProtos: []string{"h2", "http/1.1"},
		Certificates: []tls.Certificate{f.ca.issue(t, callerID)},
	})
	if got.clientErr != nil {
		t.Fatal(got.clientErr)
	}
	checkPeer(t, got.peer, Verified, "")
	if got.client.Version != tls.VersionTLS13 || got.client.NegotiatedProtocol != "" {
		t.Errorf("version %x, ALPN %q; want TLS 1.3, none", got.client.Version, got.client.NegotiatedProtocol)
	}

	next := named("next.example")
	for _, step := range []struct {
		file    string
		changed bool
		name    string // name of the certificate that is presented after the change
	}{{"cert", false, "proxy.example"}, {"key", true, "next.example"}} {
		if err := os.WriteFile(filepath.Join(dir, step.file), []byte(next[step.file]), 0o600); err != nil {
			t.Fatal(err)
		}
		before := web.Fingerprint()
		if changed, err := web.Reload(); changed != step.changed || (err == nil) != step.changed || web.Fingerprint() != before {
			t.Errorf("with the next %s: changed %v, %v", step.file, changed, err)
		}
		if changed, _ := web.Reload(); changed {
			t.Errorf("the same files, with the next %s, are a change", step.file)
		}
		got := handshake(t, config, f.verifier, &tls.Config{RootCAs: roots, ServerName: step.name})
		if got.clientErr != nil {
			t.Errorf("with the next %s: %v", step.file, got.clientErr)
		}
	}

	old := presenting(f.ca.issue(t, callerID))
	old.MaxVersion = tls.VersionTLS12
	if got := handshake(t, f.server, f.verifier, old); got.serverErr == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

// TestMissingPartVerifiesNobody checks that a missing or zero part is an error or
// refuses every certificate, and never lets a caller be verified.
func TestMissingPartVerifiesNobody(t *testing.T) {
	f := newFixture(t)
	certs := parsed(t, f.ca.issue(t, callerID))
	var (
		noFiles *Files
		broken  testSource // its snapshot is nil
		zero    = newSource(&Snapshot{})
	)
	for name, src := range map[string]Provider{"nil": nil, "nil files": noFiles, "zero files": &Files{}, "no snapshot": &broken, "zero snapshot": zero} {
		if v, err := NewVerifier(src); err == nil || v != nil {
			t.Errorf("verifier over %s: no error", name)
		}
		if c, err := (ServerConfig{Provider: src, Verifier: f.verifier}).TLS(); err == nil || c != nil {
			t.Errorf("listener over %s: no error", name)
		}
	}
	for name, c := range map[string]ServerConfig{
		"nothing":                  {},
		"no verifier":              {Provider: f.source},
		"a zero verifier":          {Provider: f.source, Verifier: &Verifier{}},
		"an empty web certificate": {Provider: f.source, Verifier: f.verifier, Web: &WebCertificate{}},
	} {
		if config, err := c.TLS(); err == nil || config != nil {
			t.Errorf("listener with %s: no error", name)
		}
	}

	var none *Verifier
	for name, v := range map[string]*Verifier{"nil": none, "zero": {}} {
		if got := v.Verify(certs); got.Cause == Verified || !got.ID.IsZero() {
			t.Errorf("%s verifier: %+v", name, got)
		}
	}
	if got := f.verifier.Verify([]*x509.Certificate{nil}); got.Cause != Invalid {
		t.Errorf("nil certificate: %+v", got)
	}
	if got := f.verifier.Verify([]*x509.Certificate{{}}); got.Cause != Invalid {
		t.Errorf("zero certificate: %+v", got)
	}

	// A provider without a snapshot makes its listeners refuse every handshake.
	f.source.Store(nil)
	if got := f.verifier.Verify(certs); got.Cause == Verified {
		t.Errorf("source without a snapshot: %+v", got)
	}
	if _, err := f.server.GetConfigForClient(&tls.ClientHelloInfo{}); err == nil {
		t.Error("source without a snapshot: handshake goes on")
	}
}

// TestProtocolsAreOffered checks that a listener offers the configured protocols, and
// none otherwise.
func TestProtocolsAreOffered(t *testing.T) {
	f := newFixture(t)
	for _, protocols := range [][]string{nil, {"dot"}, {"h2", "http/1.1"}} {
		config, err := ServerConfig{Provider: f.source, Verifier: f.verifier, Protocols: protocols}.TLS()
		if err != nil {
			t.Fatal(err)
		}
		inForce, err := config.GetConfigForClient(&tls.ClientHelloInfo{SupportedProtos: protocols})
		if err != nil || !slices.Equal(inForce.NextProtos, protocols) {
			t.Errorf("offered %v, want %v, %v", inForce.NextProtos, protocols, err)
		}
		inForce, err = config.GetConfigForClient(&tls.ClientHelloInfo{SupportedProtos: []string{"another"}})
		if err != nil || inForce.NextProtos != nil { // the handshake would fail
			t.Errorf("a client of another protocol is offered %v, %v", inForce.NextProtos, err)
		}
	}
}

func TestTheZeroPeerIsNobody(t *testing.T) {
	var p Peer
	if p.Cause != Missing || !p.ID.IsZero() {
		t.Errorf("got %+v", p)
	}
	for cause, want := range map[Cause]string{Missing: "missing", Invalid: "invalid", Expired: "expired", Untrusted: "untrusted", Verified: "verified", 99: "unknown"} {
		if got := cause.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
