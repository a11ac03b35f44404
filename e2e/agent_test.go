package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// agentSite is a site with a gateway, an origin of TLS that has the name example.com, and an
// agent with the identity of builder.
type agentSite struct {
	http2Site
	agent *process
}

func newAgentSite(t *testing.T) agentSite {
	t.Helper()
	s := newHTTP2Site(t)
	dir := filepath.Join(s.dir, "svid")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"builder.pem": "svid.pem", "builder_key.pem": "svid_key.pem", "ca.pem": "bundle.pem"} {
		data, err := os.ReadFile(filepath.Join(s.dir, from))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a := start(t, s.dir, "agent", "--gateway", s.listening(t, "mtls").String(), "--gateway-id", gateway, "--identity-dir", dir,
		"--http", "127.0.0.1:0", "--socks5", "127.0.0.1:0")
	return agentSite{s, a}
}

// TestClientsOfAnAgent checks what programs print that have no certificate, for an allowed and a
// denied destination.
func TestClientsOfAnAgent(t *testing.T) {
	t.Parallel()
	s := newAgentSite(t)
	proxy, socks := "http://"+s.agent.listening(t, "http-1").String(), "socks5h://"+s.agent.listening(t, "socks5-2").String()
	allowed, denied := "https://example.com:"+s.port+"/", "https://denied.example:"+s.port+"/"
	const sentence = "egress denied: denied.example:"
	for name, row := range map[string]struct {
		command []string // the URL follows
		says    string   // for the allowed destination
		refused string   // for the denied one
	}{
		"curl":            {[]string{"curl", "-sS", "--noproxy", "", "--proxy", proxy, "--cacert", "origin.pem"}, "hello", "response 403"},
		"curl by SOCKS5":  {[]string{"curl", "-sS", "--noproxy", "", "--proxy", socks, "--cacert", "origin.pem"}, "hello", "(2)"},
		"wget":            {[]string{"wget", "-nv", "-O-", "--tries=1", "-e", "https_proxy=" + proxy, "--ca-certificate=origin.pem"}, "hello", sentence},
		"Python's urllib": {[]string{"python3", "-c", "import os, ssl, sys, urllib.request as r\nr.install_opener(r.build_opener(r.ProxyHandler({'https': '" + proxy + "'}), r.HTTPSHandler(context=ssl.create_default_context(cafile='origin.pem'))))\nprint(r.urlopen(sys.argv[1]).read())"}, "hello", sentence},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			need(t, row.command[0])
			stdout, stderr, code := run(t, s.dir, row.command[0], append(row.command[1:], allowed)...)
			if code != 0 || !strings.Contains(stdout, row.says) {
				t.Errorf("allowed: exit code %d, %q, %s", code, stdout, stderr)
			}
			stdout, stderr, code = run(t, s.dir, row.command[0], append(row.command[1:], denied)...)
			if code == 0 || !strings.Contains(stdout+stderr, row.refused) {
				t.Errorf("denied: exit code %d, %q, %s", code, stdout, stderr)
			}
		})
	}
}

// TestTheEndOfAnAgent checks that the end of the agent is orderly, and that its clients get a
// readable answer when the gateway has gone.
func TestTheEndOfAnAgent(t *testing.T) {
	t.Parallel()
	s := newAgentSite(t)
	need(t, "curl")
	proxy := "http://" + s.agent.listening(t, "http-1").String()
	ask := func() (code int, stderr string) {
		_, stderr, code = run(t, s.dir, "curl", "-sS", "-v", "--noproxy", "", "--proxy", proxy, "--cacert", "origin.pem", "https://example.com:"+s.port+"/")
		return code, stderr
	}
	if code, stderr := ask(); code != 0 {
		t.Fatal(stderr)
	}
	s.Stop()
	if code, stderr := ask(); code != 56 || !strings.Contains(stderr, strconv.Itoa(http.StatusBadGateway)+" egress failed: example.com:"+s.port+": no gateway can be reached (") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	s.agent.Stop()
	if code := s.agent.State().ExitCode(); code != 0 {
		t.Errorf("the agent ends with %d: %s", code, s.agent.stderr)
	}
}
