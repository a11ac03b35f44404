package identity

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"strings"
	"testing"
	"time"
)

const (
	gatewayID = "spiffe://prod.example/gateway"
	callerID  = "spiffe://prod.example/ns/ci/sa/builder"
)

// attempt is one handshake on a loopback socket, seen from both sides.
type attempt struct {
	peer      Peer
	server    tls.ConnectionState
	client    tls.ConnectionState
	serverErr error
	clientErr error
}

// handshake connects a client to a server on loopback, and returns what the verifier
// says of the client. The server sends one byte, so that the client also reads what
// follows the handshake: tickets and alerts.
func handshake(t *testing.T, server *tls.Config, v *Verifier, client *tls.Config) attempt {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var got attempt
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := listener.Accept()
		if err != nil {
			got.serverErr = err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		if got.serverErr = conn.HandshakeContext(t.Context()); got.serverErr != nil {
			return
		}
		got.server = conn.ConnectionState()
		got.peer = v.Peer(got.server)
		_, got.serverErr = conn.Write([]byte{'x'})
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), client)
	if err == nil {
		got.client = conn.ConnectionState()
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	got.clientErr = err
	<-done
	return got
}

// presenting returns the configuration of a client that presents a certificate whatever
// names the server sends, as curl does.
func presenting(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &cert, nil
		},
	}
}

type fixture struct {
	ca, other testCA
	source    *testSource
	verifier  *Verifier
	server    *tls.Config
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	f := fixture{ca: newCA(t, "prod"), other: newCA(t, "other")}
	f.source = newSource(newSnapshot(t, 1, f.ca.issue(t, gatewayID), bundles{"prod.example": {f.ca}, "partner.example": {f.other}}))
	f.verifier = newVerifier(t, f.source)
	config, err := ServerConfig{Provider: f.source, Verifier: f.verifier}.TLS()
	if err != nil {
		t.Fatal(err)
	}
	f.server = config
	return f
}

