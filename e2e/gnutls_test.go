package e2e

import (
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const mintedConfig = `version: 1
identity: {dir: gateway}
policy: policy.yaml
listeners:
  - {name: mtls, address: "127.0.0.1:0", identity: mtls}
timeouts: {drain_delay: 0s}
`

// TestGnuTLSReadsMintedCertificates checks that GnuTLS can read the certificates of `exeat
// authority mint`, at both ends of a connection. GnuTLS returns an error to programs for a
// certificate without a subject, so minted certificates have one.
func TestGnuTLSReadsMintedCertificates(t *testing.T) {
	need(t, "sh", "gnutls-cli", "certtool")
	dir := t.TempDir()
	write(t, dir, map[string]string{"exeat.yaml": mintedConfig, "policy.yaml": sitePolicy([]int{443})})
	for out, args := range map[string][]string{
		"gateway": {"--id", gateway, "--dns", "localhost"}, "builder": {"--id", builder},
	} {
		if _, stderr, code := run(t, dir, exeat, append([]string{"authority", "mint", "--out", out}, args...)...); code != 0 {
			t.Fatal(stderr)
		}
	}
	const subject = `O=exeat authority\, not for production`
	out, stderr, code := run(t, dir, "certtool", "--certificate-info", "--infile", filepath.Join("builder", "svid.pem"))
	if want := "\tSubject: " + subject + "\n"; code != 0 || !strings.Contains(out, want) {
		t.Errorf("certtool (exit code %d) reads no %q: %s%s", code, want, out, stderr)
	}

	p := start(t, dir, "serve")
	_, port, _ := strings.Cut(p.listening(t, "mtls").String(), ":")
	out, stderr, code = run(t, dir, "sh", "-c", `printf 'CONNECT secret.example:443 HTTP/1.0\r\n\r\n' | exec gnutls-cli "$@"`, "sh",
		"--x509cafile", "gateway/bundle.pem", "--x509certfile", "builder/svid.pem", "--x509keyfile", "builder/svid_key.pem", "-p", port, "localhost")
	if want := "subject `" + subject + "', issuer `"; code != 0 || !strings.Contains(out, want) || !strings.Contains(out, "\nHTTP/1.1 403 ") {
		t.Errorf("gnutls-cli (exit code %d) shows no %q, or no answer: %s%s", code, want, out, stderr)
	}
	if r := p.record(t, "decision", 0); r.Identity != builder || r.Status != http.StatusForbidden {
		t.Errorf("record %+v", r)
	}
	p.signal(t, syscall.SIGTERM)
	p.exit(t)
}
