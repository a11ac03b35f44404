package e2e

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestDNSBindsAddresses looks up a name with dig, and then has curl connect to the
// address in the answer.
func TestDNSBindsAddresses(t *testing.T) {
	need(t, "dig", "curl")
	port := strconv.Itoa(portOf(t, newOrigin(t, true)))
	s := newSite(t)
	write(t, s.dir, map[string]string{
		"exeat.yaml": strings.NewReplacer(
			"listeners:\n", "listeners:\n  - {name: mtls, address: \"127.0.0.1:0\"}\n",
			"servers:\n    - %s\n", "hosts: {origin.example: [127.0.0.1]}\n",
		).Replace(dnsConfig),
		"policy.yaml": "version: 1\nidentities:\n  - id: " + builder + "\n    accept: [x509-svid, source-map]\n    allow:\n" +
			"      - {host: origin.example, ports: [" + port + "], addresses: [127.0.0.1/32], tls: require}\n",
	})
	p := start(t, s.dir, "serve")
	door := p.listening(t, "plain")
	proxy := "https://" + p.listening(t, "mtls").String()
	fetch := func(name string) (stdout, stderr string, code int) {
		return run(t, s.dir, "curl", "-sS", "-k", "--max-time", "10", "--noproxy", "", "--proxy", proxy, "--proxy-cacert", "ca.pem",
			"--proxy-cert", "builder.pem", "--proxy-key", "builder_key.pem",
			"--connect-to", name+":"+port+":127.0.0.1:"+port, "https://"+name+":"+port+"/")
	}
	if _, stderr, code := fetch("origin.example"); code == 0 || !strings.Contains(stderr, "403") {
		t.Fatalf("before the lookup: exit code %d, %s", code, stderr)
	}
	stdout, stderr, code := run(t, s.dir, "dig", "@127.0.0.1", "-p", strconv.Itoa(int(door.Port())), "+short", "origin.example", "A")
	if code != 0 || strings.TrimSpace(stdout) != "127.0.0.1" {
		t.Fatalf("dig: exit code %d, %s%s", code, stdout, stderr)
	}
	if stdout, stderr, code := fetch("origin.example"); code != 0 || !strings.Contains(stdout, "hello over") {
		t.Errorf("by the name: exit code %d, %s%s", code, stdout, stderr)
	}
	if r := p.record(t, "tunnel.close", 0); r.Host != "127.0.0.1" || r.Identity != builder {
		t.Errorf("record %+v", r)
	}
	if stdout, _, code := fetch("other.example"); code == 0 {
		t.Errorf("by another name: %s", stdout)
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
