package hostile

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// loginRow is the row about origins that authenticate a connection and take every request
// on it for one of the same caller.
func loginRow() row {
	const offer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=a, "
	return row{"D30", "a request whose credentials authenticate its connection to the origin (Negotiate, NTLM, an unknown scheme), or an answer that offers such a scheme; then requests of other callers", "only that caller's connection uses the connection to the origin from then on: requests on others, of the same identity too, go out on another one", []scenario{
		login{credentials: "Authorization: Negotiate YII"}.named("Negotiate"),
		login{credentials: "authorization: ntlm TlRM"}.named("NTLM in lower case"),
		login{credentials: "Authorization: Basic x\r\nAuthorization: NTLM TlRM"}.named("NTLM in a second line"),
		login{credentials: "Authorization: X-Corporate abc"}.named("an unknown scheme"),
		login{answer: offer + "Negotiate\r\n"}.named("a 401 that offers Negotiate behind Basic"),
		login{answer: offer + "nTLM\r\n"}.named("a 401 that offers NTLM behind Basic"),
		login{answer: "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\n"}.named("a 407 that offers NTLM"),
	}}
}

// login is an exchange after which only one caller may use a connection to the origin.
type login struct {
	credentials string // field lines of the request
	answer      string // head of the origin's answer without its end; "" means a valid one
}

func (l login) named(name string) scenario {
	return scenario{name: name, only: h1, run: l.run}
}

func (l login) run(t *testing.T, g *gateway) {
	first, other := g.call(t, "builder"), g.call(t, "builder")
	request := g.fill(get("http://allowed.example:PORT/"))
	if l.credentials != "" {
		first.send(t, g.fill(get("http://allowed.example:PORT/", l.credentials)))
	} else {
		first.send(t, request)
	}
	bound := newOriginSide(t, g)
	bound.serve(t, g, first, l.answer)
	other.send(t, request)
	others := newOriginSide(t, g) // this fails if the request arrives on the first connection
	others.serve(t, g, other, "")
	first.send(t, request)
	bound.serve(t, g, first, "")
	_ = first.Close()
	if n, err := bound.reader.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection stays open without its caller: %d bytes, %v", n, err)
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

// serve reads one request, answers it, and checks that the caller gets the answer.
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
