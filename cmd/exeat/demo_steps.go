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
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// step is one thing to try, and what is promised of it.
type step struct {
	title  string
	caller string // directory of its SVID; "" for none
	host   string
	status int
	phrase string // what the reason phrase begins with
}

func (d *demo) steps() []step {
	where := func(host string) string { return host + ":" + strconv.Itoa(int(d.origin.addr.Port())) }
	return []step{
		{"allowed: builder may reach " + demoHello, "builder", demoHello, 200, "OK"},
		{
			"denied: builder may not reach " + demoSecret, "builder", demoSecret, 403,
			"egress denied: " + where(demoSecret) + " is not allowed for ns/ci/sa/builder",
		},
		{"allowed: reporter may reach it", "reporter", demoSecret, 200, "OK"},
		{
			"refused: nobody gets out without a certificate", "", demoHello, 407,
			"egress denied: no certificate, or none issued by " + demoDomain,
		},
	}
}

// command is the step for a shell, with the system's curl.
func (d *demo) command(s step) string {
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

// explain prints what to try.
func (d *demo) explain(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "exeat demo: an authority, a gateway on %s and an origin on %s run in this process.\n", d.addr, d.origin.addr)
	b.WriteString("Paste these into another terminal:\n")
	for i, s := range d.steps() {
		fmt.Fprintf(&b, "\n%d. %s\n\n    %s\n\n    # %d %s\n", i+1, s.title, d.command(s), s.status, s.phrase)
	}
	fmt.Fprintf(&b, `
Every decision is a line in
    %s
The policy is
    %s
Edit it while the demo runs: it holds as soon as it is saved, and closes the
tunnels that it no longer allows.

Ctrl-C ends the demo and removes everything.
`, d.path("records.jsonl"), d.gateway.cfg.Policy[0])
	_, err := io.WriteString(w, b.String())
	return err
}

// check tries every step against the running gateway and reports whether all
// came out as promised.
func (d *demo) check(ctx context.Context, w io.Writer) (bool, error) {
	all := true
	for i, s := range d.steps() {
		status, phrase, err := d.try(ctx, s)
		if err != nil {
			return false, fmt.Errorf("step %d (%s): %w", i+1, s.title, err)
		}
		outcome := "ok  "
		if status != s.status || !strings.HasPrefix(phrase, s.phrase) {
			outcome, all = "FAIL", false
		}
		if _, err := fmt.Fprintf(w, "%s %d. %s\n       %d %s\n", outcome, i+1, s.title, status, phrase); err != nil {
			return false, err
		}
		if outcome == "FAIL" {
			if _, err := fmt.Fprintf(w, "       promised: %d %s\n", s.status, s.phrase); err != nil {
				return false, err
			}
		}
	}
	return all, nil
}

// try sends a CONNECT and, through a tunnel, a request to the origin. It
// returns the status and the reason phrase of the proxy's answer.
func (d *demo) try(ctx context.Context, s step) (status int, phrase string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	roots, err := d.roots()
	if err != nil {
		return 0, "", err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost"}
	if s.caller != "" {
		pair, err := tls.LoadX509KeyPair(d.path(filepath.Join(s.caller, "svid.pem")), d.path(filepath.Join(s.caller, "svid_key.pem")))
		if err != nil {
			return 0, "", err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", d.addr.String())
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	target := s.host + ":" + strconv.Itoa(int(d.origin.addr.Port()))
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	phrase = strings.TrimPrefix(resp.Status, strconv.Itoa(resp.StatusCode)+" ")
	if resp.StatusCode == http.StatusOK {
		err = greeted(ctx, conn, roots, s.host)
	}
	return resp.StatusCode, phrase, err
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

// greeted asks the origin through the tunnel.
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
