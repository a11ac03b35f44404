package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// recursive is an unbound that serves the zone example. over UDP, TCP and TLS.
type recursive struct {
	plain, tls netip.AddrPort
	ca         string // path of the certificate by which dns.example is trusted
}

const recursiveConfig = `server:
  directory: "%[1]s"
  pidfile: "%[1]s/pid"
  username: ""
  chroot: ""
  do-daemonize: no
  use-syslog: no
  num-threads: 1
  module-config: "iterator"
  do-not-query-localhost: no
  minimal-responses: no
  interface: %[2]s@%[3]d
  interface: %[2]s@%[4]d
  tls-port: %[4]d
  tls-service-key: "%[1]s/key.pem"
  tls-service-pem: "%[1]s/cert.pem"
auth-zone:
  name: "example."
  zonefile: "%[1]s/zone"
  for-downstream: no
  for-upstream: yes
`

const zone = `$ORIGIN example.
@         300 IN SOA ns admin 1 3600 600 86400 60
@         300 IN NS ns
ns        300 IN A 127.0.0.1
api       300 IN A 192.0.2.1
api       300 IN A 192.0.2.2
api       300 IN AAAA 2001:db8::1
www       200 IN CNAME Edge.CDN
edge.cdn  100 IN CNAME node
node      50 IN A 192.0.2.3
gone      300 IN CNAME nobody
loop      300 IN CNAME loop2
loop2     300 IN CNAME loop
svc       300 IN HTTPS 1 node alpn="h2" ipv4hint="192.0.2.3" ech="AEX+DQBBxwAgACBaWxQ1yMwqgAx9ViQq6FQ8gLJl1tdMdpbSBVUfmsjGIAAEAAEAAQASY2xvdWRmbGFyZS1lY2guY29tAAA="
mail      300 IN MX 10 node
`

func startRecursive(t *testing.T) *recursive {
	t.Helper()
	need(t, "unbound", "openssl")
	dir := t.TempDir()
	if _, stderr, code := run(t, dir, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", "key.pem", "-out", "cert.pem", "-days", "2",
		"-subj", "/CN=dns.example", "-addext", "subjectAltName=DNS:dns.example"); code != 0 {
		t.Fatal(stderr)
	}
	text := strings.Builder{}
	text.WriteString(zone)
	for i := range 60 { // more than one datagram holds
		fmt.Fprintf(&text, "big 300 IN AAAA 2001:db8::%x\n", i+1)
	}
	free := freeAddresses(t, 2)
	u := &recursive{plain: free[0], tls: free[1], ca: filepath.Join(dir, "cert.pem")}
	config := fmt.Sprintf(recursiveConfig, dir, u.plain.Addr(), u.plain.Port(), u.tls.Port())
	write(t, dir, map[string]string{"zone": text.String(), "unbound.conf": config})
	startUnbound(t, dir)
	return u
}

// everything is a filter that admits every address and name.
type everything struct{}

// Addr implements resolve.Filter.
func (everything) Addr(netip.Addr) bool { return true }

// Hop implements resolve.Filter.
func (everything) Hop(allowlist.Host) bool { return true }

// lookup returns the code and the records of the answer that a client gets: without
// times to live, aliases first and the others sorted. If the lookup fails, it returns
// the reason.
func lookup(t *testing.T, r *resolve.Resolver, name string, typ uint16) []string {
	t.Helper()
	host, err := allowlist.ParseHost(name)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := r.Lookup(t.Context(), resolve.Asker{}, resolve.Question{Name: host, Type: typ})
	if err != nil {
		var known *allowlist.ReasonError
		if !errors.As(err, &known) {
			t.Fatal(err)
		}
		return []string{known.Reason.String()}
	}
	var question, response dns.Msg
	question.SetQuestion(name+".", typ)
	packet, err := question.Pack()
	if err != nil {
		t.Fatal(err)
	}
	packet, _ = answer.Append(nil, resolve.Reply{ID: question.Id, RD: true, Question: packet[12:]}, time.Now(), everything{})
	if err := response.Unpack(packet); err != nil {
		t.Fatal(err)
	}
	lines := []string{dns.RcodeToString[response.Rcode]}
	var finals []string
	for _, rr := range slices.Concat(response.Answer, response.Ns) {
		rr.Header().Ttl = 0
		line := strings.Join(strings.Fields(rr.String()), " ")
		if rr.Header().Rrtype == dns.TypeCNAME {
			lines = append(lines, line)
		} else {
			finals = append(finals, line)
		}
	}
	slices.Sort(finals)
	return append(lines, finals...)
}

func TestDNSFromUnbound(t *testing.T) {
	u := startRecursive(t)
	const soa = "example. 0 IN SOA ns.example. admin.example. 1 3600 600 86400 60"
	rows := []struct {
		name string
		typ  uint16
		want []string
	}{
		{"api.example", dns.TypeA, []string{"NOERROR", "api.example. 0 IN A 192.0.2.1", "api.example. 0 IN A 192.0.2.2"}},
		{"api.example", dns.TypeAAAA, []string{"NOERROR", "api.example. 0 IN AAAA 2001:db8::1"}},
		{"api.example", dns.TypeMX, []string{"NOERROR", soa}},
		{"www.example", dns.TypeA, []string{
			"NOERROR", "www.example. 0 IN CNAME edge.cdn.example.", "edge.cdn.example. 0 IN CNAME node.example.", "node.example. 0 IN A 192.0.2.3",
		}},
		{"www.example", dns.TypeCNAME, []string{"NOERROR", "www.example. 0 IN CNAME edge.cdn.example."}},
		{"nobody.example", dns.TypeA, []string{"NXDOMAIN", soa}},
		{"gone.example", dns.TypeA, []string{"NXDOMAIN", "gone.example. 0 IN CNAME nobody.example.", soa}},
		{"loop.example", dns.TypeA, []string{"resolve-failed"}},
		{"svc.example", dns.TypeHTTPS, []string{"NOERROR", `svc.example. 0 IN HTTPS 1 node.example. alpn="h2" ipv4hint="192.0.2.3"`}},
		{"mail.example", dns.TypeMX, []string{"NOERROR", "mail.example. 0 IN MX 10 node.example."}},
	}
	var big []string
	for i := range 60 {
		big = append(big, fmt.Sprintf("big.example. 0 IN AAAA 2001:db8::%x", i+1))
	}
	slices.Sort(big)
	for _, server := range []resolve.Server{
		{Addr: u.plain},
		{Addr: u.plain, Protocol: resolve.TCP},
		{Addr: u.tls, Protocol: resolve.DoT, Name: "dns.example", CA: u.ca},
	} {
		t.Run(server.Protocol.String(), func(t *testing.T) {
			r, err := resolve.New(resolve.Config{Servers: []resolve.Server{server}})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			for _, row := range rows {
				if diff := cmp.Diff(row.want, lookup(t, r, row.name, row.typ)); diff != "" {
					t.Errorf("%s %s (-want +got):\n%s", dns.TypeToString[row.typ], row.name, diff)
				}
			}
			if diff := cmp.Diff(append([]string{"NOERROR"}, big...), lookup(t, r, "big.example", dns.TypeAAAA)); diff != "" {
				t.Errorf("more than a datagram holds (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("dot with another name", func(t *testing.T) {
		r, err := resolve.New(resolve.Config{Servers: []resolve.Server{{Addr: u.tls, Protocol: resolve.DoT, Name: "ns.example", CA: u.ca}}})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got := lookup(t, r, "api.example", dns.TypeA); !slices.Equal(got, []string{"resolve-failed"}) {
			t.Errorf("got %q", got)
		}
	})
}
