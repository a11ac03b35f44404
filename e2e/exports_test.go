package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// serveWith runs exeat with more environment variables.
func serveWith(t *testing.T, dir string, env []string, args ...string) *process {
	t.Helper()
	return startPrepared(t, dir, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, env...) }, exeat, args...)
}

// TestExportersDoNotUseTheGateway checks that the gateway does not start if it is its own
// exporters' proxy or collector: each export would be a decision, and so another span to
// export, without end.
func TestExportersDoNotUseTheGateway(t *testing.T) {
	s := newSite(t, 443)
	own := freeAddresses(t, 1)[0].String()
	write(t, s.dir, map[string]string{"exeat.yaml": strings.Replace(siteConfig, `name: own, address: "127.0.0.1:0"`, fmt.Sprintf("name: own, address: %q", own), 1)})
	const collector = "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector.example:4318"
	for name, row := range map[string]struct {
		env  []string
		says string
	}{
		"HTTP_PROXY":  {[]string{collector, "HTTP_PROXY=http://" + own}, "HTTP_PROXY: the proxy " + own},
		"http_proxy":  {[]string{collector, "http_proxy=" + own}, "HTTP_PROXY: the proxy " + own},
		"HTTPS_PROXY": {[]string{collector, "HTTPS_PROXY=http://" + own, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, "HTTPS_PROXY: the proxy " + own},
		"a collector": {[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://" + own}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: " + own},
	} {
		for _, args := range [][]string{{"serve"}, {"serve", "--check"}} {
			t.Run(strings.Join(args, " ")+" with "+name, func(t *testing.T) {
				p := serveWith(t, s.dir, row.env, args...)
				if code := p.exit(t); code != 2 {
					t.Errorf("exit code %d, want 2", code)
				}
				want := "exeat: " + row.says + " is this gateway's own listener own"
				if text := p.stderr.String(); !strings.HasPrefix(text, want) || strings.Count(text, "\n") != 1 {
					t.Errorf("standard error %q, want one line that begins with %q", text, want)
				}
			})
		}
	}
}

// TestExportersUseAnotherProxy checks that HTTP_PROXY is honoured if it names another
// proxy.
func TestExportersUseAnotherProxy(t *testing.T) {
	const collector = "collector.example:4318"
	asked := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.Method + " " + r.RequestURI:
		default:
		}
	}))
	defer proxy.Close()
	s := newSite(t, 443)
	p := serveWith(t, s.dir, []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + collector, "OTEL_METRICS_EXPORTER=none", "OTEL_BSP_SCHEDULE_DELAY=10", "HTTP_PROXY=" + proxy.URL,
	}, "serve")
	if status, _ := p.denied(t); status != http.StatusForbidden {
		t.Errorf("answered %d, want 403", status)
	}
	p.signal(t, syscall.SIGTERM) // spans that wait are exported before the end
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	select {
	case got := <-asked:
		if want := "POST http://" + collector + "/v1/traces"; got != want {
			t.Errorf("the proxy was asked %q, want %q", got, want)
		}
	default:
		t.Error("the proxy was not asked")
	}
}
