package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/caller"
	"github.com/exeat-dev/exeat/cmd/exeat/stage"
)

// step is one command to try, with the expected answer.
type step struct {
	title   string
	caller  string // directory of the caller's SVID; "" for none
	host    string
	by      means
	promise string // beginning of the expected answer
}

// means says how a step asks for a host.
type means uint8

// The means: a tunnel by HTTP/1.1, a tunnel by HTTP/2, and a DNS query over TLS.
const (
	http1 means = iota
	http2
	lookup
)

// target returns the address of a host at the origin's port.
func (d *demo) target(host string) string {
	return net.JoinHostPort(host, strconv.Itoa(int(d.origin.Addr.Port())))
}

func (d *demo) steps() []step {
	return []step{
		{"allowed: builder may reach " + demoHello, "builder", demoHello, http1, "200 OK"},
		{
			"denied: builder may not reach " + demoSecret, "builder", demoSecret, http1,
			"403 egress denied: " + d.target(demoSecret) + " is not allowed for ns/ci/sa/builder",
		},
		{"allowed: the same by HTTP/2 (curl 8.1 or later)", "builder", demoHello, http2, "200"},
		{"allowed: reporter may reach it", "reporter", demoSecret, http1, "200 OK"},
		{
			"refused: nobody gets out without a certificate", "", demoHello, http1,
			"407 egress denied: no certificate, or none issued by " + demoDomain,
		},
		{"resolved: builder may look " + demoHello + " up, over DoT", "builder", demoHello, lookup, "status: NOERROR"},
		{"not resolved: " + demoSecret + " does not exist for it", "builder", demoSecret, lookup, "status: NXDOMAIN"},
	}
}

// command returns the step as a shell command with curl or dig.
func (d *demo) command(s step) string {
	if s.by == lookup {
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
	if s.by == http2 {
		args = append(args, "--proxy-http2")
	}
	args = append(args, "https://"+d.target(s.host)+"/")
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
	fmt.Fprintf(&b, "exeat demo: an authority, a gateway on %s, with DNS over TLS on %s, and an origin on %s run in this process.\n", d.addr, d.dot, d.origin.Addr)
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
	c := caller.Caller{Gateway: d.addr}
	if c.Roots, err = d.roots(); err != nil {
		return "", err
	}
	if s.caller != "" {
		svid, err := tls.LoadX509KeyPair(d.path(filepath.Join(s.caller, "svid.pem")), d.path(filepath.Join(s.caller, "svid_key.pem")))
		if err != nil {
			return "", err
		}
		c.Certificate = &svid
	}
	switch s.by {
	case lookup:
		c.Gateway = d.dot
		return c.LookUp(ctx, s.host)
	case http2:
		return c.FetchH2(ctx, d.target(s.host), stage.Greeting(s.host))
	case http1:
	}
	return c.Fetch(ctx, d.target(s.host), stage.Greeting(s.host))
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
