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

// TestAPanicBehindAPlainRequest ends its connection only, wherever it happens.
func TestAPanicBehindAPlainRequest(t *testing.T) {
	g := newGateway(t, options{})
	for name, head := range map[string]string{
		"a request":  get("http://" + g.at("panic.example") + "/"),
		"an upgrade": get("http://"+g.at("panic.example")+"/", "Connection: Upgrade", "Upgrade: websocket"),
	} {
		t.Run(name, func(t *testing.T) {
			before := g.proxy.Panics()
			c := g.call(t, "builder")
			if a := c.ask(t, head); a.status != 500 || a.reason() != "internal-error" || !a.close {
				t.Errorf("answered %s", a.phrase)
			}
			c.ended(t)
			if n := g.proxy.Panics() - before; n != 1 {
				t.Errorf("%d panics", n)
			}
			if decision := g.next(t, audit.EventDecision); decision.Verdict != "fail" || decision.Reason != "internal-error" {
				t.Errorf("record %+v", decision)
			}
			if n := g.registry.Len(); n != 0 {
				t.Errorf("%d entries left in the registry", n)
			}
		})
	}
}
