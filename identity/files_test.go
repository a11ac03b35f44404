package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func block(kind string, raw []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}))
}

func certPEM(cert tls.Certificate) string {
	var out strings.Builder
	for _, raw := range cert.Certificate {
		out.WriteString(block("CERTIFICATE", raw))
	}
	return out.String()
}

func keyPEM(t *testing.T, key crypto.PrivateKey) string {
	t.Helper()
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", raw)
}

func caPEM(cas ...testCA) string {
	var out strings.Builder
	for _, ca := range cas {
		out.WriteString(block("CERTIFICATE", ca.cert.Raw))
	}
	return out.String()
}

// write fills a new directory. Its files have the names in a FileConfig.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// three returns the configuration of the three files in a directory.
func three(dir string) FileConfig {
	return FileConfig{Certificate: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), Bundle: filepath.Join(dir, "bundle")}
}

// TestLoadFilesReadsWhatIssuersWrite checks that every form of files is read that
// issuers write.
func TestLoadFilesReadsWhatIssuersWrite(t *testing.T) {
	ca, other := newCA(t, "prod"), newCA(t, "partner")
	old := newCA(t, "old", valid(-3*time.Hour, -time.Hour))
	svid := ca.newCA(t, "intermediate").issue(t, gatewayID)
	key, ok := svid.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("not an EC key")
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaTemplate := &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	withURIs(gatewayID)(rsaTemplate)
	rsaLeaf := block("CERTIFICATE", create(t, rsaTemplate, ca.cert, rsaKey.Public(), ca.key).Raw)

	for name, files := range map[string]map[string]string{
		"EC, PKCS #8":            {"cert": certPEM(svid), "key": keyPEM(t, key), "bundle": caPEM(ca)},
		"EC, SEC 1":              {"cert": certPEM(svid), "key": block("EC PRIVATE KEY", sec1), "bundle": caPEM(ca)},
		"EC, after parameters":   {"cert": certPEM(svid), "key": block("EC PARAMETERS", []byte{6, 0}) + block("EC PRIVATE KEY", sec1), "bundle": caPEM(ca)},
		"RSA, PKCS #8":           {"cert": rsaLeaf, "key": keyPEM(t, rsaKey), "bundle": caPEM(ca)},
		"RSA, PKCS #1":           {"cert": rsaLeaf, "key": block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), "bundle": caPEM(ca)},
		"text around the blocks": {"cert": "subject=\n" + certPEM(svid) + "\n", "key": "Bag\n" + keyPEM(t, key), "bundle": "# ours\n" + caPEM(ca)},
		"an old CA beside ours":  {"cert": certPEM(svid), "key": keyPEM(t, key), "bundle": caPEM(old, ca)},
	} {
		t.Run(name, func(t *testing.T) {
			files["partner"] = caPEM(other)
			dir := write(t, files)
			config := three(dir)
			config.Bundles = map[string]string{"partner.example": filepath.Join(dir, "partner")}
			loaded, err := LoadFiles(config)
			if err != nil {
				t.Fatal(err)
			}
			checkSnapshot(t, loaded.Snapshot(), "partner.example", "prod.example")
		})
	}

	for name, names := range map[string][3]string{
		"spiffe-helper": {"svid.pem", "svid_key.pem", "bundle.pem"},
		"CSI driver":    {"tls.crt", "tls.key", "ca.crt"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, map[string]string{names[0]: certPEM(svid), names[1]: keyPEM(t, key), names[2]: caPEM(ca)})
			loaded, err := LoadFiles(FileConfig{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			checkSnapshot(t, loaded.Snapshot(), "prod.example")
		})
	}
}

