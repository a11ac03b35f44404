package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// opensslConfig configures a CA for `openssl ca`, the only command of OpenSSL 3.0 that
// can issue a certificate whose validity begins in the past.
const opensslConfig = `
[ca]
default_ca = this
[this]
dir = .
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
unique_subject = no
policy = any
copy_extensions = none
[any]
commonName = optional
[req]
distinguished_name = dn
prompt = no
[dn]
CN = a test
`

// authority is a trust domain whose certificates are made by OpenSSL.
type authority struct{ dir string }

func newAuthority(t *testing.T, trustDomain string) authority {
	t.Helper()
	need(t, "openssl")
	a := authority{dir: t.TempDir()}
	write(t, a.dir, map[string]string{"openssl.cnf": opensslConfig, "index.txt": ""})
	a.sign(t, "ca", -48*time.Hour, 48*time.Hour,
		"basicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\nsubjectKeyIdentifier = hash\nsubjectAltName = URI:spiffe://"+trustDomain+"\n",
		"-selfsign", "-keyfile", "ca_key.pem")
	return a
}

// mint makes NAME.pem and NAME_key.pem with these alternative names, valid for lifetime
// from now. A negative lifetime makes an expired certificate.
func (a authority) mint(t *testing.T, name string, lifetime time.Duration, names string) {
	t.Helper()
	a.sign(t, name, -24*time.Hour, lifetime,
		"basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\nextendedKeyUsage = clientAuth, serverAuth\nsubjectAltName = "+names+"\n",
		"-cert", "ca.pem", "-keyfile", "ca_key.pem")
}

func (a authority) sign(t *testing.T, name string, from, until time.Duration, extensions string, args ...string) {
	t.Helper()
	const stamp = "20060102150405Z"
	now := time.Now().UTC()
	write(t, a.dir, map[string]string{name + ".ext": extensions})
	a.openssl(t, "req", "-new", "-config", "openssl.cnf", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", name+"_key.pem", "-out", name+".csr")
	a.openssl(t, append([]string{
		"ca", "-batch", "-notext", "-config", "openssl.cnf", "-in", name + ".csr", "-out", name + ".pem", "-extfile", name + ".ext",
		"-startdate", now.Add(from).Format(stamp), "-enddate", now.Add(until).Format(stamp),
	}, args...)...)
}

func (a authority) openssl(t *testing.T, args ...string) {
	t.Helper()
	if _, stderr, code := run(t, a.dir, "openssl", args...); code != 0 {
		t.Fatalf("openssl %s: %s", args[0], stderr)
	}
}

// pair loads a certificate for a client in this process. If name is "", it returns nil.
func (a authority) pair(t *testing.T, name string) []tls.Certificate {
	t.Helper()
	if name == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+"_key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return []tls.Certificate{pair}
}

func (a authority) roots(t *testing.T) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(a.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in ca.pem")
	}
	return roots
}

// Identities for which a site has certificates, or a listener.
const (
	builder = "spiffe://prod.example/ns/ci/sa/builder"
	sidecar = "spiffe://prod.example/ns/web/sa/sidecar"
	gateway = "spiffe://prod.example/gateway"
)

// prodSite is an authority, a configuration and a policy, all in the authority's
// directory. The policy allows builder, sidecar and the gateway itself to reach
// allowed.example and example.com on the given ports. Both names resolve to 127.0.0.1.
type prodSite struct{ authority }

func newSite(t *testing.T, ports ...int) prodSite {
	t.Helper()
	need(t, "openssl")
	s := prodSite{authority{dir: t.TempDir()}}
	for _, f := range minted.all(t) {
		if err := os.WriteFile(filepath.Join(s.dir, f.name), f.data, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	write(t, s.dir, map[string]string{"exeat.yaml": siteConfig, "policy.yaml": sitePolicy(ports)})
	return s
}

// minted holds the authority of prod.example and its certificates, which every site has a
// copy of: OpenSSL takes longer than most tests.
var minted mintedFiles

type mintedFiles struct {
	once  sync.Once
	files []mintedFile // empty if OpenSSL has failed
}

type mintedFile struct {
	name string
	data []byte
	mode os.FileMode
}

// all returns the files, which the first call makes.
func (m *mintedFiles) all(t *testing.T) []mintedFile {
	t.Helper()
	m.once.Do(func() {
		a := newAuthority(t, "prod.example")
		a.mint(t, "gateway", 24*time.Hour, "URI:"+gateway+", DNS:localhost, IP:127.0.0.1")
		a.mint(t, "builder", 24*time.Hour, "URI:"+builder)
		m.files = readFiles(t, a.dir)
	})
	if len(m.files) == 0 {
		t.Fatal("the authority of prod.example could not be made: see the first test that failed")
	}
	return m.files
}

func readFiles(t *testing.T, dir string) []mintedFile {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := make([]mintedFile, 0, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, mintedFile{e.Name(), data, info.Mode().Perm()})
	}
	return files
}

const siteConfig = `version: 1
identity:
  certificate: gateway.pem
  key: gateway_key.pem
  bundle: ca.pem
policy: policy.yaml
listeners:
  - {name: mtls, address: "127.0.0.1:0", identity: mtls}
  - {name: own, address: "127.0.0.1:0", identity: self}
  - {name: socket, address: "unix:exeat.sock", identity: fixed, id: spiffe://prod.example/ns/web/sa/sidecar}
resolver:
  hosts:
    allowed.example: [127.0.0.1]
    secret.example: [127.0.0.1]
    example.com: [127.0.0.1]
limits: {requests_per_identity: 100000, connects_per_second: 100000} # the floods here are about other things
timeouts:
  drain_delay: 0s
`

func sitePolicy(ports []int) string {
	list := "["
	for i, port := range ports {
		if i > 0 {
			list += ", "
		}
		list += fmt.Sprint(port)
	}
	list += "]"
	policy := "version: 1\ndestinations:\n  here:\n"
	for _, host := range []string{"allowed.example", "example.com"} {
		policy += fmt.Sprintf("    - {host: %s, ports: %s, addresses: [127.0.0.1/32]}\n", host, list)
	}
	policy += "identities:\n"
	for _, id := range []string{builder, sidecar, gateway} {
		policy += fmt.Sprintf("  - {id: %q, owner: team-ci, allow: [{use: here}]}\n", id)
	}
	return policy
}

// record is a record as exeat writes it.
type record = site.Record

// record waits for the nth record of an event, counted from 0.
func (p *process) record(t *testing.T, event string, n int) record {
	t.Helper()
	return p.recorded(t, event, n, func(r record) bool { return r.Event == event })
}
