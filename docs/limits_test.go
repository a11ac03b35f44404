package docs

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

// defaults returns the defaults of the configuration's limits and timeouts, in the
// notation of the manual.
func defaults() map[string]string {
	c := config.Defaults()
	l := c.Gateway.Limits
	text := map[string]string{
		"limits.connections":            fmt.Sprint(c.Gateway.MaxConnections),
		"limits.streams_per_connection": fmt.Sprint(c.Gateway.Front.Streams),
		"limits.head_bytes":             fmt.Sprint(c.Gateway.Front.HeadLimit),
		"limits.connections_per_source": fmt.Sprint(l.Connections),
		"limits.handshakes_per_source":  fmt.Sprint(l.Handshakes),
		"limits.requests_per_identity":  fmt.Sprint(l.Requests),
		"limits.tunnels":                fmt.Sprint(l.Identity.Tunnels),
		"limits.connects_per_second":    fmt.Sprint(l.Identity.ConnectsPerSecond),
		"dns.queries_per_second":        fmt.Sprint(l.Identity.DNSPerSecond),
		"limits.upload_per_hour":        fmt.Sprintf("%dGiB", l.Identity.UploadPerHour>>30),
	}
	for key, d := range map[string]time.Duration{
		"handshake": c.Gateway.HandshakeTimeout, "head": c.Gateway.Front.HeadTimeout, "client_hello": c.Gateway.HelloTimeout, "dial": c.Gateway.DialTimeout,
		"keep_alive": c.Gateway.Front.KeepAlive, "body": c.Gateway.Forward.Body, "response": c.Gateway.Forward.Response,
		"tunnel_idle": c.Gateway.Tunnel.Idle, "tunnel_max": c.Gateway.Tunnel.Max, "drain_delay": c.Gateway.DrainDelay, "drain_timeout": c.Gateway.DrainTimeout,
	} {
		text["timeouts."+key] = short(d)
	}
	return text
}

// short formats a duration as 15m instead of 15m0s.
func short(d time.Duration) string {
	return regexp.MustCompile(`([mh])0[ms](0s)?$`).ReplaceAllString(d.String(), "$1")
}

// TestDefaultsTable compares the defaults in docs/operating.md with those in the code.
// Neither may have a default that the other does not have.
func TestDefaultsTable(t *testing.T) {
	manual, err := os.ReadFile("operating.md")
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	row := regexp.MustCompile("(?m)^\\| `((?:limits|timeouts)\\.[a-z_]+|dns\\.queries_per_second)` \\| `([^`]+)` \\|")
	for _, m := range row.FindAllStringSubmatch(string(manual), -1) {
		if want[m[1]] != m[2] {
			t.Errorf("docs/operating.md says that %s is %s, the code %q", m[1], m[2], want[m[1]])
		}
		delete(want, m[1])
	}
	for key := range want {
		t.Errorf("docs/operating.md does not have the default of %s", key)
	}
	if strings.Count(string(manual), "| `limits.") != 9 {
		t.Error("docs/operating.md does not have 9 rows of limits")
	}
}
