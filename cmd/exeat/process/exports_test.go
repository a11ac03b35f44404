package process

import (
	"net/http"
	"net/url"
	"testing"

	"golang.org/x/net/http/httpproxy"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/gateway"
)

// TestNoExporterUsesTheGateway checks the error if an exporter would send through the
// gateway or to it.
func TestNoExporterUsesTheGateway(t *testing.T) {
	cfg := config.Config{Records: []config.RecordSink{{Name: "logs", OTLP: true}}}
	cfg.Gateway.Admin.Address = "127.0.0.1:9464"
	for name, address := range map[string]string{"own": "127.0.0.1:3128", "all": "0.0.0.0:8443", "socket": "unix:/run/exeat.sock"} {
		cfg.Listeners = append(cfg.Listeners, config.Listener{Listener: gateway.Listener{Name: name, Address: address}})
	}
	const (
		endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
		loop     = " through it to c.example:4318: each export would make another one; write NO_PROXY=c.example, or another proxy"
	)
	for name, row := range map[string]struct {
		env  map[string]string
		want string // "" means no error
	}{
		"no exporter":     {map[string]string{"HTTP_PROXY": "http://127.0.0.1:3128"}, ""},
		"another proxy":   {map[string]string{endpoint: "http://c.example:4318", "HTTP_PROXY": "http://127.0.0.1:3129"}, ""},
		"the other proxy": {map[string]string{endpoint: "http://c.example:4318", "HTTPS_PROXY": "http://127.0.0.1:3128"}, ""},
		"NO_PROXY":        {map[string]string{endpoint: "http://c.example:4318", "HTTP_PROXY": "http://127.0.0.1:3128", "NO_PROXY": "c.example"}, ""},
		"the gateway as the proxy": {
			map[string]string{endpoint: "http://c.example:4318", "HTTP_PROXY": "http://user:secret@127.0.0.1:3128"},
			"HTTP_PROXY: the proxy 127.0.0.1:3128 is this gateway's own listener own, and traces would go" + loop,
		},
		"the gateway as the proxy, by name": {
			map[string]string{endpoint: "https://c.example:4318", "HTTPS_PROXY": "https://LocalHost.:8443"},
			"HTTPS_PROXY: the proxy LocalHost.:8443 is this gateway's own listener all, and traces would go" + loop,
		},
		"the gateway as the proxy, at an address of the host": {
			map[string]string{endpoint: "http://c.example:4318", "HTTP_PROXY": "127.0.0.9:8443", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
			"HTTP_PROXY: the proxy 127.0.0.9:8443 is this gateway's own listener all, and logs would go" + loop,
		},
		"the gateway as the proxy, at no address": {
			map[string]string{endpoint: "http://c.example:4318", "HTTP_PROXY": "socks5://0.0.0.0:3128"},
			"HTTP_PROXY: the proxy 0.0.0.0:3128 is this gateway's own listener own, and traces would go" + loop,
		},
		"the gateway as the proxy, over gRPC": {
			map[string]string{endpoint: "http://c.example:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "HTTPS_PROXY": "127.0.0.1:3128"},
			"HTTPS_PROXY: the proxy 127.0.0.1:3128 is this gateway's own listener own, and traces would go" + loop,
		},
		"the gateway as the collector": {
			map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://127.0.0.1:8443/v1/metrics"},
			"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: 127.0.0.1:8443 is this gateway's own listener all: name the collector that takes metrics",
		},
		"the gateway as the collector, by name": {
			map[string]string{endpoint: "http://localhost:9464"},
			"OTEL_EXPORTER_OTLP_ENDPOINT: localhost:9464 is this gateway's own listener admin: name the collector that takes traces",
		},
		"the gateway as the collector, at a socket": {
			map[string]string{endpoint: "unix:///run/exeat.sock", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
			"OTEL_EXPORTER_OTLP_ENDPOINT: unix:/run/exeat.sock is this gateway's own listener socket: name the collector that takes traces",
		},
	} {
		t.Run(name, func(t *testing.T) {
			proxies := httpproxy.Config{HTTPProxy: row.env["HTTP_PROXY"], HTTPSProxy: row.env["HTTPS_PROXY"], NoProxy: row.env["NO_PROXY"]}
			err := checkExports(t.Context(), &cfg, func(name string) string { return row.env[name] },
				func(r *http.Request) (*url.URL, error) { return proxies.ProxyFunc()(r.URL) })
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != row.want {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
		})
	}
	cfg.Listeners = []config.Listener{{Listener: gateway.Listener{Name: "own", Address: "127.0.0.1:4318"}}}
	err := checkExports(t.Context(), &cfg, func(name string) string {
		return map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}[name]
	}, func(*http.Request) (*url.URL, error) { return nil, nil }) //nolint:nilnil // http.ProxyFromEnvironment returns this for "no proxy"
	want := "OTEL_EXPORTER_OTLP_ENDPOINT is not set, and traces would go to localhost:4318, which is this gateway's own listener own: name the collector"
	if err == nil || err.Error() != want {
		t.Errorf("by default: got %v, want %s", err, want)
	}
}
