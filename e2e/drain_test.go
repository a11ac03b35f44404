package e2e

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// TestDrainAnswersARequestThatIsUnderWay stops the process while a lookup waits for its
// name server.
func TestDrainAnswersARequestThatIsUnderWay(t *testing.T) {
	dns, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dns.Close() }()
	s := newSite(t, 443)
	policy := "version: 1\nidentities: [{id: \"" + gateway + "\", allow: [{host: slow.example}]}]\n"
	config := strings.Replace(siteConfig, "resolver:\n", "resolver:\n  servers: [\""+dns.LocalAddr().String()+"\"]\n", 1)
	write(t, s.dir, map[string]string{"policy.yaml": policy, "exeat.yaml": config + "  dial: 2s\n"})
	p := start(t, s.dir, "serve")
	conn := p.dial(t, "own")
	if _, err := io.WriteString(conn, "CONNECT slow.example:443 HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dns.ReadFrom(make([]byte, 512)); err != nil { // the query gets no answer
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGTERM)
	p.stderr.line(t, regexp.MustCompile(`msg=draining`))
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("answered %s, want 504", resp.Status)
	}
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
