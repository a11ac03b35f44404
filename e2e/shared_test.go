package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	mdns "github.com/miekg/dns"
)

// TestCurlUsesOneListenerForCONNECTAndDoH asks for names, and sends a plain request and a
// CONNECT, over one listener, with curl.
func TestCurlUsesOneListenerForCONNECTAndDoH(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	const text = "hello from the origin\n"
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }))
	t.Cleanup(origin.Close)
	s := newSite(t, portOf(t, origin))
	write(t, s.dir, map[string]string{
		"exeat.yaml": strings.Replace(siteConfig, "identity: mtls}", "identity: mtls, protocol: [connect, doh]}", 1),
	})
	p := start(t, s.dir, "serve")
	gateway := fmt.Sprintf("https://localhost:%d", p.listening(t, "mtls").Port())
	lookUp := func(name, caller string) string {
		t.Helper()
		var q, a mdns.Msg
		msg, err := q.SetQuestion(name+".", mdns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		write(t, s.dir, map[string]string{"query": string(msg)})
		args := []string{"-sS", "--fail", "--noproxy", "*", "--http1.1", "--cacert", "ca.pem", "-H", "Content-Type: application/dns-message", "--data-binary", "@query", "-o", "answer"}
		if caller != "" {
			args = append(args, "--cert", caller+".pem", "--key", caller+"_key.pem")
		}
		if _, stderr, code := run(t, s.dir, "curl", append(args, gateway+"/dns-query")...); code != 0 {
			t.Fatalf("%s: exit code %d, %s", name, code, stderr)
		}
		data, err := os.ReadFile(filepath.Join(s.dir, "answer"))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Unpack(data); err != nil {
			t.Fatal(err)
		}
		words := []string{mdns.RcodeToString[a.Rcode]}
		for _, rr := range a.Answer {
			words = append(words, rr.(*mdns.A).A.String())
		}
		return strings.Join(words, " ")
	}
	fetch := func(args ...string) string {
		t.Helper()
		all := append([]string{"-sS", "--fail", "--noproxy", "", "--proxy", gateway, "--proxy-cacert", "ca.pem", "--proxy-cert", "builder.pem", "--proxy-key", "builder_key.pem"}, args...)
		stdout, stderr, code := run(t, s.dir, "curl", append(all, fmt.Sprintf("http://allowed.example:%d/", portOf(t, origin)))...)
		if code != 0 {
			t.Errorf("curl %v: exit code %d, %s", args, code, stderr)
		}
		return stdout
	}
	for n, row := range []struct {
		got, want string
		protocol  string
		verdict   string
	}{
		{lookUp("allowed.example", "builder"), "NOERROR 127.0.0.1", "dns", "allow"},
		{lookUp("secret.example", "builder"), "NXDOMAIN", "dns", "deny"},
		{lookUp("allowed.example", ""), "REFUSED", "dns", "deny"},
		{fetch(), text, "http", "allow"},
		{fetch("--proxytunnel"), text, "connect", "allow"},
	} {
		if row.got != row.want {
			t.Errorf("got %q, want %q", row.got, row.want)
		}
		if r := p.record(t, "decision", n); r.Protocol != row.protocol || r.Verdict != row.verdict || r.Listener != "mtls" {
			t.Errorf("record %+v, want %s and %s", r, row.protocol, row.verdict)
		}
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
