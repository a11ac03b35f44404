package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity/authority"
)

// start serves a relay with certificates from a directory. It returns the relay's
// address, and the configuration of a client that it accepts.
func start(t *testing.T) (addr string, client *tls.Config) {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("bench.example")
	ca, err := authority.New(authority.Config{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	svid, err := ca.Mint(authority.Options{ID: spiffeid.RequireFromPath(td, "/x"), DNS: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := svid.WriteDir(dir, ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	config, err := load(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	go func() { _ = serve(t.Context(), l, config) }()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Bundle())
	return l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{svid.TLS()}}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestRelayPassesEarlyBytesAndBothEnds(t *testing.T) {
	addr, config := start(t)
	origin := listen(t)
	go func() {
		conn, err := origin.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all, _ := io.ReadAll(conn) // the answer comes only after the end, which the relay must pass on
		_, _ = conn.Write(append([]byte("got "), all...))
	}()
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = io.WriteString(conn, "CONNECT "+origin.Addr().String()+" HTTP/1.1\r\nHost: x\r\n\r\nearly")
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); line != "HTTP/1.1 200 OK\r\n" || err != nil {
		t.Fatalf("got %q, %v", line, err)
	}
	if _, err := io.WriteString(conn, " late"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); string(rest) != "\r\ngot early late" || err != nil {
		t.Errorf("got %q, %v", rest, err)
	}
}

func TestRelayDemandsACertificate(t *testing.T) {
	addr, config := start(t)
	config.Certificates = nil
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("no error without a certificate")
	}
}
