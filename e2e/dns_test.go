package e2e

import (
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/missing"
	"github.com/exeat-dev/exeat/e2e/site"
)

// dnsConfig has a listener for each DNS protocol, and one upstream server.
const dnsConfig = `version: 1
identity:
  certificate: gateway.pem
  key: gateway_key.pem
  bundle: ca.pem
policy: policy.yaml
listeners:
  - {name: plain, address: "127.0.0.1:0", protocol: dns, identity: source-map, sources: {127.0.0.1/32: spiffe://prod.example/ns/ci/sa/builder}}
  - {name: dot, address: "127.0.0.1:0", protocol: dot}
  - {name: doh, address: "127.0.0.1:0", protocol: doh}
resolver:
  servers:
    - %s
timeouts:
  drain_delay: 0s
`

const dnsPolicy = `version: 1
identities:
  - id: spiffe://prod.example/ns/ci/sa/builder
    accept: [x509-svid, source-map]
    allow:
      - {host: allowed.example, dns: [TXT]}
      - {host: alias.example}
      - {host: private.example, addresses: [10.20.0.0/16]}
      - {host: leaky.example}
`

// unboundConfig makes unbound answer from local data, over UDP, TCP and TLS.
const unboundConfig = `server:
  directory: "%[1]s"
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  logfile: ""
  do-daemonize: no
  interface: 127.0.0.1@%[2]d
  interface: 127.0.0.1@%[3]d
  tls-port: %[3]d
  tls-service-key: "%[1]s/gateway_key.pem"
  tls-service-pem: "%[1]s/gateway.pem"
  access-control: 127.0.0.0/8 allow
  local-zone: "example." static
  local-data: "allowed.example. 60 A 93.184.216.34"
  local-data: "allowed.example. 60 AAAA 2606:2800:220:1::1"
  local-data: 'allowed.example. 60 TXT "a text"'
  local-data: "private.example. 60 A 10.20.0.7"
  local-data: "leaky.example. 60 A 10.20.0.8"
  local-data: "denied.example. 60 A 93.184.216.34"
remote-control:
  control-enable: no
`

// dnsSite is exeat with unbound as its upstream server.
type dnsSite struct {
	prodSite
	process *process
}

// newDNSSite starts unbound and exeat. exeat queries unbound over DoT if secure, else
// over UDP.
func newDNSSite(t *testing.T, secure bool) dnsSite {
	t.Helper()
	need(t, "unbound")
	s := newSite(t)
	free := freeAddresses(t, 2)
	clear, overTLS := free[0].Port(), free[1].Port()
	write(t, s.dir, map[string]string{"unbound.conf": fmt.Sprintf(unboundConfig, s.dir, clear, overTLS), "policy.yaml": dnsPolicy})
	startUnbound(t, s.dir)
	upstream := fmt.Sprintf("udp: 127.0.0.1:%d", clear)
	if secure {
		upstream = fmt.Sprintf("{dot: '127.0.0.1:%d', name: localhost, ca: ca.pem}", overTLS)
	}
	write(t, s.dir, map[string]string{"exeat.yaml": fmt.Sprintf(dnsConfig, upstream)})
	return dnsSite{s, start(t, s.dir, "serve", "--config", "exeat.yaml")}
}

// startUnbound runs unbound with the file unbound.conf of a directory.
func startUnbound(t *testing.T, dir string) {
	t.Helper()
	p, err := site.Start(exec.Command("unbound", "-d", "-c", filepath.Join(dir, "unbound.conf")), site.Ready{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("unbound:\n%s", p.Stderr)
		}
	})
	output{p.Stderr}.line(t, regexp.MustCompile(`start of service`))
}

