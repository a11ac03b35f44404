package hostile

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// nobody shows no certificate.
const nobody = "nobody"

// caller is a client's connection to the gateway.
type caller struct {
	net.Conn
	reader *bufio.Reader
}

// callers connect to a gateway.
type callers struct {
	ca            *authority     // vouches for the gateway and for them
	secure, plain netip.AddrPort // of the listeners with and without TLS
}

// call connects as a workload.
func (a callers) call(tb testing.TB, name string) *caller {
	tb.Helper()
	if name == nobody {
		return a.callWith(tb, tls.Certificate{})
	}
	return a.callWith(tb, a.ca.svid(tb, name))
}

// callWith shows a certificate whatever the gateway asks for.
func (a callers) callWith(tb testing.TB, certificate tls.Certificate, change ...func(*tls.Config)) *caller {
	tb.Helper()
	c, err := a.tryCallWith(tb, certificate, change...)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// tryCallWith returns the error of the handshake. That of the gateway, which
// in TLS 1.3 comes after ours, is the error of the first read.
func (a callers) tryCallWith(tb testing.TB, certificate tls.Certificate, change ...func(*tls.Config)) (*caller, error) {
	tb.Helper()
	return a.handshake(a.connect(tb, a.secure), certificate, change...)
}

// secureOver speaks TLS on a connection that there is.
func (a callers) secureOver(tb testing.TB, conn net.Conn, certificate tls.Certificate) *caller {
	tb.Helper()
	c, err := a.handshake(conn, certificate)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func (a callers) handshake(over net.Conn, certificate tls.Certificate, change ...func(*tls.Config)) (*caller, error) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The gateway shows its SVID, which has no DNS name.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots := x509.NewCertPool()
			roots.AddCert(a.ca.cert)
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
		NextProtos: []string{"h2", "http/1.1"}, // as Go programs do, to then write HTTP/1.1
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &certificate, nil
		},
	}
	for _, f := range change {
		f(config)
	}
	conn := tls.Client(over, config)
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	return &caller{Conn: conn, reader: bufio.NewReader(conn)}, nil
}

// callPlain connects to the listener without TLS, as sidecar.
func (a callers) callPlain(tb testing.TB) *caller {
	tb.Helper()
	conn := a.connect(tb, a.plain)
	return &caller{Conn: conn, reader: bufio.NewReader(conn)}
}

func (a callers) connect(tb testing.TB, addr netip.AddrPort) net.Conn {
	tb.Helper()
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	return conn
}

// connectTo is the head that a well-behaved client sends; fields are lines
// without their ends.
func connectTo(target string, fields ...string) string {
	var b strings.Builder
	b.WriteString("CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n")
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	return b.String() + "\r\n"
}

func (c *caller) send(tb testing.TB, text string) {
	tb.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		tb.Fatal(err)
	}
}

// answer is what the gateway said.
type answer struct {
	status int
	phrase string
	header http.Header
	body   string
	close  bool // the gateway says that it closes the connection
}

// reason is the token in Proxy-Status, "" for a 200.
func (a answer) reason() string {
	_, rest, _ := strings.Cut(a.header.Get("Proxy-Status"), "; reason=")
	token, _, _ := strings.Cut(rest, ";")
	return token
}

// answer reads one.
func (c *caller) answer(tb testing.TB) answer {
	tb.Helper()
	a, err := c.tryAnswer()
	if err != nil {
		tb.Fatalf("reading the answer: %v", err)
	}
	return a
}

// tryAnswer reads one where there may be none.
func (c *caller) tryAnswer() (answer, error) {
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode, phrase: resp.Status, header: resp.Header, close: resp.Close}
	if resp.StatusCode != http.StatusOK { // behind a 200 comes the tunnel
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return answer{}, err
		}
		a.body = string(body)
	}
	return a, nil
}

// ask sends a head and reads the answer. The gateway may answer before a long
// head has left.
func (c *caller) ask(tb testing.TB, head string) answer {
	tb.Helper()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(c, head)
	}()
	defer func() { <-sent }()
	return c.answer(tb)
}

// closeWrite ends one direction.
func closeWrite(tb testing.TB, conn any) {
	tb.Helper()
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		tb.Fatal(err)
	}
}

func readAll(tb testing.TB, r io.Reader) string {
	tb.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		tb.Fatal(err)
	}
	return string(data)
}

// raw is the connection below TLS.
func (c *caller) raw() *net.TCPConn {
	return c.Conn.(*tls.Conn).NetConn().(*net.TCPConn)
}

// ended checks that nothing more comes and that the end is a proper one: over
// TLS, crypto/tls tells a missing close_notify apart.
func (c *caller) ended(tb testing.TB) {
	tb.Helper()
	rest, err := io.ReadAll(c.reader)
	if err != nil || len(rest) > 0 {
		tb.Errorf("the connection ended with %q, %v, want a clean end", rest, err)
	}
	_ = c.Close()
}

// gone reads to the end, whatever it is like.
func (c *caller) gone(tb testing.TB) {
	tb.Helper()
	_, err := io.Copy(io.Discard, c.reader)
	if isTimeout(err) {
		tb.Errorf("the connection does not end: %v", err)
	}
	_ = c.Close()
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}
