package dns_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// exploding adds a certificate with more names than the gateway reads to those of a
// client.
func exploding(t *testing.T, config *tls.Config) *tls.Config {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: slices.Repeat([]string{"a"}, 65),
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	cert := config.Certificates[0]
	cert.Certificate = append(slices.Clone(cert.Certificate), der)
	config.Certificates = []tls.Certificate{cert}
	return config
}

// endingConn notices when the other end has closed the connection, or has announced
// that.
type endingConn struct {
	net.Conn

	once  sync.Once
	ended chan struct{}
}

func (c *endingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.over()
	}
	return n, err
}

func (c *endingConn) Close() error {
	c.over()
	return c.Conn.Close()
}

func (c *endingConn) over() { c.once.Do(func() { close(c.ended) }) }

// TestTooManyCertificatesEndTheConnection checks, over DoT and DoH, that a caller which
// presents more than the gateway reads is refused, and that its connection closes after
// the answer.
func TestTooManyCertificatesEndTheConnection(t *testing.T) {
	g := newGateway(t, options{})
	query := must(question("A allowed.example").Pack())
	refused := func(t *testing.T, msg []byte) {
		t.Helper()
		var answer mdns.Msg
		if err := answer.Unpack(msg); err != nil || answer.Rcode != mdns.RcodeRefused {
			t.Errorf("answered %v, %v", &answer, err)
		}
		if r := g.next(t); r.Reason != "identity-invalid" || r.Identity != "" || r.Detail == "" {
			t.Errorf("record %+v", r)
		}
	}
	t.Run("dot", func(t *testing.T) {
		conn := tls.Client(dialTCP(t, g.dot), exploding(t, g.tls(t, "sidecar", "dot")))
		refused(t, must((&streamClient{conn}).ask(query)))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the connection ends with %v", err)
		}
	})
	for name, protocols := range map[string][]string{"HTTP/2": {"h2"}, "HTTP/1.1": {"http/1.1"}} {
		t.Run(name, func(t *testing.T) {
			conn := &endingConn{Conn: dialTCP(t, g.doh), ended: make(chan struct{})}
			transport := &http.Transport{
				TLSClientConfig: exploding(t, g.tls(t, "sidecar", protocols...)), ForceAttemptHTTP2: name == "HTTP/2",
				DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
			}
			defer transport.CloseIdleConnections()
			client := http.Client{Transport: transport, Timeout: patience}
			resp := must(client.Post("https://gateway.example/dns-query", "application/dns-message", bytes.NewReader(query)))
			refused(t, must(io.ReadAll(resp.Body)))
			_ = resp.Body.Close()
			if want := map[int]string{1: "HTTP/1.1", 2: "HTTP/2"}[resp.ProtoMajor]; want != name {
				t.Errorf("answered over %s", resp.Proto)
			}
			<-conn.ended
		})
	}
}
