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

// nobody is the name of a caller that sends no certificate.
const nobody = "nobody"

// caller is the client's end of a connection to the gateway.
type caller struct {
	net.Conn
	reader *bufio.Reader
}

// callers makes connections to a gateway.
type callers struct {
	ca            *authority     // signs the certificates of the gateway and the callers
	secure, plain netip.AddrPort // addresses of the listeners with and without TLS
	shared        netip.AddrPort // address of the listener for CONNECT and DoH
	socks5        netip.AddrPort // address of the listener for SOCKS5

	wire     wire
	owner    testing.TB          // the test of the gateway
	sessions map[string]*session // over HTTP/2, the connections of call by the name of the workload
}

func newCallers(tb testing.TB, w wire) callers {
	tb.Helper()
	return callers{ca: newAuthority(tb), wire: w, owner: tb, sessions: map[string]*session{}}
}

// call returns a caller with the SVID of a workload. Over HTTP/2 all callers of the workload
// share a connection, so that a case also shows that those before it have left the connection
// as it was.
func (a callers) call(tb testing.TB, name string) *caller {
	tb.Helper()
	if a.wire != h2 || name == nobody { // a caller without an identity loses its connection after a few refusals
		return a.callAlone(tb, name)
	}
	s := a.sessions[name]
	if s == nil {
		s = a.callWith(a.owner, a.certificate(tb, name)).Conn.(*textConn).session
		a.sessions[name] = s
	}
	return newCaller(newTextConn(s, false))
}

// callAlone connects with the SVID of a workload.
func (a callers) callAlone(tb testing.TB, name string) *caller {
	tb.Helper()
	return a.callWith(tb, a.certificate(tb, name))
}

// certificate returns the SVID of a workload.
func (a callers) certificate(tb testing.TB, name string) tls.Certificate {
	tb.Helper()
	if name == nobody {
		return tls.Certificate{}
	}
	return a.ca.svid(tb, name)
}

// sharedWork checks that no shared connection is about to end, and forgets those that are.
func (a callers) sharedWork(tb testing.TB) {
	tb.Helper()
	for name, s := range a.sessions {
		if !s.works(tb) {
			delete(a.sessions, name)
		}
	}
}

// callWith connects with a certificate, whatever the gateway asks for.
func (a callers) callWith(tb testing.TB, certificate tls.Certificate, change ...func(*tls.Config)) *caller {
	tb.Helper()
	c, err := a.tryCallWith(tb, certificate, change...)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// tryCallWith returns the error of the client's handshake. In TLS 1.3 the gateway may
// refuse the certificate later; that is the error of the first read.
func (a callers) tryCallWith(tb testing.TB, certificate tls.Certificate, change ...func(*tls.Config)) (*caller, error) {
	tb.Helper()
	return a.handshake(tb, a.connect(tb, a.secure), certificate, change...)
}

// secureOver does a TLS handshake on an open connection.
func (a callers) secureOver(tb testing.TB, conn net.Conn, certificate tls.Certificate) *caller {
	tb.Helper()
	c, err := a.handshake(tb, conn, certificate)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// callShared connects to the listener for CONNECT and DoH with the SVID of a workload.
func (a callers) callShared(tb testing.TB, name string) *caller {
	tb.Helper()
	a.secure = a.shared
	return a.callAlone(tb, name)
}

func (a callers) handshake(tb testing.TB, over net.Conn, certificate tls.Certificate, change ...func(*tls.Config)) (*caller, error) {
	tb.Helper()
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The gateway's SVID has no DNS name.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots := x509.NewCertPool()
			roots.AddCert(a.ca.cert)
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
		NextProtos: []string{"h2", "http/1.1"}, // as in Go programs, which then write HTTP/1.1
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
	return a.speak(tb, conn), nil
}

// speak returns the caller of a connection.
func (a callers) speak(tb testing.TB, conn net.Conn) *caller {
	tb.Helper()
	if a.wire == h2 {
		conn = newTextConn(newSession(tb, conn), true)
	}
	return newCaller(conn)
}

func newCaller(conn net.Conn) *caller {
	return &caller{Conn: conn, reader: bufio.NewReader(conn)}
}

// callPlain connects to the listener without TLS, whose callers are sidecar.
func (a callers) callPlain(tb testing.TB) *caller {
	tb.Helper()
	return a.speak(tb, a.connect(tb, a.plain))
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

// connectTo returns the head of a valid CONNECT. fields are field lines without their
// ends.
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

// answer is an answer of the gateway.
type answer struct {
	status int
	phrase string
	header http.Header
	body   string
	close  bool // says that the answer announces the end of the connection
}

// reason returns the reason in Proxy-Status, or "" if there is none.
func (a answer) reason() string {
	_, rest, _ := strings.Cut(a.header.Get("Proxy-Status"), "; reason=")
	token, _, _ := strings.Cut(rest, ";")
	return token
}

// answer reads an answer.
func (c *caller) answer(tb testing.TB) answer {
	tb.Helper()
	a, err := c.tryAnswer()
	if err != nil {
		tb.Fatalf("reading the answer: %v", err)
	}
	return a
}

// tryAnswer reads an answer, or returns the error if there is none.
func (c *caller) tryAnswer() (answer, error) { return c.tryAnswerTo(http.MethodConnect) }

// tryAnswerTo reads an answer to a request with the given method.
func (c *caller) tryAnswerTo(method string) (answer, error) {
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: method})
	if err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode, phrase: resp.Status, header: resp.Header, close: resp.Close}
	if resp.StatusCode != http.StatusOK || method != http.MethodConnect { // otherwise what follows is the tunnel
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return answer{}, err
		}
		a.body = string(body)
	}
	return a, nil
}

// ask sends a head and reads the answer. Over HTTP/1 it does both at once, because the gateway
// may answer a long head before it has read all of it.
func (c *caller) ask(tb testing.TB, head string) answer {
	tb.Helper()
	sent := make(chan struct{})
	send := func() {
		defer close(sent)
		_, _ = io.WriteString(c, head)
	}
	if _, ok := c.Conn.(*textConn); ok {
		send()
	} else {
		go send()
	}
	defer func() { <-sent }()
	return c.answer(tb)
}

// closeWrite closes the sending direction of a connection.
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

// secured returns the connection of TLS.
func (c *caller) secured() *tls.Conn {
	conn := c.Conn
	if text, ok := conn.(*textConn); ok {
		conn = text.Conn
	}
	return conn.(*tls.Conn)
}

// reset ends a connection, or over HTTP/2 its stream, so that the gateway does not take the
// end for an orderly one.
func (c *caller) reset() {
	conn := c.Conn
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// ended checks that the connection ends without more bytes. Over TLS the end must be a
// close_notify, without which crypto/tls returns an error.
func (c *caller) ended(tb testing.TB) {
	tb.Helper()
	rest, err := io.ReadAll(c.reader)
	if err != nil || len(rest) > 0 {
		tb.Errorf("the connection ended with %q, %v, want a clean end", rest, err)
	}
	_ = c.Close()
}

// answeredLast checks that an answer says that no other request may follow on the connection,
// and that it ends the connection, or over HTTP/2 its stream.
func (c *caller) answeredLast(tb testing.TB, got answer) {
	tb.Helper()
	if text, ok := c.Conn.(*textConn); ok {
		text.isLeaving(tb)
	} else if !got.close {
		tb.Error("the answer does not close the connection")
	}
	c.ended(tb)
}

// gone waits until the connection ends, in whatever way.
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
