package dns_test

import (
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// TestSharedConnectionOfHTTP2 sends queries and requests at the same time on the streams of
// one connection.
func TestSharedConnectionOfHTTP2(t *testing.T) {
	g := newGateway(t, options{})
	p := h2test.NewPeer(t, tls.Client(dialTCP(t, g.both), g.tls(t, "sidecar", "h2")))
	query := string(must(question("allowed.example").Pack()))
	get := dns.DoHPath + "?dns=" + base64.RawURLEncoding.EncodeToString([]byte(query))
	post := []string{":method", "POST", ":scheme", "https", ":authority", "gateway.example", ":path", dns.DoHPath, "content-type", "application/dns-message"}
	id := uint32(1)
	for _, row := range []struct {
		name, want string
		body       string
		fields     []string
	}{
		{"GET", "200 " + allowedAnswer, "", []string{":method", "GET", ":scheme", "https", ":authority", "gateway.example", ":path", get}},
		{"the authority in another spelling", "200 " + allowedAnswer, "", []string{":method", "GET", ":scheme", "https", ":authority", "GATEWAY.example.", ":path", get}},
		{"POST of unknown length", "200 " + allowedAnswer, query, post},
		{"POST with its length", "200 " + allowedAnswer, query, append(post, "content-length", strconv.Itoa(len(query)))},
		{"Host like :authority", "200 " + allowedAnswer, query, append(post, "host", "gateway.example")},
		{"a denied name", "200 " + deniedAnswer, "", []string{":method", "GET", ":scheme", "https", ":authority", "gateway.example", ":path", strings.Replace(get, base64.RawURLEncoding.EncodeToString([]byte(query)), base64.RawURLEncoding.EncodeToString(must(question("denied.example").Pack())), 1)}},
		{"too short", "400", query[1:], append(post, "content-length", strconv.Itoa(len(query)))},
		{"too long", "400", query + "x", append(post, "content-length", strconv.Itoa(len(query)))},
		{"no body", "400", "", append(post, "content-length", "5")},
		{"another content", "415", query, []string{":method", "POST", ":scheme", "https", ":authority", "gateway.example", ":path", dns.DoHPath, "content-type", "text/plain"}},
		{"another method", "405", query, []string{":method", "PUT", ":scheme", "https", ":authority", "gateway.example", ":path", dns.DoHPath, "content-type", "application/dns-message"}},
		{"another authority", "400 malformed-target", "", []string{":method", "GET", ":scheme", "https", ":authority", "allowed.example", ":path", get}},
		{"another Host", "400 authority-mismatch", query, append(post, "host", "allowed.example")},
		{"another path", "400 malformed-target", "", []string{":method", "GET", ":scheme", "https", ":authority", "gateway.example", ":path", "/dns-query/x"}},
		{"http", "403", "", []string{":method", "GET", ":scheme", "http", ":authority", "gateway.example", ":path", get}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.Open(t, id, row.body == "", row.fields...)
			if row.body != "" {
				p.Body(t, id, row.body, true)
			}
			head := p.On(t, id)
			body, _ := p.Rest(t, id)
			got := head.Status()
			switch _, reason, _ := strings.Cut(head.Field("proxy-status"), "; reason="); {
			case got == strconv.Itoa(http.StatusOK):
				var a mdns.Msg
				if err := a.Unpack([]byte(body)); err != nil {
					t.Fatal(err)
				}
				got += " " + say(&a)
			case reason != "":
				reason, _, _ = strings.Cut(reason, ";")
				got += " " + reason
			}
			if !strings.HasPrefix(got, row.want) {
				t.Errorf("answered %q %q, want %s", got, body, row.want)
			}
			id += 2
		})
	}
}
