package telemetry

import (
	"net"
	"net/http"
	"net/url"
	"strings"
)

// Export says where an exporter connects to.
type Export struct {
	Signal   string // traces, metrics or logs
	Variable string // variable with the endpoint; "" for the exporter's default
	Endpoint string // host and port of the collector, or unix: and a path
	// Proxy is the host and port of the proxy on the way, and ProxyVariable the
	// variable with it, in capitals; both are "" if there is none.
	Proxy, ProxyVariable string
}

// Exports returns where the exporters that the OTEL_* variables ask for connect to;
// logs says whether records are exported as logs. It leaves out endpoints and proxies
// to which no exporter could connect. proxy is the function by which the exporters
// choose a proxy, http.ProxyFromEnvironment, even those over gRPC.
func Exports(getenv func(string) string, logs bool, proxy func(*http.Request) (*url.URL, error)) []Export {
	var all []Export
	for _, s := range []struct {
		signal string
		active bool
	}{
		{"TRACES", wanted(getenv, "TRACES")},
		{"METRICS", pushWanted(getenv)},
		{"LOGS", logs && wanted(getenv, "LOGS")},
	} {
		if exporter := getenv("OTEL_" + s.signal + "_EXPORTER"); !s.active || exporter != "" && exporter != exporterOTLP {
			continue
		}
		variable, endpoint := endpointOf(getenv, s.signal)
		export := Export{Signal: strings.ToLower(s.signal), Variable: variable}
		if first(getenv, "OTEL_EXPORTER_OTLP_"+s.signal+"_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc" {
			export.overGRPC(endpoint, proxy)
		} else {
			insecure := first(getenv, "OTEL_EXPORTER_OTLP_"+s.signal+"_INSECURE", "OTEL_EXPORTER_OTLP_INSECURE")
			export.overHTTP(endpoint, strings.EqualFold(insecure, "true"), proxy)
		}
		if export.Endpoint != "" {
			all = append(all, export)
		}
	}
	return all
}

// first returns the first of several variables that has a value.
func first(getenv func(string) string, names ...string) string {
	for _, name := range names {
		if value := strings.TrimSpace(getenv(name)); value != "" {
			return value
		}
	}
	return ""
}

// endpointOf returns the URL for the exporter of a signal, and the variable with it.
// The URL is nil for the exporter's default.
func endpointOf(getenv func(string) string, signal string) (variable string, endpoint *url.URL) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"} {
		value := first(getenv, name)
		if u, err := url.Parse(value); value != "" && err == nil {
			return name, u
		}
	}
	return "", nil
}

// overHTTP sets where an exporter over HTTP connects to for its endpoint.
func (e *Export) overHTTP(endpoint *url.URL, insecure bool, proxy func(*http.Request) (*url.URL, error)) {
	host, scheme := "localhost:4318", "https"
	if endpoint != nil {
		host = endpoint.Host
		if strings.EqualFold(endpoint.Scheme, "http") {
			scheme = "http"
		}
	}
	if insecure {
		scheme = "http"
	}
	u := &url.URL{Scheme: scheme, Host: host}
	if e.Endpoint = withPort(u); e.Endpoint != "" {
		e.through(u, withPort, proxy)
	}
}

// overGRPC sets where an exporter over gRPC connects to for its endpoint, which may be
// the name of a target instead of a URL.
func (e *Export) overGRPC(endpoint *url.URL, proxy func(*http.Request) (*url.URL, error)) {
	host := "localhost:4317"
	if endpoint != nil {
		below := endpoint.Opaque
		if below == "" {
			below = endpoint.Path
		}
		switch strings.ToLower(endpoint.Scheme) {
		case "http", "https", "":
			host = endpoint.Host
		case "unix":
			e.Endpoint = "unix:" + below // without a proxy
			return
		case "dns", "passthrough":
			host = strings.TrimPrefix(below, "/")
		default: // HOST:PORT
			host = endpoint.String()
		}
	}
	// gRPC looks the proxy up for https, whether it speaks TLS or not, and its default
	// port is that of https.
	secure := func(u *url.URL) string { return withPort(&url.URL{Scheme: "https", Host: u.Host}) }
	u := &url.URL{Scheme: "https", Host: host}
	if e.Endpoint = secure(u); e.Endpoint != "" {
		e.through(u, secure, proxy)
	}
}

// through sets the proxy on the way to a URL.
func (e *Export) through(u *url.URL, address func(*url.URL) string, proxy func(*http.Request) (*url.URL, error)) {
	via, err := proxy(&http.Request{URL: u})
	if err != nil || via == nil {
		return
	}
	if e.Proxy = address(via); e.Proxy != "" {
		e.ProxyVariable = strings.ToUpper(u.Scheme) + "_PROXY"
	}
}

// withPort returns host and port of a URL as net/http dials it, or "" if it has no
// host.
func withPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	if u.Host == "" || port == "" {
		return ""
	}
	return net.JoinHostPort(u.Hostname(), port)
}
