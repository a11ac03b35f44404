package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestWhichServerAClientAccepts makes handshakes with servers, one of which is wanted.
func TestWhichServerAClientAccepts(t *testing.T) {
	ca, other := newCA(t, "ca"), newCA(t, "other")
	snap := newSnapshot(t, 1, ca.issue(t, callerID), bundles{"prod.example": {ca}})
	client := ClientConfig{Snapshot: snap, Protocols: []string{"h2"}, Accept: func(id spiffeid.ID) error {
		if id.String() != gatewayID {
			return errors.New("another server is wanted")
		}
		return nil
	}}
	onlyFor := func(usage x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{usage} }
	}
	many := ca.issue(t, gatewayID)
	for range 10 {
		many.Certificate = append(many.Certificate, many.Certificate[0])
	}
	for _, row := range []struct {
		name   string
		server tls.Certificate
		want   string // the error; "" if the server is accepted
	}{
		{"the wanted one", ca.issue(t, gatewayID), ""},
		{"with serverAuth alone", ca.issue(t, gatewayID, onlyFor(x509.ExtKeyUsageServerAuth)), ""},
		{"another one", ca.issue(t, callerID), "another server is wanted"},
		{"of another authority", other.issue(t, gatewayID), "the server's certificate was not issued by"},
		{"of another trust domain", ca.issue(t, "spiffe://elsewhere.example/gateway"), "is not trusted here"},
		{"expired", ca.issue(t, gatewayID, valid(-2*time.Hour, -time.Hour)), "the server's certificate expired"},
		{"for clients alone", ca.issue(t, gatewayID, onlyFor(x509.ExtKeyUsageClientAuth)), "has no serverAuth"},
		{"a web server", ca.issue(t, "", func(c *x509.Certificate) { c.DNSNames = []string{"gateway.example"} }), "no SPIFFE ID"},
		{"too many certificates", many, "certificates presented"},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg, err := client.TLS()
			if err != nil {
				t.Fatal(err)
			}
			near, far := connected(t)
			defer near.Close()
			// The authorities that the server names do not matter.
			server := tls.Server(far, &tls.Config{
				Certificates: []tls.Certificate{row.server}, ClientAuth: tls.RequestClientCert, ClientCAs: x509.NewCertPool(), NextProtos: []string{"h2"},
				SessionTicketsDisabled: true, // nobody would read them
			})
			served := make(chan error, 1)
			go func() {
				served <- server.Handshake()
				_, _ = server.Read(make([]byte, 1)) // until the client leaves
				_ = far.Close()
			}()
			conn := tls.Client(near, cfg)
			if err = conn.Handshake(); err != nil {
				_ = near.Close()
			}
			serr := <-served
			if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
				t.Fatalf("%v, want %q", err, row.want)
			}
			if err != nil {
				return
			}
			if shown := server.ConnectionState().PeerCertificates; serr != nil || len(shown) == 0 || shown[0].URIs[0].String() != callerID {
				t.Errorf("the client shows %v, %v", shown, serr)
			}
			if conn.ConnectionState().NegotiatedProtocol != "h2" {
				t.Error("h2 was not offered")
			}
		})
	}
}

// connected returns both ends of a connection over loopback.
func connected(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err == nil {
		far, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// TestAClientNeedsToKnowItsServer checks what a configuration must have.
func TestAClientNeedsToKnowItsServer(t *testing.T) {
	ca := newCA(t, "ca")
	snap := newSnapshot(t, 1, ca.issue(t, callerID), bundles{"prod.example": {ca}})
	accept := func(spiffeid.ID) error { return nil }
	for _, c := range []ClientConfig{{Accept: accept}, {Snapshot: snap}} {
		if _, err := c.TLS(); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
	if err := (ClientConfig{Snapshot: snap, Accept: accept}).Verify(nil); err == nil {
		t.Error("a server without a certificate is accepted")
	}
}