func checkSnapshot(t *testing.T, snap *Snapshot, domains ...string) {
	t.Helper()
	if snap.ID().String() != gatewayID || snap.TrustDomain().Name() != "prod.example" || snap.Generation() != 1 || snap.NotAfter().IsZero() {
		t.Errorf("ID %s, trust domain %s, generation %d, NotAfter %s", snap.ID(), snap.TrustDomain(), snap.Generation(), snap.NotAfter())
	}
	if snap.Certificate().Leaf == nil || snap.Certificate().PrivateKey == nil {
		t.Error("certificate without leaf or key")
	}
	var got []string
	for _, td := range snap.TrustDomains() {
		got = append(got, td.Name())
		if snap.Roots(td).Equal(x509.NewCertPool()) {
			t.Errorf("no roots for %s", td)
		}
	}
	if strings.Join(got, " ") != strings.Join(domains, " ") {
		t.Errorf("trust domains %v, want %v", got, domains)
	}
	if stranger := snap.Roots(spiffeid.RequireTrustDomainFromString("stranger.example")); stranger == nil || !stranger.Equal(x509.NewCertPool()) {
		t.Error("roots of a stranger are not an empty pool")
	}
	if snap.trusted.callerAuthorities().Equal(x509.NewCertPool()) {
		t.Error("no CA names")
	}
}

