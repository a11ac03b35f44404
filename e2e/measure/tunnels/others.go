package tunnels

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"github.com/exeat-dev/exeat/e2e/site"
)

// other is a program of another project that is measured beside exeat, as it is packaged.
// Its configuration makes it do as little as possible.
type other struct {
	name  string // name and version
	start func(ctx context.Context) (*peer, error)
	peer  *peer
}

// startOthers starts all of them, and warms them up with the callers.
func (w *world) startOthers(ctx context.Context, callers []*caller) ([]*other, error) {
	haproxy, err := versionOf(ctx, haproxyPath, "HAProxy", "-v")
	if err != nil {
		return nil, err
	}
	squid, err := versionOf(ctx, squidPath, "Squid", "-v")
	if err != nil {
		return nil, err
	}
	if err := w.prepareOthers(); err != nil {
		return nil, err
	}
	others := []*other{{name: haproxy, start: w.startHAProxy}, {name: squid, start: w.startSquid}}
	for _, o := range others {
		if o.peer, err = o.start(ctx); err != nil {
			return nil, err
		}
		if err := warm(ctx, callers, o.peer); err != nil {
			return nil, fmt.Errorf("%s: %w", o.name, err)
		}
	}
	return others, nil
}

func names(others []*other) []string {
	var all []string
	for _, o := range others {
		all = append(all, o.name)
	}
	return all
}

// othersHead describes what the others do not do.
func othersHead(others []*other) string {
	return fmt.Sprintf("%s knows no CONNECT: it forwards TLS to TCP, one port for each origin, without a policy or a log. "+
		"%s demands a certificate, allows everything and logs every tunnel; one worker, no cache. "+
		"All present P-256 certificates and speak TLS 1.3 with AES-128-GCM and, but in the row that names another key exchange, X25519.",
		others[0].name, others[1].name)
}

// versionOf returns the name of a program and the version in the first line that it
// prints.
func versionOf(ctx context.Context, path, name, flag string) (string, error) {
	out, err := exec.CommandContext(ctx, path, flag).Output()
	if err != nil {
		return "", fmt.Errorf("%s must be installed: %w", name, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	for word := range strings.FieldsSeq(first) {
		if word[0] >= '0' && word[0] <= '9' {
			version, _, _ := strings.Cut(word, "-")
			return name + " " + version, nil
		}
	}
	return "", fmt.Errorf("%s prints no version: %q", name, first)
}

// Paths in Debian's packages.
const (
	haproxyPath = "/usr/sbin/haproxy"
	squidPath   = "/usr/sbin/squid"
)

// squidDir is the directory into which Squid writes, as another user.
const squidDir = "squid"

// prepareOthers writes the files that both need.
func (w *world) prepareOthers() error {
	if err := w.writePair(); err != nil {
		return err
	}
	// The cipher of Go, which OpenSSL would not choose by itself.
	err := w.Write("openssl.cnf", `openssl_conf = all
[all]
ssl_conf = tls
[tls]
system_default = defaults
[defaults]
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = X25519
Options = -SessionTicket
`)
	if err != nil {
		return err
	}
	if err := os.Mkdir(w.Path(squidDir), 0o700); err != nil || os.Getuid() != 0 {
		return err
	}
	account, err := user.Lookup("proxy")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		return err
	}
	if err := os.Chown(w.Path(squidDir), uid, -1); err != nil {
		return err
	}
	return os.Chmod(w.Path(""), 0o711) // the other user must reach its directory
}

// writePair writes the certificate and the key into one file, as HAProxy needs them.
func (w *world) writePair() error {
	pair, err := os.ReadFile(w.Path("gateway/svid.pem"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(w.Path("gateway/svid_key.pem"))
	if err != nil {
		return err
	}
	return w.Write("pair.pem", string(pair)+string(key))
}

// startOther starts a program that listens on the addresses, with a configuration file.
func (w *world) startOther(ctx context.Context, path, config string, listens []string, args ...string) (*site.Process, error) {
	// Each start has a configuration file of its own.
	w.configs++
	file := fmt.Sprintf("other-%d.conf", w.configs)
	if err := w.Write(file, config); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, append(args, w.Path(file))...)
	cmd.Env = []string{"OPENSSL_CONF=" + w.Path("openssl.cnf")}
	return w.Start(cmd, site.Ready{Accepts: listens})
}

// startHAProxy starts HAProxy as a forwarder to each of the three services, with TLS and
// without.
func (w *world) startHAProxy(ctx context.Context) (*peer, error) {
	ports, err := freeAddresses(ctx, 2*len(w.targets))
	if err != nil {
		return nil, err
	}
	var config strings.Builder
	config.WriteString(`global
  maxconn 4000
defaults
  mode tcp
  option splice-request
  option splice-response
  timeout connect 10s
  timeout client 15m
  timeout server 15m
`)
	for i, port := range ports {
		secure := ""
		if i < len(w.targets) {
			secure = fmt.Sprintf(" ssl crt %s ca-file %s verify required ssl-min-ver TLSv1.3 no-tls-tickets", w.Path("pair.pem"), w.Path("gateway/bundle.pem"))
		}
		fmt.Fprintf(&config, "listen l%d\n  bind %s%s\n  server origin %s\n", i, port, secure, w.targets[i%len(w.targets)])
	}
	child, err := w.startOther(ctx, haproxyPath, config.String(), ports, "-db", "-f")
	if err != nil {
		return nil, err
	}
	return &peer{
		name: "HAProxy", process: child, x25519: true,
		secure: door{targets: newTargets(ports)}, clear: door{targets: newTargets(ports[len(w.targets):])},
	}, nil
}

// startSquid starts Squid as a proxy with TLS and without.
func (w *world) startSquid(ctx context.Context) (*peer, error) {
	ports, err := freeAddresses(ctx, 2)
	if err != nil {
		return nil, err
	}
	child, err := w.startOther(ctx, squidPath, fmt.Sprintf(`https_port %s tls-cert=%s tls-key=%s clientca=%s tls-min-version=1.3
http_port %s
http_access allow all
cache deny all
access_log stdio:%s
cache_log %s
pid_filename none
pinger_enable off
shutdown_lifetime 0 seconds
coredump_dir none
workers 1
visible_hostname %s
`, ports[0], w.Path("gateway/svid.pem"), w.Path("gateway/svid_key.pem"), w.Path("gateway/bundle.pem"), ports[1],
		w.Path(squidDir+"/access.log"), w.Path(squidDir+"/cache.log"), site.ServerName), ports, "-N", "-f")
	if err != nil {
		return nil, err
	}
	return proxyPeer(peer{name: "Squid", x25519: true}, child, w.targets), nil
}

// freeAddresses returns addresses on loopback that were free when it was called.
func freeAddresses(ctx context.Context, n int) ([]string, error) {
	free, err := site.FreeAddresses(ctx, n)
	var texts []string
	for _, address := range free {
		texts = append(texts, address.String())
	}
	return texts, err
}
