package load_test

import (
	"encoding/binary"
	"io"
	"net"
	"testing"

	"github.com/exeat-dev/exeat/e2e/site/load"
	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// serveStreams starts a server of HTTP/2 whose origins are called echo, source and sink.
func serveStreams(t *testing.T) string {
	t.Helper()
	return serve(t, func(conn net.Conn) {
		if got := make([]byte, len(h2.Preface)); read(conn, got) != h2.Preface {
			t.Errorf("the preface is %q", got)
		}
		link, err := tunnel.NewLink(conn)
		if err != nil {
			t.Error(err)
			return
		}
		_ = h2.New(h2.Config{Serve: func(s *h2.Stream, head h2.Head) func() {
			if head.Get(":method") != "CONNECT" || head.Get(":authority") == "denied" {
				_ = s.WriteFields([]h2.Field{{Name: ":status", Value: "403"}}, true)
				return nil
			}
			_ = s.WriteFields([]h2.Field{{Name: ":status", Value: "200"}}, false)
			serveOrigin(s, head.Get(":authority"))
			_ = s.CloseWrite()
			return nil
		}}, link).Run(t.Context(), nil)
	})
}

// serveOrigin does what the origin of a measurement does.
func serveOrigin(s *h2.Stream, service string) {
	if service == "echo" {
		_, _ = io.Copy(s, s)
		return
	}
	count := make([]byte, 8)
	_, _ = io.ReadFull(s, count)
	n := int64(binary.BigEndian.Uint64(count))
	if service == "source" {
		_, _ = s.Write(make([]byte, n))
		return
	}
	_, _ = io.CopyN(io.Discard, s, n)
	_, _ = s.Write(count)
}

// TestTunnelsOverHTTP2 opens tunnels by both clients of HTTP/2, and moves more bytes than
// their windows have.
func TestTunnelsOverHTTP2(t *testing.T) {
	session, err := (&load.Client{Proxy: serveStreams(t)}).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	for name, opener := range map[string]func() load.Opener{
		"session": func() load.Opener { return session },
		"framed":  func() load.Opener { return &load.Framed{Client: &load.Client{Proxy: serveStreams(t)}} },
	} {
		if err := load.Exchange(t.Context(), opener(), "echo", 64); err != nil {
			t.Errorf("%s: echo: %v", name, err)
		}
		if err := load.Down(t.Context(), opener(), "source", 10<<20); err != nil {
			t.Errorf("%s: down: %v", name, err)
		}
		if err := load.Up(t.Context(), opener(), "sink", 10<<20); err != nil {
			t.Errorf("%s: up: %v", name, err)
		}
		if _, err := opener().Open(t.Context(), "denied"); err == nil {
			t.Errorf("%s: a refused tunnel is open", name)
		}
	}
}
