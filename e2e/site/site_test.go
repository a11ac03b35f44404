package site_test

import (
	"crypto/tls"
	"net"
	"os"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
	"github.com/exeat-dev/exeat/e2e/site/load"
)

func TestASiteIsGoneWhenItIsClosed(t *testing.T) {
	s, err := site.New("prod.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gateway/svid.pem", "gateway/svid_key.pem", "gateway/bundle.pem"} {
		if _, err := os.Stat(s.Path(name)); err != nil {
			t.Error(err)
		}
	}
	p, err := s.Start(script(t, "exec sleep 60"), site.Ready{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	select {
	case <-p.Ended():
	default:
		t.Error("the process goes on")
	}
	if _, err := os.Stat(s.Path("")); !os.IsNotExist(err) {
		t.Errorf("the directory: %v", err)
	}
}

func TestCallerAndGatewayTrustEachOther(t *testing.T) {
	s, err := site.New("prod.example")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	svid, err := s.Mint("/caller")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(s.Path("gateway/svid.pem"), s.Path("gateway/svid_key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	done := make(chan error, 1)
	go func() {
		config := s.Client(nil)
		done <- tls.Server(server, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: config.RootCAs,
		}).Handshake()
	}()
	if err := tls.Client(client, s.Client(svid)).Handshake(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEchoSendsBackAndCloses(t *testing.T) {
	e, err := site.NewEcho(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := load.Exchange(t.Context(), new(load.Client), e.At("127.0.0.1"), 64); err != nil {
		t.Error(err)
	}
}

func TestAFileIsReplaced(t *testing.T) {
	s, err := site.New("prod.example")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := time.Now()
	for _, text := range []string{"first", "second"} {
		at, err := s.Replace("gateway/policy.yaml", text)
		if got, _ := os.ReadFile(s.Path("gateway/policy.yaml")); err != nil || at.Before(before) || string(got) != text {
			t.Errorf("%q at %s, %v", got, at, err)
		}
	}
}

func TestRecordsAreReadByLine(t *testing.T) {
	line := `{"event":"decision","status":403,"resolve_ms":1.5}` + "\n"
	for _, row := range []struct {
		text string
		want int
	}{{"", 0}, {line[:10], 0}, {line, 1}, {line + line + line[:1], 2}} {
		all, err := site.ParseRecords(row.text)
		if err != nil || len(all) != row.want {
			t.Errorf("%q: %d records, %v, want %d", row.text, len(all), err, row.want)
		}
		for _, r := range all {
			if r != (site.Record{Event: "decision", Status: 403, ResolveMS: 1.5}) {
				t.Errorf("got %+v", r)
			}
		}
	}
	if _, err := site.ParseRecords("{\n"); err == nil {
		t.Error("a broken line is read")
	}
}