// TestWhatACertificateProvesOverTLS checks the cause and the detail of the peer for
// every kind of certificate, in real handshakes.
func TestWhatACertificateProvesOverTLS(t *testing.T) {
	f := newFixture(t)
	ca := f.ca
	stranger := newCA(t, "stranger")
	impostor := newCA(t, "prod") // the name of our CA, another key
	intermediate := ca.newCA(t, "intermediate")
	stale := ca.newCA(t, "stale", valid(-3*time.Hour, -time.Hour))
	web := ca.newCA(t, "web", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	bare := intermediate.issue(t, callerID)
	bare.Certificate = bare.Certificate[:1]
	moments := ca.issue(t, callerID, valid(-20*time.Hour, -time.Hour))
	for i := range time.Duration(3) {
		moments.Certificate = append(moments.Certificate, stranger.issue(t, callerID, valid(-(i+2)*time.Hour, -time.Hour)).Certificate[0])
	}
	forgedMoments := stranger.issue(t, callerID, valid(-20*time.Hour, -time.Hour))
	forgedMoments.Certificate = append(forgedMoments.Certificate, moments.Certificate[1:]...)
	uri := func(uris ...string) tls.Certificate { return ca.issue(t, "", withURIs(uris...)) }
	usage := func(u x509.KeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.KeyUsage = u }
	}
	purpose := func(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = u }
	}

	for _, test := range []struct {
		name   string
		cert   tls.Certificate
		cause  Cause
		detail string // text in the detail
	}{
		{"a good certificate", ca.issue(t, callerID), Verified, ""},
		{"a good certificate without extended key usages", ca.issue(t, callerID, purpose()), Verified, ""},
		{"a good certificate for clients only", ca.issue(t, callerID, purpose(x509.ExtKeyUsageClientAuth)), Verified, ""},
		{"a good certificate with DNS names beside the ID", ca.issue(t, "", func(c *x509.Certificate) {
			c.URIs, c.DNSNames = append(c.URIs, mustURL(t, callerID)), []string{"builder.example"}
		}), Verified, ""},
		{"a good certificate with its intermediate", intermediate.issue(t, callerID), Verified, ""},
		{"a good certificate of a federated trust domain", f.other.issue(t, "spiffe://partner.example/x"), Verified, ""},
		{"an ID of 2048 bytes", uri("spiffe://prod.example/" + strings.Repeat("a", 2048-22)), Verified, ""},

		{"no certificate", tls.Certificate{}, Missing, "no certificate, or none issued by partner.example, prod.example"},

		{"self-signed", selfSigned(t, callerID), Untrusted, `not issued by trust domain "prod.example"`},
		{"a self-signed CA", selfSigned(t, callerID, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), Invalid, "CA:TRUE"},
		{"a CA nobody knows", stranger.issue(t, callerID), Untrusted, `not issued by trust domain "prod.example"`},
		{"a CA with the name of our CA", impostor.issue(t, callerID), Untrusted, `not issued by trust domain "prod.example"`},
		{
			"a trust domain nobody knows", stranger.issue(t, "spiffe://stranger.example/x"), Untrusted,
			`trust domain "stranger.example" is not trusted here; trusted: partner.example, prod.example`,
		},
		{"our ID issued by a federated CA", f.other.issue(t, callerID), Untrusted, `not issued by trust domain "prod.example"`},
		{"a federated ID issued by our CA", ca.issue(t, "spiffe://partner.example/x"), Untrusted, `not issued by trust domain "partner.example"`},
		{"a trust domain that begins with ours", ca.issue(t, "spiffe://prod.example.evil/x"), Untrusted, `"prod.example.evil" is not trusted`},
		{"a trust domain that ends with ours", ca.issue(t, "spiffe://evil-prod.example/x"), Untrusted, `"evil-prod.example" is not trusted`},
		{"without the intermediate", bare, Untrusted, "not issued by"},
		{"an intermediate for servers only", web.issue(t, callerID), Untrusted, "not issued by"},

		{"expired", ca.issue(t, callerID, valid(-2*time.Hour, -time.Hour)), Expired, "certificate expired 20"},
		{"expired and not ours", stranger.issue(t, callerID, valid(-2*time.Hour, -time.Hour)), Untrusted, "not issued by"},
		{"issued by an intermediate that expired", stale.issue(t, callerID), Expired, "issued by one that expired 20"},
		{"expired, among others that lead nowhere", moments, Expired, "certificate expired 20"},
		{"expired and not ours, among others that lead nowhere", forgedMoments, Untrusted, "not issued by"},
		{"not yet valid", ca.issue(t, callerID, valid(time.Hour, 2*time.Hour)), Invalid, "check the clocks"},
		{"not yet valid and not ours", stranger.issue(t, callerID, valid(time.Hour, 2*time.Hour)), Untrusted, "not issued by"},

		{"for servers only", ca.issue(t, callerID, purpose(x509.ExtKeyUsageServerAuth)), Invalid, "no clientAuth"},
		{"for signing code only", ca.issue(t, callerID, purpose(x509.ExtKeyUsageCodeSigning)), Invalid, "no clientAuth"},
		{"for any use but not named for clients", ca.issue(t, callerID, purpose(x509.ExtKeyUsageAny)), Invalid, "no clientAuth"},
		{"CA:TRUE in a leaf", ca.issue(t, callerID, func(c *x509.Certificate) { c.IsCA = true }), Invalid, "CA:TRUE"},
		{"keyCertSign in a leaf", ca.issue(t, callerID, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCRLSign)), Invalid, "cRLSign"},
		{"no digitalSignature in a leaf", ca.issue(t, callerID, usage(x509.KeyUsageKeyEncipherment)), Invalid, "without digitalSignature"},
		{"an unknown critical extension", ca.issue(t, callerID, func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
		}), Invalid, "critical extension"},

		{"no SAN", ca.issue(t, ""), Invalid, "no URI SAN"},
		{"DNS names only", ca.issue(t, "", func(c *x509.Certificate) { c.DNSNames = []string{"builder.prod.example"} }), Invalid, "no URI SAN"},
		{"an ID in the common name", ca.issue(t, "", func(c *x509.Certificate) { c.Subject.CommonName = callerID }), Invalid, "no URI SAN"},
		{"an ID in the organizational unit", ca.issue(t, "", func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{callerID} }), Invalid, "no URI SAN"},
		{"an ID in a DNS name", ca.issue(t, "", func(c *x509.Certificate) { c.DNSNames = []string{callerID} }), Invalid, "no URI SAN"},
		{"an unrelated certificate from elsewhere", stranger.issue(t, "", func(c *x509.Certificate) { c.Subject.CommonName = "alice@corp" }), Invalid, "no URI SAN"},
		{"two IDs", uri(callerID, "spiffe://prod.example/admin"), Invalid, "2 URI SANs"},
		{"the same ID twice", uri(callerID, callerID), Invalid, "2 URI SANs"},
		{"an ID and another URI", uri(callerID, "https://prod.example/"), Invalid, "2 URI SANs"},

		{"the trust domain itself", uri("spiffe://prod.example"), Invalid, "not a workload"},
		{"another scheme", uri("https://prod.example/x"), Invalid, "not a SPIFFE ID"},
		{"upper case in the scheme", uri("SPIFFE://prod.example/x"), Invalid, "not a SPIFFE ID"},
		{"upper case in the trust domain", uri("spiffe://Prod.example/x"), Invalid, "not a SPIFFE ID"},
		{"a port", uri("spiffe://prod.example:443/x"), Invalid, "not a SPIFFE ID"},
		{"a query", uri("spiffe://prod.example/x?a=b"), Invalid, "not a SPIFFE ID"},
		{"an empty query", uri("spiffe://prod.example/x?"), Invalid, "not a SPIFFE ID"},
		{"a fragment", uri("spiffe://prod.example/x#a"), Invalid, "not a SPIFFE ID"},
		{"an empty fragment", uri("spiffe://prod.example/x#"), Invalid, "not a SPIFFE ID"},
		{"userinfo", uri("spiffe://u:p@prod.example/x"), Invalid, "not a SPIFFE ID"},
		{"empty userinfo", uri("spiffe://@prod.example/x"), Invalid, "not a SPIFFE ID"},
		{"a dot segment", uri("spiffe://prod.example/ns/../x"), Invalid, "not a SPIFFE ID"},
		{"an empty segment", uri("spiffe://prod.example//x"), Invalid, "not a SPIFFE ID"},
		{"a trailing slash", uri("spiffe://prod.example/x/"), Invalid, "not a SPIFFE ID"},
		{"an encoded slash", uri("spiffe://prod.example/ns%2fx"), Invalid, "not a SPIFFE ID"},
		{"an encoded letter", uri("spiffe://prod.example/%61"), Invalid, "not a SPIFFE ID"},
		{"an encoded newline", uri("spiffe://prod.example/a%0ab"), Invalid, "not a SPIFFE ID"},
		{"a bar", uri("spiffe://prod.example/a|b"), Invalid, "not a SPIFFE ID"},
		{"an ID of 2049 bytes", uri("spiffe://prod.example/" + strings.Repeat("a", 2049-22)), Invalid, "at most 2048 bytes"},
		{"an ID of 10 kB", uri("spiffe://prod.example/" + strings.Repeat("|", 10_000)), Invalid, "at most 2048 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := handshake(t, f.server, f.verifier, presenting(test.cert))
			if got.serverErr != nil || got.clientErr != nil {
				t.Fatalf("handshake: server %v, client %v; want it to succeed", got.serverErr, got.clientErr)
			}
			checkPeer(t, got.peer, test.cause, test.detail)
			if test.cause == Verified && got.peer.NotAfter.IsZero() {
				t.Error("NotAfter is zero")
			}
		})
	}
}

