package dns_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dns"
)

// TestBothDoorsAgree draws policies and asks both doors of one gateway over the wire. A
// name that a CONNECT may reach on some port must be resolved, and a name that is answered
// with NXDOMAIN may be reached on no port.
func TestBothDoorsAgree(t *testing.T) {
	g := newGateway(t, options{perSecond: 1 << 30, limits: dns.Limits{Streams: 1 << 10}, names: 1 << 20})
	g.upstream.every.Store(true)
	drawn := g.tls(t, "drawn")
	counts := map[string]int{}
	for seed := range uint64(25) {
		r := rand.New(rand.NewPCG(seed, 7))
		g.swap(t, drawnPolicy(r))
		lookups := g.dial(t, "dot", "drawn")
		for _, name := range drawnNames() {
			a := ask(t, lookups, name)
			answer, _, _ := strings.Cut(say(a), ",")
			blocked := strings.Contains(say(a), "ede 15") && !strings.Contains(say(a), "resolved-address-denied")
			for _, port := range []int{80, 443, 8443} {
				status := g.connects(t, drawn, fmt.Sprintf("%s:%d", name, port))
				refused := status == http.StatusForbidden
				counts[fmt.Sprintf("%t %t", refused, blocked)]++
				if !refused && blocked {
					t.Errorf("seed %d: CONNECT to %s:%d is answered %d, and its name %s", seed, name, port, status, say(a))
				}
				if !refused && answer == "NXDOMAIN" {
					t.Errorf("seed %d: CONNECT to %s:%d is answered %d, and the name does not exist", seed, name, port, status)
				}
			}
		}
		_ = lookups.(*streamClient).Close()
	}
	for _, both := range []string{"true true", "true false", "false false"} {
		if counts[both] < 50 {
			t.Errorf("refused and blocked %s: %d times, too few to mean anything", both, counts[both])
		}
	}
}

func drawnNames() []string {
	return []string{"a.drawn.example", "b.drawn.example", "a.b.drawn.example", "drawn.example", "b.example", "printer.local", "single", "x.localhost"}
}

// drawnPolicy returns a policy whose rules often overlap.
func drawnPolicy(r *rand.Rand) allowlist.Spec {
	patterns := append(drawnNames(), "*.drawn.example", "**.drawn.example", "*.b.drawn.example")
	ports := [][]allowlist.PortRange{nil, {{First: 80, Last: 80}}, {{First: 1, Last: 65535}}, {{First: 443, Last: 443}, {First: 8000, Last: 9000}}}
	e := entry("drawn")
	for range 1 + r.IntN(6) {
		rule := to(patterns[r.IntN(len(patterns))])
		rule.Ports = ports[r.IntN(len(ports))]
		switch r.IntN(6) {
		case 0:
			rule.Methods = []string{"GET"}
		case 1:
			rule.NoTunnel, rule.Ports = true, nil
		case 2:
			rule.Types = []allowlist.QueryType{allowlist.TypeTXT}
		case 3:
			ended(&rule)
		}
		e.Allow = append(e.Allow, rule)
	}
	for range r.IntN(3) {
		rule := to(patterns[r.IntN(len(patterns))])
		rule.Ports = ports[r.IntN(len(ports))]
		e.Deny = append(e.Deny, rule)
	}
	return allowlist.Spec{Version: "drawn", Entries: []allowlist.Entry{e}}
}

// connects sends a CONNECT and returns the status. What the door allows fails to be
// dialled.
func (g *gateway) connects(t *testing.T, config *tls.Config, target string) (status int) {
	t.Helper()
	conn := tls.Client(dialTCP(t, g.connect), config)
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
