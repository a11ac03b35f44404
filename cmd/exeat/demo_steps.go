package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// step is one command to try, with the expected answer.
type step struct {
	title   string
	caller  string // directory of the caller's SVID; "" for none
	host    string
	lookup  bool   // look the host up over DNS, instead of opening a tunnel to it
	promise string // beginning of the expected answer
}

func (d *demo) steps() []step {
	where := func(host string) string { return host + ":" + strconv.Itoa(int(d.origin.addr.Port())) }
	return []step{
		{"allowed: builder may reach " + demoHello, "builder", demoHello, false, "200 OK"},
		{
			"denied: builder may not reach " + demoSecret, "builder", demoSecret, false,
			"403 egress denied: " + where(demoSecret) + " is not allowed for ns/ci/sa/builder",
		},
		{"allowed: reporter may reach it", "reporter", demoSecret, false, "200 OK"},
		{
			"refused: nobody gets out without a certificate", "", demoHello, false,
			"407 egress denied: no certificate, or none issued by " + demoDomain,
		},
		{"resolved: builder may look " + demoHello + " up, over DoT", "builder", demoHello, true, "status: NOERROR"},
		{"not resolved: " + demoSecret + " does not exist for it", "builder", demoSecret, true, "status: NXDOMAIN"},
	}
}

// command returns the step as a shell command with curl or dig.
func (d *demo) command(s step) string {
	if s.lookup {
		return d.dig(s)
	}
	args := []string{
		"curl -sS -i", "--cacert " + d.path("builder/bundle.pem"),
		"--proxy https://" + d.addr.String(), "--proxy-cacert " + d.path("builder/bundle.pem"),
	}
	if s.caller != "" {
		args = append(args, "--proxy-cert "+d.path(filepath.Join(s.caller, "svid.pem")),
			"--proxy-key "+d.path(filepath.Join(s.caller, "svid_key.pem")))
	}
	args = append(args, "https://"+s.host+":"+strconv.Itoa(int(d.origin.addr.Port()))+"/")
	return strings.Join(args, " \\\n      ")
}

func (d *demo) dig(s step) string {
	return strings.Join([]string{
		fmt.Sprintf("dig @%s -p %d", d.dot.Addr(), d.dot.Port()),
		"+tls-ca=" + d.path("builder/bundle.pem") + " +tls-hostname=localhost",
		"+tls-certfile=" + d.path(filepath.Join(s.caller, "svid.pem")),
		"+tls-keyfile=" + d.path(filepath.Join(s.caller, "svid_key.pem")),
		s.host + " A | grep -oE 'status: [A-Z]+|EDE: .*'",
	}, " \\\n      ")
}

// explain prints the commands to try.
func (d *demo) explain(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "exeat demo: an authority, a gateway on %s, with DNS over TLS on %s, and an origin on %s run in this process.\n", d.addr, d.dot, d.origin.addr)
	b.WriteString("Paste these into another terminal:\n")
	for i, s := range d.steps() {
		fmt.Fprintf(&b, "\n%d. %s\n\n    %s\n\n    # %s\n", i+1, s.title, d.command(s), s.promise)
	}
	fmt.Fprintf(&b, `
Every decision is a line in
    %s
The policy is
    %s
Edit it while the demo runs: it holds as soon as it is saved, and closes the
tunnels that it no longer allows.

Ctrl-C ends the demo and removes everything.
`, d.path("records.jsonl"), d.policy)
	_, err := io.WriteString(w, b.String())
	return err
}

// check tries every step against the running gateway and reports whether all answers
// were as expected.
func (d *demo) check(ctx context.Context, w io.Writer) (bool, error) {
	all := true
	for i, s := range d.steps() {
		answer, err := d.try(ctx, s)
		if err != nil {
			return false, fmt.Errorf("step %d (%s): %w", i+1, s.title, err)
		}
		outcome := "ok  "
		if !strings.HasPrefix(answer, s.promise) {
			outcome, all = "FAIL", false
		}
		if _, err := fmt.Fprintf(w, "%s %d. %s\n       %s\n", outcome, i+1, s.title, answer); err != nil {
			return false, err
		}
		if outcome == "FAIL" {
			if _, err := fmt.Fprintf(w, "       promised: %s\n", s.promise); err != nil {
				return false, err
			}
		}
	}
	return all, nil
}

// try does what the step's command would do, and returns the beginning of what it would
// print.
func (d *demo) try(ctx context.Context, s step) (answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	roots, err := d.roots()
	if err != nil {
		return "", err
	}
	addr := d.addr
	if s.lookup {
		addr = d.dot
	}
	conn, err := d.dial(ctx, addr, s.caller, roots)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if s.lookup {
		return lookUp(conn, s.host)
	}
	return d.connect(ctx, conn, s.host, roots)
}

// dial makes a TLS connection to the gateway, with the caller's SVID if it has one.
func (d *demo) dial(ctx context.Context, addr netip.AddrPort, caller string, roots *x509.CertPool) (net.Conn, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost"}
	if caller != "" {
		pair, err := tls.LoadX509KeyPair(d.path(filepath.Join(caller, "svid.pem")), d.path(filepath.Join(caller, "svid_key.pem")))
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", addr.String())
}

// lookUp queries the A records of a name (RFC 7858, RFC 1035).
func lookUp(conn net.Conn, host string) (answer string, err error) {
	query := []byte{0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0} // length, id 1, RD, one question
	for label := range strings.SplitSeq(host, ".") {
		query = append(query, byte(len(label))) //nolint:gosec // G115: a name of the demo
		query = append(query, label...)
	}
	query = append(query, 0, 0, 1, 0, 1) // the root, A, IN
	query[1] = byte(len(query) - 2)      //nolint:gosec // G115: a name of the demo
	if _, err := conn.Write(query); err != nil {
		return "", err
	}
	var head [2 + 12]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return "", err
	}
	switch code := head[5] & 0xf; code {
	case 0:
		return "status: NOERROR", nil
	case 3:
		return "status: NXDOMAIN", nil
	default:
		return fmt.Sprintf("status: %d", code), nil
	}
}

// connect sends a CONNECT and, if a tunnel is opened, a request to the origin. It
// returns the status and the reason phrase of the proxy's answer.
func (d *demo) connect(ctx context.Context, conn net.Conn, host string, roots *x509.CertPool) (answer string, err error) {
	target := host + ":" + strconv.Itoa(int(d.origin.addr.Port()))
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusOK {
		err = greeted(ctx, conn, roots, host)
	}
	return resp.Status, err
}

func (d *demo) roots() (*x509.CertPool, error) {
	pem, err := os.ReadFile(d.path("builder/bundle.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("the demo's bundle has no certificate")
	}
	return roots, nil
}

// greeted sends a request to the origin through the tunnel.
func greeted(ctx context.Context, tunnel net.Conn, roots *x509.CertPool, host string) error {
	inner := tls.Client(tunnel, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: host})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/", nil)
	if err != nil {
		return err
	}
	if err := req.Write(inner); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(inner), req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("hello from %q\n", host); string(body) != want {
		return fmt.Errorf("the origin answered %q, want %q", body, want)
	}
	return nil
}