// checkPeer checks the cause and the detail of a peer, and what holds for every peer.
func checkPeer(t *testing.T, got Peer, cause Cause, detail string) {
	t.Helper()
	if got.Cause != cause || !strings.Contains(got.Detail, detail) {
		t.Errorf("got %v %q, want %v with %q", got.Cause, got.Detail, cause, detail)
	}
	if got.ID.IsZero() != (cause != Verified) || (got.Detail == "") != (cause == Verified) {
		t.Errorf("%v came with ID %q and detail %q", got.Cause, got.ID, got.Detail)
	}
	if len(got.Detail) > maxDetail || strings.ContainsFunc(got.Detail, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("detail is not one short printable line: %q", got.Detail)
	}
	if got.generation == 0 {
		t.Error("no generation")
	}
}

// TestCertificatesThatEndTheHandshake checks certificates that crypto/tls refuses when
// it parses them, before any hook runs, so that the gateway can only record the failure.
func TestCertificatesThatEndTheHandshake(t *testing.T) {
	f := newFixture(t)
	good := f.ca.issue(t, callerID)
	raw := func(der []byte) tls.Certificate {
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: good.PrivateKey, Leaf: good.Leaf}
	}
	unparsable := func(uri string) tls.Certificate {
		// A good certificate in which the ID is replaced by another text of the same length.
		der := strings.Replace(string(good.Certificate[0]), callerID, uri, 1)
		return raw([]byte(der))
	}
	otherKey := good
	otherKey.PrivateKey = newKey(t)
	for _, test := range []struct {
		name string
		cert tls.Certificate
	}{
		{"a broken escape", unparsable("spiffe://prod.example/ns/ci/sa/bu%zzer")},
		{"non-ASCII", unparsable("spiffe://prod.example/ns/ci/sa/bu\xc3\xa9der")},
		{"a newline", unparsable("spiffe://prod.example/ns/ci/sa/bu\nlder")},
		{"no ASN.1 at all", raw([]byte("garbage"))},
		{"the certificate of somebody else, without its key", otherKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := handshake(t, f.server, f.verifier, presenting(test.cert))
			if got.serverErr == nil {
				t.Fatalf("handshake succeeded as %+v", got.peer)
			}
			if got.peer.Cause == Verified {
				t.Error("verified")
			}
		})
	}
}

func TestPeerBeforeTheEndOfTheHandshakeIsNobody(t *testing.T) {
	f := newFixture(t)
	state := tls.ConnectionState{PeerCertificates: parsed(t, f.ca.issue(t, callerID))}
	if got := f.verifier.Peer(state); got.Cause != Missing || !got.ID.IsZero() {
		t.Errorf("got %+v", got)
	}
}
