package proxy_test

import (
	"bufio"
	"io"
	"net/http"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestUpgradesOfEveryName: goproxy knows WebSocket only.
func TestUpgradesOfEveryName(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, get("http://"+g.at("ws.example")+"/", "Connection: Upgrade", "Upgrade: spdy/3.1"))
	conn := g.origin.next(t)
	reader := bufio.NewReader(conn)
	req, err := http.ReadRequest(reader)
	if err != nil {
		t.Fatal(err)
	}
	if req.Header.Get("Connection") != "Upgrade" || req.Header.Get("Upgrade") != "spdy/3.1" {
		t.Errorf("the origin got %v", req.Header)
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: spdy/3.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if a := c.answer(t); a.status != http.StatusSwitchingProtocols || a.header.Get("Upgrade") != "spdy/3.1" {
		t.Errorf("answered %s %v", a.phrase, a.header)
	}
	echo(t, c, conn, reader)
	_ = conn.Close()
	c.gone(t)
	g.next(t, audit.EventDecision)
	g.next(t, audit.EventTunnelClose)
}
