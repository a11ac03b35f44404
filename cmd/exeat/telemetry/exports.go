package telemetry

import (
	"net"
	"net/http"
	"net/url"
	"strings"
)

// Export is where an exporter connects to.
type Export struct {
	Signal   string // traces, metrics or logs
	Variable string // names the endpoint; "" if none does, and it is the exporter's default
	Endpoint string // host and port of the collector, or unix: and a path
	// Proxy is the host and port of the proxy on the way, which ProxyVariable
	// names, in capitals; "" if there is none.
	Proxy, ProxyVariable string
}

// Exports returns where the exporters that the OTEL_* variables ask for connect
// to; logs says whether records go there. An endpoint or a proxy that none of
// them could connect to is left out. proxy is what the exporters ask,
// http.ProxyFromEnvironment, also those over gRPC.
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

// first returns the first of some variables that has a value.
func first(getenv func(string) string, names ...string) string {
	for _, name := range names {
		if value := strings.TrimSpace(getenv(name)); value != "" {
			return value
		}
	}
	return ""
}

// endpointOf returns the URL that the exporter of a signal is given, and the
// variable that holds it; nil means its default.
func endpointOf(getenv func(string) string, signal string) (variable string, endpoint *url.URL) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"} {
		value := first(getenv, name)
		if u, err := url.Parse(value); value != "" && err == nil {
			return name, u
		}
	}
	return "", nil
}

// overHTTP fills in what an exporter over HTTP makes of its endpoint.
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

// overGRPC fills in what an exporter over gRPC makes of its endpoint, which may
// be the name of a target instead of a URL.
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
			e.Endpoint = "unix:" + below // no proxy is asked
			return
		case "dns", "passthrough":
			host = strings.TrimPrefix(below, "/")
		default: // HOST:PORT
			host = endpoint.String()
		}
	}
	// https is what it asks with, whether it speaks TLS or not, and where it
	// goes without a port, too.
	secure := func(u *url.URL) string { return withPort(&url.URL{Scheme: "https", Host: u.Host}) }
	u := &url.URL{Scheme: "https", Host: host}
	if e.Endpoint = secure(u); e.Endpoint != "" {
		e.through(u, secure, proxy)
	}
}

// through fills in the proxy on the way to a URL.
func (e *Export) through(u *url.URL, address func(*url.URL) string, proxy func(*http.Request) (*url.URL, error)) {
	via, err := proxy(&http.Request{URL: u})
	if err != nil || via == nil {
		return
	}
	if e.Proxy = address(via); e.Proxy != "" {
		e.ProxyVariable = strings.ToUpper(u.Scheme) + "_PROXY"
	}
}

// withPort returns host and port of a URL as net/http dials it; "" if it has no
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