// dig sends a question with dig, and returns the status, the extended error and the data
// of each answer, separated by commas.
func (s dnsSite) dig(t *testing.T, wire, caller string, question ...string) string {
	t.Helper()
	need(t, "dig")
	name := map[string]string{"udp": "plain", "tcp": "plain"}[wire]
	if name == "" {
		name = wire
	}
	addr := s.process.listening(t, name)
	args := []string{"@" + addr.Addr().String(), "-p", fmt.Sprint(addr.Port()), "+tries=1", "+timeout=10", "+nocookie"}
	switch wire {
	case "udp":
		args = append(args, "+notcp")
	case "tcp":
		args = append(args, "+tcp")
	case "dot":
		args = append(args, "+tls")
	case "doh":
		args = append(args, "+https")
	}
	if wire == "dot" || wire == "doh" {
		args = append(args, "+tls-ca=ca.pem", "+tls-hostname=localhost")
		if caller != "" {
			args = append(args, "+tls-certfile="+caller+".pem", "+tls-keyfile="+caller+"_key.pem")
		}
	}
	stdout, stderr, code := run(t, s.dir, "dig", append(args, question...)...)
	if code != 0 {
		t.Fatalf("dig %v: exit code %d\n%s%s", question, code, stdout, stderr)
	}
	var lines []string
	for line := range strings.Lines(stdout) {
		line = strings.TrimSpace(line)
		if status := regexp.MustCompile(`status: ([A-Z]+)`).FindStringSubmatch(line); status != nil {
			lines = append(lines, status[1])
		}
		if ede := regexp.MustCompile(`EDE: (\d+) .*\(r=([a-z-]+) `).FindStringSubmatch(line); ede != nil {
			lines = append(lines, "EDE "+ede[1]+" "+ede[2])
		}
		if fields := strings.Fields(line); len(fields) >= 5 && !strings.HasPrefix(line, ";") && fields[2] == "IN" && fields[3] != "SOA" {
			lines = append(lines, strings.Join(fields[3:], " "))
		}
	}
	return strings.Join(lines, ", ")
}

// TestDNSWithDig sends allowed and forbidden questions over each protocol, with an
// upstream server over UDP and over DoT.
func TestDNSWithDig(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		s := newDNSSite(t, secure)
		for _, wire := range []string{"udp", "tcp", "dot", "doh"} {
			for _, row := range []struct{ question, want string }{
				{"allowed.example A", "NOERROR, A 93.184.216.34"},
				{"allowed.example AAAA", "NOERROR, AAAA 2606:2800:220:1::1"},
				{"ALLOWED.Example TXT", `NOERROR, TXT "a text"`},
				{"private.example A", "NOERROR, A 10.20.0.7"},
				{"leaky.example A", "NOERROR, EDE 15 resolved-address-denied"},
				{"alias.example A", "NXDOMAIN"}, // the upstream server answers that it does not exist
				{"denied.example A", "NXDOMAIN, EDE 15 not-on-allowlist"},
				{"allowed.example MX", "NOERROR, EDE 15 type-not-allowed"},
				{"allowed.example ANY", `NOERROR, EDE 15 type-not-allowed, HINFO "RFC8482" ""`},
				{"example A", "NOERROR, EDE 15 special-name"},
				{"-x 10.20.0.7", "NXDOMAIN, EDE 15 special-name"},
			} {
				if wire == "udp" && strings.HasSuffix(row.question, "ANY") {
					continue // dig sends ANY over TCP
				}
				if got := s.dig(t, wire, "builder", strings.Fields(row.question)...); got != row.want {
					t.Errorf("%s over %s: %s, want %s", row.question, wire, got, row.want)
				}
			}
		}
		for _, wire := range []string{"dot", "doh"} {
			if got, want := s.dig(t, wire, "", "allowed.example"), "REFUSED, EDE 18 identity-missing"; got != want {
				t.Errorf("without a certificate over %s: %s, want %s", wire, got, want)
			}
		}
	}
}

