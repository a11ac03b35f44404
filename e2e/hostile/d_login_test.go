package hostile

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// loginRow is about origins that take the one who has logged in on a connection
// for the sender of all that comes on it.
func loginRow() row {
	const offer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=a, "
	return row{"D30", "a request whose credentials log its connection to the origin in (Negotiate, NTLM, a scheme that nobody knows), or an answer that offers such a scheme; then requests of others", "the connection is that caller's connection's own: others, of the same identity too, go out on another one; its later requests go out on this one", []scenario{
		login{credentials: "Authorization: Negotiate YII"}.named("Negotiate"),
		login{credentials: "authorization: ntlm TlRM"}.named("NTLM in lower case"),
		login{credentials: "Authorization: Basic x\r\nAuthorization: NTLM TlRM"}.named("NTLM in a second line"),
		login{credentials: "Authorization: X-Corporate abc"}.named("an unknown scheme"),
		login{answer: offer + "Negotiate\r\n"}.named("a 401 that offers Negotiate behind Basic"),
		login{answer: offer + "nTLM\r\n"}.named("a 401 that offers NTLM behind Basic"),
		login{answer: "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\n"}.named("a 407 that offers NTLM"),
	}}
}

// login is the exchange after which a connection is a caller's own.
type login struct {
	credentials string // fields of the request
	answer      string // the head of the origin's answer without its end; "" is a good one
}

func (l login) named(name string) scenario {
	return scenario{name, l.run}
}

func (l login) run(t *testing.T, g *gateway) {
	first, other := g.call(t, "builder"), g.call(t, "builder")
	request := g.fill(get("http://allowed.example:PORT/"))
	if l.credentials != "" {
		first.send(t, g.fill(get("http://allowed.example:PORT/", l.credentials)))
	} else {
		first.send(t, request)
	}
	own := newOriginSide(t, g)
	own.serve(t, g, first, l.answer)
	other.send(t, request)
	others := newOriginSide(t, g) // fails if it comes on the first
	others.serve(t, g, other, "")
	first.send(t, request)
	own.serve(t, g, first, "")
	_ = first.Close()
	if n, err := own.reader.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection outlives its owner: %d bytes, %v", n, err)
	}
	_ = others.Close()
	_ = other.Close()
}

// originSide is the origin's end of a connection that the gateway made.
type originSide struct {
	*net.TCPConn

	reader *bufio.Reader
}

func newOriginSide(t *testing.T, g *gateway) originSide {
	t.Helper()
	conn := g.origin.next(t)
	return originSide{conn, bufio.NewReader(conn)}
}

// serve takes one request and sees its answer arrive at the caller.
func (o originSide) serve(t *testing.T, g *gateway, c *caller, head string) {
	t.Helper()
	if _, err := http.ReadRequest(o.reader); err != nil {
		t.Fatal(err)
	}
	if head == "" {
		head = "HTTP/1.1 200 OK\r\n"
	}
	if _, err := io.WriteString(o, head+"Content-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := c.answer(t); head[len("HTTP/1.1 "):][:3] != got.phrase[:3] {
		t.Errorf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	g.next(t, audit.EventTunnelClose)
}
