package e2e

import (
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/e2e/missing"
	"github.com/exeat-dev/exeat/e2e/site"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// recordedPort is the port in the recorded requests.
const recordedPort = "8443"

// newRecordedOrigin starts an origin that sends back what it receives. Its port is
// recordedPort, and its address one of loopback that no other test uses.
func newRecordedOrigin(t *testing.T) (address string) {
	t.Helper()
	address = fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	echo, err := site.NewEchoAt(t.Context(), net.JoinHostPort(address, recordedPort))
	if err != nil {
		missing.Skip(t, "this system cannot listen on every address of 127.0.0.0/8: "+err.Error())
	}
	t.Cleanup(echo.Close) // after the gateway has ended
	return address
}

// TestRecordedClients sends the bytes of clients that are not installed where the tests
// run. testdata/h2/README.md says where they come from.
func TestRecordedClients(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "h2", "*.hex"))
	if err != nil || len(files) == 0 {
		t.Fatal("no recordings", err)
	}
	address := newRecordedOrigin(t)
	s := newSite(t)
	write(t, s.dir, map[string]string{
		"exeat.yaml": strings.Replace(siteConfig, "hosts:\n", "hosts:\n    origin.example: ["+address+"]\n    second.example: ["+address+"]\n", 1),
		"policy.yaml": fmt.Sprintf(`version: 1
destinations:
  here:
    - {host: origin.example, ports: [%[1]s], addresses: [%[2]s/32]}
    - {host: second.example, ports: [%[1]s], addresses: [%[2]s/32]}
identities:
  - {id: %[3]q, allow: [{use: here}]}
  - {id: %[4]q, allow: [{use: here}]}
`, recordedPort, address, builder, gateway),
	})
	p := start(t, s.dir, "serve")
	for _, file := range files {
		script, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".hex")
		t.Run(name+" over TLS", func(t *testing.T) {
			conn := tls.Client(p.dial(t, "mtls"), &tls.Config{
				MinVersion: tls.VersionTLS13, RootCAs: s.roots(t), ServerName: "localhost", Certificates: s.pair(t, "builder"), NextProtos: []string{"h2", "http/1.1"},
			})
			play(t, conn, string(script))
		})
		t.Run(name+" without TLS", func(t *testing.T) { play(t, p.dial(t, "own"), string(script)) })
	}
	if text := p.stdout.String(); strings.Contains(text, `"event":"handshake"`) {
		t.Errorf("a connection was ended for what was sent:\n%s", text)
	}
}

// play sends the bytes of a recording, and checks the answers.
func play(t *testing.T, conn net.Conn, script string) {
	t.Helper()
	peer := h2test.NewSilentPeer(conn)
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		switch {
		case line == "", strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, ">"):
			var id uint32
			var status string
			if _, err := fmt.Sscanf(line, "> %d %s", &id, &status); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if got := peer.Status(t, id); got != status {
				t.Fatalf("stream %d: answered %q, want %s", id, got, status)
			}
			if status == "200" {
				word := fmt.Sprintf("through stream %d", id)
				peer.Body(t, id, word, false)
				if got := peer.On(t, id); got.Data != word {
					t.Fatalf("stream %d: got %+v, want %q", id, got, word)
				}
			}
		default:
			bytes, err := hex.DecodeString(line)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			peer.Send(t, func() error { _, err := conn.Write(bytes); return err })
		}
	}
}