// TestDNSConnectionsDoNotDelayTheEnd checks that idle connections end with the gateway.
// Otherwise it would wait for them for 30 s, which is longer than this test waits.
func TestDNSConnectionsDoNotDelayTheEnd(t *testing.T) {
	t.Parallel()
	s := newDNSSite(t, false)
	for _, name := range []string{"dot", "doh"} {
		conn, err := tls.Dial("tcp", s.process.listening(t, name).String(), &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: s.roots(t), ServerName: "localhost", Certificates: s.pair(t, "builder"),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if got, want := s.dig(t, "udp", "", "allowed.example", "A"), "NOERROR, A 93.184.216.34"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	s.process.signal(t, syscall.SIGTERM)
	if code := s.process.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// dnspython is a program with an independent implementation of DNS. For each question it
// prints a line with the protocol, the code, the answers and the extended error.
const dnspython = `
import ssl, sys
import dns.edns, dns.flags, dns.message, dns.query, dns.rcode
plain, dot = int(sys.argv[1]), int(sys.argv[2])
tls = ssl.create_default_context(cafile='ca.pem')
tls.load_cert_chain('builder.pem', 'builder_key.pem')
def show(way, r):
    errors = [o for o in r.options if o.otype == 15]
    said = ' '.join('%d %s' % (int.from_bytes(o.to_wire()[:2], 'big'), o.to_wire()[2:].decode().split(' d=')[0]) for o in errors)
    print(way, dns.rcode.to_text(r.rcode()), ' '.join(sorted(str(d) for a in r.answer for d in a)), said, sep='|')
for name, kind in (('allowed.example.', 'A'), ('denied.example.', 'A'), ('leaky.example.', 'A'), ('allowed.example.', 'NULL')):
    q = dns.message.make_query(name, kind, use_edns=0)
    show('udp', dns.query.udp(q, '127.0.0.1', port=plain, timeout=10))
    show('tcp', dns.query.tcp(q, '127.0.0.1', port=plain, timeout=10))
    show('tls', dns.query.tls(q, '127.0.0.1', port=dot, timeout=10, ssl_context=tls, server_hostname='localhost'))
`

func TestDNSWithDNSPython(t *testing.T) {
	t.Parallel()
	python := ""
	for _, candidate := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(candidate, "-c", "import dns.query").Run() == nil {
			python = candidate
		}
	}
	if python == "" {
		need(t, "python3 with dnspython")
	}
	s := newDNSSite(t, false)
	plain, dot := s.process.listening(t, "plain"), s.process.listening(t, "dot")
	stdout, stderr, code := run(t, s.dir, python, "-c", dnspython, fmt.Sprint(plain.Port()), fmt.Sprint(dot.Port()))
	var want []string
	for _, answer := range []string{"NOERROR|93.184.216.34|", "NXDOMAIN||15 r=not-on-allowlist", "NOERROR||15 r=resolved-address-denied", "NOERROR||15 r=type-not-allowed"} {
		for _, way := range []string{"udp", "tcp", "tls"} {
			want = append(want, way+"|"+answer)
		}
	}
	if got := strings.TrimSpace(stdout); code != 0 || got != strings.Join(want, "\n") {
		t.Errorf("exit code %d\n%s\nwant\n%s\n%s", code, got, strings.Join(want, "\n"), stderr)
	}
}

// TestDNSStubs runs the resolvers of real C libraries, of Go, c-ares and Java in a network
// namespace; see the program in dns/stubs.
func TestDNSStubs(t *testing.T) {
	t.Parallel()
	need(t, "unshare", "ip", "mount", "getent", "musl-gcc", "node", "java", "javac")
	if exec.Command("unshare", "--map-root-user", "--mount", "--net", "true").Run() != nil {
		missing.Skip(t, "no namespaces: unshare --map-root-user is not permitted here")
	}
	dir := t.TempDir()
	build := func(name string, args ...string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		cmd := exec.Command(args[0], append(args[1:], "-o", path)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return path
	}
	musl := build("musl", "musl-gcc", "-static", "-O2", "dns/musl/lookup.c")
	harness := filepath.Join(dir, "stubs")
	programs := exec.Command("go", "build", "-ldflags=-s -w", "-o", dir+"/", "./dns/stubs", "./dns/golookup")
	programs.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := programs.CombinedOutput(); err != nil {
		t.Fatalf("building stubs and golookup: %v\n%s", err, out)
	}
	if out, err := exec.Command("javac", append(lightJVM("-J"), "-d", dir, "dns/java/Lookup.java")...).CombinedOutput(); err != nil {
		t.Fatalf("javac: %v\n%s", err, out)
	}
	cares, err := filepath.Abs("dns/cares/lookup.js")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	stdout, stderr, code := run(t, dir, "unshare", "--map-root-user", "--mount", "--net", harness,
		"-exeat", exeat, "-musl", musl, "-go", filepath.Join(dir, "golookup"), "-cares", cares, "-java", dir)
	t.Logf("in %s:\n%s", time.Since(begin).Round(time.Millisecond), stdout)
	if code != 0 {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}