// TestLoadFilesSaysWhatToDo checks that the error for each unusable file names the file
// and says what to do.
func TestLoadFilesSaysWhatToDo(t *testing.T) {
	ca, other := newCA(t, "prod"), newCA(t, "other")
	svid := ca.issue(t, gatewayID)
	foreign := newCA(t, "foreign", func(c *x509.Certificate) { c.URIs = append(c.URIs, mustURL(t, "spiffe://foreign.example")) })
	odd := newCA(t, "odd", func(c *x509.Certificate) { c.URIs = append(c.URIs, mustURL(t, "spiffe://Odd.example")) })
	good := map[string]string{"cert": certPEM(svid), "key": keyPEM(t, svid.PrivateKey), "bundle": caPEM(ca)}
	const missing = "\x00" // stands for a file that does not exist
	leaf := func(id string, change ...func(*x509.Certificate)) map[string]string {
		cert := ca.issue(t, id, change...)
		return map[string]string{"cert": certPEM(cert), "key": keyPEM(t, cert.PrivateKey)}
	}
	only := func(name, content string) map[string]string { return map[string]string{name: content} }
	const pfx = "\x30\x10\x02\x01\x03\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01" // version 3 and an empty authSafe

	for _, test := range []struct {
		name  string
		files map[string]string // files that replace those of good
		wants []string          // texts in the error; DIR stands for the directory
	}{
		{"the certificate is missing", only("cert", missing), []string{"certificate file DIR/cert: no such file", "check the path"}},
		{"the key is missing", only("key", missing), []string{"key file DIR/key: no such file", "check the path"}},
		{"the bundle is missing", only("bundle", missing), []string{"bundle file DIR/bundle: no such file", "check the path"}},
		{"the certificate is empty", only("cert", ""), []string{"certificate file DIR/cert is empty", "finished"}},
		{"the bundle is empty", only("bundle", ""), []string{"bundle file DIR/bundle is empty", "finished"}},
		{"the certificate is not PEM", only("cert", "hello"), []string{"certificate file DIR/cert is not PEM", "openssl x509"}},
		{"the key is not PEM", only("key", "hello"), []string{"key file DIR/key is not PEM", "openssl pkey"}},
		{"the bundle is not PEM", only("bundle", "hello"), []string{"bundle file DIR/bundle is not PEM"}},
		{"the certificate is PKCS #12", only("cert", pfx), []string{"certificate file DIR/cert is PKCS #12 and not PEM", "(openssl pkcs12 -nokeys -in DIR/cert)"}},
		{"the key is PKCS #12", only("key", pfx), []string{"key file DIR/key is PKCS #12 and not PEM", "(openssl pkcs12 -nocerts -noenc -in DIR/key)"}},
		{"the bundle is PKCS #12", only("bundle", pfx), []string{"bundle file DIR/bundle is PKCS #12 and not PEM", "(openssl pkcs12 -nokeys -in DIR/bundle)"}},
		{"the bundle is DER", only("bundle", "\x30\x03\x02\x01\x03"), []string{"bundle file DIR/bundle is not PEM", "openssl x509 -inform der"}},
		{"the certificate file is the key", only("cert", good["key"]), []string{"certificate file DIR/cert", `"PRIVATE KEY"`, "mixed up"}},
		{"the key file is the certificate", only("key", good["cert"]), []string{"key file DIR/key", `"CERTIFICATE"`, "mixed up"}},
		{"the certificate is garbage in PEM", only("cert", block("CERTIFICATE", []byte{1, 2})), []string{"certificate file DIR/cert: certificate 1 cannot be parsed"}},
		{"the key is garbage in PEM", only("key", block("PRIVATE KEY", []byte{1, 2})), []string{"key file DIR/key: private key cannot be parsed", "PKCS #8"}},
		{"the key is encrypted", only("key", block("ENCRYPTED PRIVATE KEY", []byte{1})), []string{"key file DIR/key is encrypted", "without a passphrase"}},
		{"the key is encrypted the old way", only("key", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"), []string{"key file DIR/key is encrypted"}},
		{"the key is of an unsupported kind", only("key", block("DSA PRIVATE KEY", []byte{1})), []string{"key file DIR/key", `"DSA PRIVATE KEY"`, "EC or RSA"}},
		{"the key is another one", only("key", keyPEM(t, newKey(t))), []string{"key file DIR/key does not belong", "DIR/cert", "same issue"}},
		{"the file is too large", only("bundle", strings.Repeat("x", maxFileBytes+1)), []string{"bundle file DIR/bundle is larger than 4 MiB"}},
		{"the certificate has no SPIFFE ID", leaf(""), []string{"certificate file DIR/cert is not an X509-SVID", "no URI SAN"}},
		{"the certificate has two SPIFFE IDs", leaf("", withURIs(gatewayID, callerID)), []string{"certificate file DIR/cert", "2 URI SANs"}},
		{"the certificate names a trust domain only", leaf("spiffe://prod.example"), []string{"certificate file DIR/cert", "not a workload"}},
		{"the certificate is a CA", leaf(gatewayID, func(c *x509.Certificate) { c.IsCA = true }), []string{"certificate file DIR/cert", "CA:TRUE", "comes first"}},
		{"the certificate expired", leaf(gatewayID, valid(-2*time.Hour, -time.Hour)), []string{"certificate file DIR/cert: certificate expired 20", "(1h0m", "ago)", "renew"}},
		{"the certificate is not valid yet", leaf(gatewayID, valid(time.Hour, 2*time.Hour)), []string{"certificate file DIR/cert: certificate is not valid before 20", "check the clocks"}},
		{"the bundle did not issue it", only("bundle", caPEM(other)), []string{"certificate file DIR/cert and bundle file DIR/bundle", "not issued by any of the 1 authorities", "same issuer"}},
		{"the bundle is of another trust domain", only("bundle", caPEM(ca, foreign)), []string{"bundle file DIR/bundle", "CN=CA foreign", `"foreign.example"`, `"prod.example"`}},
		{"the bundle has a CA with a wrong ID", only("bundle", caPEM(ca, odd)), []string{"bundle file DIR/bundle", `"spiffe://Odd.example"`}},
		{"the bundle holds a leaf", only("bundle", good["cert"]), []string{"bundle file DIR/bundle", "is not a CA"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := map[string]string{}
			for name, content := range good {
				if changed, ok := test.files[name]; ok {
					content = changed
				}
				if content != missing {
					files[name] = content
				}
			}
			dir := write(t, files)
			_, err := LoadFiles(three(dir))
			checkMessage(t, err, dir, test.wants)
			if test.files["cert"] == missing && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v is not fs.ErrNotExist", err)
			}
		})
	}
}

func TestLoadFilesChecksItsConfiguration(t *testing.T) {
	ca, other := newCA(t, "prod"), newCA(t, "other")
	svid := ca.issue(t, gatewayID)
	cert, key := certPEM(svid), keyPEM(t, svid.PrivateKey)
	dir := write(t, map[string]string{"cert": cert, "key": key, "bundle": caPEM(ca), "other": caPEM(other), "leaf": cert})
	both := write(t, map[string]string{"svid.pem": cert, "tls.key": key})
	half := write(t, map[string]string{"svid.pem": cert})
	more := func(name, file string) FileConfig {
		c := three(dir)
		c.Bundles = map[string]string{name: file}
		return c
	}
	for _, test := range []struct {
		name   string
		config FileConfig
		wants  []string
	}{
		{"nothing", FileConfig{}, []string{"no certificate file is configured", "or a directory"}},
		{"no key", FileConfig{Certificate: "x", Bundle: "y"}, []string{"no key file is configured"}},
		{"no bundle", FileConfig{Certificate: "x", Key: "y"}, []string{"no bundle file is configured"}},
		{"directory and files", FileConfig{Dir: dir, Key: "y"}, []string{"directory DIR and single files", "either"}},
		{"a directory of another kind", FileConfig{Dir: dir}, []string{"directory DIR holds neither svid.pem", "nor tls.crt"}},
		{"a directory of both kinds", FileConfig{Dir: both}, []string{"two layouts", "name certificate, key and bundle"}},
		{"half a directory", FileConfig{Dir: half}, []string{"svid_key.pem: no such file"}},
		{"no directory", FileConfig{Dir: filepath.Join(dir, "none")}, []string{"identity directory DIR/none: no such file"}},
		{"a directory as a file", FileConfig{Certificate: dir, Key: dir, Bundle: dir}, []string{"certificate file DIR is not a regular file"}},
		{"a bundle for no trust domain", more("Partner", filepath.Join(dir, "other")), []string{"bundle file DIR/other", `"Partner", which is not a trust domain`}},
		{"a second bundle for ours", more("prod.example", filepath.Join(dir, "other")), []string{"bundle file DIR/other", "our own trust domain", "DIR/bundle"}},
		{"a bundle without a path", more("partner.example", ""), []string{"no path is configured for a bundle file"}},
		{"a bundle that is missing", more("partner.example", filepath.Join(dir, "none")), []string{"bundle file DIR/none: no such file"}},
		{"a bundle that holds a leaf", more("partner.example", filepath.Join(dir, "leaf")), []string{"bundle file DIR/leaf", "is not a CA"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := LoadFiles(test.config)
			checkMessage(t, err, dir, test.wants)
		})
	}
}

func TestLoadWebCertificate(t *testing.T) {
	ca := newCA(t, "web")
	named := func(change ...func(*x509.Certificate)) map[string]string {
		cert := ca.issue(t, "", append([]func(*x509.Certificate){func(c *x509.Certificate) { c.DNSNames = []string{"proxy.example"} }}, change...)...)
		return map[string]string{"cert": certPEM(cert), "key": keyPEM(t, cert.PrivateKey)}
	}
	nameless := ca.issue(t, gatewayID)
	mixed := named()
	mixed["key"] = keyPEM(t, newKey(t))
	for _, test := range []struct {
		name  string
		files map[string]string
		wants []string // texts in the error; none if there is no error
	}{
		{"with a DNS name", named(), nil},
		{"with an IP address only", named(func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)} }), nil},
		{"without names", map[string]string{"cert": certPEM(nameless), "key": keyPEM(t, nameless.PrivateKey)}, []string{"certificate file DIR/cert has no DNS name", "clients reach"}},
		{"for clients only", named(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), []string{"certificate file DIR/cert is not for servers", "serverAuth"}},
		{"expired", named(valid(-2*time.Hour, -time.Hour)), []string{"certificate file DIR/cert: certificate expired"}},
		{"with another key", mixed, []string{"key file DIR/key does not belong"}},
		{"without a key", map[string]string{"cert": mixed["cert"]}, []string{"key file DIR/key: no such file"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := write(t, test.files)
			cert, err := LoadWebCertificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
			if test.wants == nil {
				if err != nil || cert.Certificate().Leaf == nil || cert.Certificate().PrivateKey == nil {
					t.Errorf("got %+v, %v", cert.Certificate(), err)
				}
				return
			}
			checkMessage(t, err, dir, test.wants)
		})
	}
	if _, err := LoadWebCertificate("", "key"); err == nil {
		t.Error("no error without a certificate file")
	}
}

// checkMessage checks that an error is one line with all the wanted texts, in which DIR
// stands for dir.
func checkMessage(t *testing.T, err error, dir string, wants []string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range wants {
		if want = strings.ReplaceAll(want, "DIR", dir); !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "failed to") {
		t.Errorf("not one clear line: %q", err)
	}
}
