package dns_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dns"
)

// TestAttributionOfQueries sends the field with queries over HTTPS, to a listener for
// queries and to one for CONNECT and queries. The query behind it has none.
func TestAttributionOfQueries(t *testing.T) {
	const mine = `process="curl", pid=4711`
	g := newGateway(t, options{})
	target := func(name string) string {
		return dns.DoHPath + "?dns=" + base64.RawURLEncoding.EncodeToString(must(question(name).Pack()))
	}
	want := func(text string) {
		t.Helper()
		if r := g.next(t); r.Attributed != text || r.Wire != "doh" {
			t.Errorf("record %+v, want it attributed to %q", r, text)
		}
	}
	client := g.dialDoH(t, "sidecar")
	shared := g.share(t, "sidecar")
	for _, name := range []string{"allowed.example", "denied.example"} {
		for _, values := range [][]string{{mine, "pid=1"}, {strings.Repeat("x", 5000)}, nil} {
			text, fields := "", ""
			req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+g.doh.String()+target(name), http.NoBody))
			for _, value := range values {
				req.Header.Add(audit.AttributedField, value)
				fields += audit.AttributedField + ": " + value + "\r\n"
			}
			if len(values) > 0 {
				text = values[0]
			}
			if len(text) > 512 {
				text = text[:512] + "..."
			}
			resp := must(client.Do(req))
			_ = resp.Body.Close()
			want(text)
			if resp, _ := shared.ask(t, sharedHead("GET", target(name), fields)); resp.StatusCode != http.StatusOK {
				t.Errorf("answered %s", resp.Status)
			}
			want(text)
		}
	}
}
