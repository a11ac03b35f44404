package telemetry

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http/httpproxy"
)

// env is an environment. Its method proxy does what http.ProxyFromEnvironment would do,
// which reads the environment of the process only once.
type env map[string]string

func (e env) get(name string) string { return e[name] }

func (e env) proxy(r *http.Request) (*url.URL, error) {
	cfg := httpproxy.Config{HTTPProxy: e["HTTP_PROXY"], HTTPSProxy: e["HTTPS_PROXY"], NoProxy: e["NO_PROXY"]}
	return cfg.ProxyFunc()(r.URL)
}

// TestExportsOfAnEnvironment checks, for each environment, where signals are exported to
// and through which proxy.
func TestExportsOfAnEnvironment(t *testing.T) {
	const (
		all     = "OTEL_EXPORTER_OTLP_ENDPOINT"
		traces  = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
		grpc    = "OTEL_EXPORTER_OTLP_PROTOCOL"
		own     = "127.0.0.1:3128"
		secured = "127.0.0.1:3129"
	)
	proxies := func(e env) env {
		e["HTTP_PROXY"], e["HTTPS_PROXY"] = "http://user:secret@"+own, secured
		return e
	}
	// one switches off all exporters but that of traces.
	one := func(e env) env { e["OTEL_METRICS_EXPORTER"] = "none"; return e }
	for name, row := range map[string]struct {
		env  env
		logs bool
		want []Export
	}{
		"no exporter":         {env: proxies(env{})},
		"the SDK is disabled": {env: proxies(env{all: "http://c.example:4318", "OTEL_SDK_DISABLED": "true"}), logs: true},
		"other exporters": {env: proxies(env{
			"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "prometheus", "OTEL_LOGS_EXPORTER": "console", all: "http://c.example:4318",
		}), logs: true},
		"every signal": {env: proxies(env{all: "http://c.example:4318"}), logs: true, want: []Export{
			{"traces", all, "c.example:4318", own, "HTTP_PROXY"},
			{"metrics", all, "c.example:4318", own, "HTTP_PROXY"},
			{"logs", all, "c.example:4318", own, "HTTP_PROXY"},
		}},
		"no sink of records": {env: one(proxies(env{all: "http://c.example:4318"})), want: []Export{
			{"traces", all, "c.example:4318", own, "HTTP_PROXY"},
		}},
		"over https":          {env: one(proxies(env{all: "https://c.example"})), want: []Export{{"traces", all, "c.example:443", secured, "HTTPS_PROXY"}}},
		"https, but insecure": {env: one(proxies(env{all: "https://c.example", "OTEL_EXPORTER_OTLP_INSECURE": "true"})), want: []Export{{"traces", all, "c.example:80", own, "HTTP_PROXY"}}},
		"an endpoint of its own": {env: proxies(env{all: "http://c.example:4318", traces: " https://t.example:1 "}), want: []Export{
			{"traces", traces, "t.example:1", secured, "HTTPS_PROXY"}, {"metrics", all, "c.example:4318", own, "HTTP_PROXY"},
		}},
		"a malformed endpoint":            {env: proxies(env{traces: "127.0.0.1:4318"}), want: []Export{{"traces", "", "localhost:4318", "", ""}}},
		"an endpoint without host":        {env: proxies(env{traces: "localhost:4318"})},
		"an exporter without an endpoint": {env: proxies(env{"OTEL_TRACES_EXPORTER": "otlp"}), want: []Export{{"traces", "", "localhost:4318", "", ""}}},
		"loopback":                        {env: one(proxies(env{all: "http://127.0.0.1:4318"})), want: []Export{{"traces", all, "127.0.0.1:4318", "", ""}}},
		"NO_PROXY":                        {env: one(proxies(env{all: "http://c.example:4318", "NO_PROXY": ".example"})), want: []Export{{"traces", all, "c.example:4318", "", ""}}},
		"another NO_PROXY":                {env: one(proxies(env{all: "http://c.example:4318", "NO_PROXY": "d.example"})), want: []Export{{"traces", all, "c.example:4318", own, "HTTP_PROXY"}}},
		"SOCKS":                           {env: one(env{all: "http://c.example:4318", "HTTP_PROXY": "socks5://127.0.0.1"}), want: []Export{{"traces", all, "c.example:4318", "127.0.0.1:1080", "HTTP_PROXY"}}},
		"a proxy with IPv6":               {env: one(env{all: "http://[2001:db8::1]:4318", "HTTP_PROXY": "http://[::1]"}), want: []Export{{"traces", all, "[2001:db8::1]:4318", "[::1]:80", "HTTP_PROXY"}}},
		"gRPC":                            {env: one(proxies(env{all: "http://c.example:4317", grpc: "grpc"})), want: []Export{{"traces", all, "c.example:4317", secured, "HTTPS_PROXY"}}},
		"gRPC for one signal": {env: proxies(env{all: "http://c.example:4318", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}), want: []Export{
			{"traces", all, "c.example:4318", secured, "HTTPS_PROXY"}, {"metrics", all, "c.example:4318", own, "HTTP_PROXY"},
		}},
		"gRPC without a port": {env: one(proxies(env{all: "http://c.example", grpc: "grpc"})), want: []Export{{"traces", all, "c.example:443", secured, "HTTPS_PROXY"}}},
		"gRPC by default":     {env: env{"OTEL_TRACES_EXPORTER": "otlp", grpc: "grpc"}, want: []Export{{"traces", "", "localhost:4317", "", ""}}},
		"gRPC, HOST:PORT":     {env: one(proxies(env{all: "collector:4317", grpc: "grpc"})), want: []Export{{"traces", all, "collector:4317", secured, "HTTPS_PROXY"}}},
		"gRPC, dns":           {env: one(proxies(env{all: "dns:///c.example:4317", grpc: "grpc"})), want: []Export{{"traces", all, "c.example:4317", secured, "HTTPS_PROXY"}}},
		"gRPC, a socket":      {env: one(proxies(env{all: "unix:///run/c.sock", grpc: "grpc"})), want: []Export{{"traces", all, "unix:/run/c.sock", "", ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(Exports(row.env.get, row.logs, row.env.proxy), row.want); diff != "" {
				t.Errorf("-got +want:\n%s", diff)
			}
		})
	}
}
