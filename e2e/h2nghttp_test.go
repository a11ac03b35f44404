package e2e

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// TestNghttpShowsARefusal asks for a plain URL that is denied with nghttp, which cannot
// open tunnels.
func TestNghttpShowsARefusal(t *testing.T) {
	need(t, "nghttp")
	s := newSite(t, 443)
	p := start(t, s.dir, "serve")
	for n, args := range [][]string{
		{"--cert=builder.pem", "--key=builder_key.pem", "https://" + p.listening(t, "mtls").String() + "/path"},
		{"http://" + p.listening(t, "own").String() + "/path"},
	} {
		stdout, stderr, code := run(t, s.dir, "nghttp", append([]string{"--verbose", "--no-dep", "--header=:authority: secret.example", "--header=:scheme: http"}, args...)...)
		r := p.record(t, "decision", n)
		sentence := "egress denied: secret.example:80 is not allowed for " + strings.TrimPrefix(r.Identity, "spiffe://prod.example/") + "; id " + r.ID + "; ask team-ci"
		for _, want := range []string{":status: 403\n", "x-exeat-decision: " + r.ID + "\n", `details="` + sentence + `"`, "\n" + sentence + "\n"} {
			if !strings.Contains(stdout, want) {
				t.Errorf("exit code %d, nghttp does not show %q: %s%s", code, want, stdout, stderr)
			}
		}
		if r.Wire != "h2" || r.Verdict != "deny" || r.Reason != "not-on-allowlist" {
			t.Errorf("record %+v", r)
		}
	}
}

// h2load runs h2load, which must get a number of answers of a class, such as 2xx, and no
// others.
func h2load(t *testing.T, dir string, requests int, class string, args ...string) {
	t.Helper()
	need(t, "h2load")
	stdout, stderr, code := run(t, dir, "h2load", append([]string{"--requests=" + strconv.Itoa(requests)}, args...)...)
	if want := fmt.Sprintf(" %d %s", requests, class); code != 0 || !strings.Contains(stdout, want) {
		t.Errorf("exit code %d, want%s: %s%s", code, want, stdout, stderr)
	}
}

// TestH2loadIsAnswered sends many requests at once with h2load, allowed and denied ones, on
// few connections and on many. Each has an answer and a decision, and another caller's
// tunnel, which was open before, still carries its bytes.
func TestH2loadIsAnswered(t *testing.T) {
	port := newEcho(t)
	origin := newOrigin(t, false)
	s := newSite(t, port, portOf(t, origin))
	write(t, s.dir, map[string]string{"exeat.yaml": siteConfig + "admin: {address: \"127.0.0.1:0\"}\n"})
	p := start(t, s.dir, "serve")
	tunnel := s.goClients(t, p)["mtls"].tunnel(t, "allowed.example:"+strconv.Itoa(port))
	total := 0
	for _, load := range []struct{ requests, clients, streams int }{{1000, 1, 900}, {500, 2, 100}, {500, 50, 20}} {
		args := []string{fmt.Sprint("--clients=", load.clients), fmt.Sprint("--max-concurrent-streams=", load.streams), "--connect-to=" + p.listening(t, "own").String()}
		h2load(t, s.dir, load.requests, "4xx", append(args, "http://secret.example/")...)
		h2load(t, s.dir, load.requests, "2xx", append(args, "http://allowed.example:"+strconv.Itoa(portOf(t, origin))+"/")...)
		total += load.requests
		send(t, tunnel, "still")
		got := make([]byte, len("still"))
		if n, err := tunnel.Read(got); err != nil || string(got[:n]) != "still" {
			t.Errorf("the tunnel brings %q, %v", got[:n], err)
		}
	}
	_, metrics := p.admin(t, "metrics")
	denied := 0
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "egress_decisions_total{") && strings.Contains(line, `reason="not-on-allowlist"`) {
			n, err := strconv.Atoi(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]))
			if err != nil {
				t.Fatal(err)
			}
			denied += n
		}
	}
	if denied != total {
		t.Errorf("%d requests are counted as denied, want %d", denied, total)
	}
}

// dohConfig is siteConfig with listeners for DNS over HTTPS.
var dohConfig = strings.Replace(siteConfig, "resolver:\n", `  - {name: doh, address: "127.0.0.1:0", identity: mtls, protocol: doh}
  - {name: both, address: "127.0.0.1:0", identity: mtls, protocol: [connect, doh]}
resolver:
`, 1)

// TestNghttpAsksDoH asks for names with nghttp over DNS over HTTPS, by GET and by POST, and
// then often with h2load.
func TestNghttpAsksDoH(t *testing.T) {
	for _, listener := range []string{"doh", "both"} {
		t.Run(listener, func(t *testing.T) { askDoH(t, listener) })
	}
}

func askDoH(t *testing.T, listener string) {
	t.Helper()
	need(t, "nghttp")
	s := newSite(t, 443)
	write(t, s.dir, map[string]string{"exeat.yaml": dohConfig})
	p := start(t, s.dir, "serve")
	url := "https://" + p.listening(t, listener).String() + "/dns-query"
	query := func(name string) []byte {
		var q dns.Msg
		q.SetQuestion(name+".", dns.TypeA)
		q.Id = 0
		packet, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return packet
	}
	n := 0
	for name, want := range map[string]string{"allowed.example": "NOERROR 127.0.0.1", "secret.example": "NXDOMAIN"} {
		write(t, s.dir, map[string]string{"query": string(query(name))})
		get := url + "?dns=" + base64.RawURLEncoding.EncodeToString(query(name))
		for method, args := range map[string][]string{
			"GET":  {get},
			"POST": {"--data=query", "--header=content-type: application/dns-message", url},
		} {
			stdout, stderr, code := run(t, s.dir, "nghttp", append([]string{"--cert=builder.pem", "--key=builder_key.pem", "--header=accept: application/dns-message"}, args...)...)
			var reply dns.Msg
			if err := reply.Unpack([]byte(stdout)); err != nil || code != 0 {
				t.Fatalf("%s %s: exit code %d, %q, %v: %s", method, name, code, stdout, err, stderr)
			}
			got := dns.RcodeToString[reply.Rcode]
			for _, rr := range reply.Answer {
				got += " " + rr.(*dns.A).A.String()
			}
			if got != want {
				t.Errorf("%s %s: got %s, want %s", method, name, got, want)
			}
			if r := p.record(t, "decision", n); r.Listener != listener || r.Wire != "doh" || r.Identity != builder || r.Host != name {
				t.Errorf("record %+v", r)
			}
			n++
		}
	}
	h2load(t, s.dir, 1000, "2xx", "--clients=2", "--max-concurrent-streams=50", url+"?dns="+base64.RawURLEncoding.EncodeToString(query("allowed.example")))
}
