package hostile

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// process is the real program, for tests of files that change, which a gateway in this
// process does not have. It writes its records to a file.
type process struct {
	callers
	ports

	dir     string
	running *site.Process
	taken   int // number of records that next has skipped or returned
}

const processConfig = `version: 1
identity: {dir: identity}
policy: {files: [policy], poll: 10m}
listeners:
  - {name: secure, address: "127.0.0.1:0", identity: mtls}
resolver:
  hosts: {allowed.example: 127.0.0.1, second.example: 127.0.0.1}
records: {file: records.jsonl}
admin: {address: "127.0.0.1:0"}
timeouts: {drain_delay: 0s, drain_timeout: 0s}
`

// program is the exeat binary. It is built when it is first needed.
type program struct {
	dir  string
	once sync.Once
	path string // path of the binary; "" if it does not build
}

func (p *program) build(t *testing.T) string {
	t.Helper()
	p.once.Do(func() {
		if err := site.Build(t.Context(), p.dir, site.Program); err != nil {
			t.Fatal(err)
		}
		p.path = filepath.Join(p.dir, "exeat")
	})
	if p.path == "" {
		t.Fatal("exeat does not build")
	}
	return p.path
}

// start starts the program with a policy, in a new directory.
func (p *program) start(t *testing.T, policy func(*process) string, env ...string) *process {
	t.Helper()
	return start(t, p.build(t), policy, env...)
}

func start(t *testing.T, path string, policy func(*process) string, env ...string) *process {
	t.Helper()
	p := &process{callers: newCallers(t, h1), ports: ports{port: newWorld(t).origin.addr.Port()}, dir: t.TempDir()}
	p.writeIdentity(t)
	p.write(t, "exeat.yaml", processConfig)
	p.write(t, "policy/policy.yaml", policy(p))
	cmd := exec.Command(path, "serve", "--config", p.path("exeat.yaml"))
	cmd.Env, cmd.Dir = append([]string{"OTEL_METRICS_EXPORTER=none"}, env...), p.dir
	var err error
	if p.running, err = site.Start(cmd, site.Ready{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.running.Stop()
		if !p.running.State().Success() {
			t.Errorf("the gateway ended with %s\n%s", p.running.State(), p.running.Stderr)
		}
	})
	p.secure = netip.MustParseAddrPort(p.logged(t, `listener=secure[^\n]* address=(\S+)`))
	return p
}

func (p *process) writeIdentity(t *testing.T) {
	t.Helper()
	svid := p.ca.svid(t, "gateway")
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"svid.pem":     {Type: "CERTIFICATE", Bytes: svid.Certificate[0]},
		"svid_key.pem": {Type: "PRIVATE KEY", Bytes: key},
		"bundle.pem":   {Type: "CERTIFICATE", Bytes: p.ca.cert.Raw},
	} {
		p.write(t, "identity/"+name, string(pem.EncodeToMemory(block)))
	}
}

func writeFile(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

func (p *process) path(name string) string { return filepath.Join(p.dir, name) }

// write writes a file in place, and creates its directory.
func (p *process) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, p.path(name), text)
}

// replace replaces a file by a rename.
func (p *process) replace(t *testing.T, name, text string) {
	t.Helper()
	next := p.path(filepath.Join(filepath.Dir(name), ".next"))
	writeFile(t, next, text)
	p.rename(t, next, p.path(name))
}

func (p *process) rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func (p *process) link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, p.path(name)); err != nil {
		t.Fatal(err)
	}
}

func (p *process) read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(p.path(name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(data)
}

// until waits until good reports true for the whole lines of a file.
func (p *process) until(t *testing.T, name, what string, good func(text string) bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		text := p.read(t, name)
		if good(text[:strings.LastIndexByte(text, '\n')+1]) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s\n%s", what, text)
		}
	}
}

// logged waits for a line of the log that matches, and returns its first group.
func (p *process) logged(t *testing.T, pattern string) string {
	t.Helper()
	found, err := p.running.Stderr.Line(patience, regexp.MustCompile(pattern))
	if err != nil {
		t.Fatalf("a line that matches %s: %v\n%s", pattern, err, p.running.Stderr)
	}
	return found[1]
}

// all parses the records in a text.
func (p *process) all(t *testing.T, text string) []record {
	t.Helper()
	var all []record
	for line := range bytes.Lines([]byte(text)) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("record %q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

// next waits for the next record of an event, and skips records of other events.
func (p *process) next(t *testing.T, event audit.Event) record {
	t.Helper()
	var found record
	p.until(t, "records.jsonl", string(event), func(text string) bool {
		for i, r := range p.all(t, text) {
			if i >= p.taken && r.Event == string(event) {
				found, p.taken = r, i+1
				return true
			}
		}
		return false
	})
	return found
}

// inForce waits for the next record of a policy, which must be in force as that
// generation.
func (p *process) inForce(t *testing.T, generation uint64) record {
	t.Helper()
	r := p.next(t, audit.EventPolicyReload)
	if r.Generation != generation || !strings.HasPrefix(r.Detail, "closed ") {
		t.Fatalf("record %+v, want generation %d in force", r, generation)
	}
	return r
}

// status sends a CONNECT for a host, and returns the status of the answer.
func (p *process) status(t *testing.T, host string) int {
	t.Helper()
	c := p.call(t, "builder")
	got := c.ask(t, connectTo(p.at(host)))
	_ = c.Close()
	return got.status
}

// allowing returns a policy that allows builder these hosts.
func (p *process) allowing(hosts ...string) string {
	text := "version: 1\nidentities:\n  - id: " + id("builder") + "\n    allow:\n"
	for _, host := range hosts {
		text += fmt.Sprintf("      - {host: %s, ports: [%d], addresses: 127.0.0.1/32}\n", host, p.port)
	}
	return text
}
