package front_test

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/h2"
)

// FuzzStreamHead builds requests from lists of fields. A head that is accepted has one
// meaning: another reading of its fields, which is written here, gives the same.
func FuzzStreamHead(f *testing.F) {
	f.Add(":method\nCONNECT\n:authority\na.example:443\nuser-agent\nx", false)
	f.Add(":method\nCONNECT\n:authority\n[2001:db8::1]:443\nhost\n[2001:db8::1]:443", true)
	f.Add(":method\nGET\n:scheme\nhttp\n:authority\na.example:8080\n:path\n/x/y?q=1\nhost\nA.example:8080\ncookie\na=b", true)
	f.Add(":method\nPOST\n:scheme\nhttp\n:authority\n192.0.2.1\n:path\n/\ncontent-length\n3\nte\ntrailers", false)
	f.Add(":method\nOPTIONS\n:scheme\nhttp\n:authority\na.example\n:path\n*\nmax-forwards\n0", true)
	f.Add(":method\nGET\n:scheme\nhttp\na\n\nb\n\n:authority\na.example\n:path\n/", true)
	f.Fuzz(func(t *testing.T, lines string, end bool) {
		var fields []h2.Field
		for pair := range slices.Chunk(strings.Split(lines, "\n"), 2) {
			if len(pair) == 2 {
				fields = append(fields, h2.Field{Name: pair[0], Value: pair[1]})
			}
		}
		r := front.ParseStream(h2.Head{Fields: fields, End: end}, nil)
		if r.Reason != allowlist.NoReason {
			return
		}
		values := readFields(t, fields)
		if r.Method != values[":method"] || r.Head.Method != r.Method {
			t.Errorf("method %q", r.Method)
		}
		authority := values[":authority"]
		if r.Method == http.MethodConnect {
			if len(values[":scheme"]+values[":path"]) > 0 || r.Target != authority {
				t.Errorf("CONNECT of %q by %q", r.Target, fields)
			}
		} else {
			authority = checkPlain(t, r, values, end)
		}
		wantDestination(t, r.Asked.Dest, authority)
		if host, has := values["host"]; has {
			if _, _, err := net.SplitHostPort(host); err != nil { // it has no port
				host = net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(r.Asked.Dest.Port)))
			}
			wantDestination(t, r.Asked.Dest, host)
		}
	})
}

// readFields returns the values of fields by their names. It checks what RFC 9113 section
// 8.2 and 8.3 say about names.
func readFields(t *testing.T, fields []h2.Field) map[string]string {
	t.Helper()
	values := make(map[string]string)
	regular := false
	for _, f := range fields {
		_, twice := values[f.Name]
		values[f.Name] = f.Value
		switch f.Name {
		case ":method", ":scheme", ":authority", ":path":
			if twice || regular {
				t.Errorf("%s is accepted in %q", f.Name, fields)
			}
			continue
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			t.Errorf("%s is accepted", f.Name)
		case "host", "content-length":
			if twice {
				t.Errorf("%s is accepted twice", f.Name)
			}
		}
		if strings.ToLower(f.Name) != f.Name || f.Name == "" || strings.Contains(f.Name, ":") {
			t.Errorf("the name %q is accepted", f.Name)
		}
		regular = true
	}
	return values
}

// checkPlain compares a plain request with its fields. It returns the authority with a port.
func checkPlain(t *testing.T, r *front.Request, values map[string]string, end bool) string {
	t.Helper()
	path := values[":path"]
	text := values[":scheme"] + "://" + values[":authority"]
	if path != "*" {
		text += path
	}
	u, err := url.Parse(text)
	if err != nil || !strings.EqualFold(u.Scheme, "http") || u.User != nil || r.Target != text {
		t.Fatalf("%q by %v: %v", r.Target, values, err)
	}
	if want, _, _ := strings.Cut(path, "?"); r.Asked.Path != want || r.Asked.Method != r.Method {
		t.Errorf("%s %q, want %q", r.Asked.Method, r.Asked.Path, want)
	}
	length, has := values["content-length"]
	n, err := strconv.ParseInt(length, 10, 64)
	switch {
	case end && r.Body != 0, has && (err != nil || n != r.Body), !end && !has && r.Body >= 0:
		t.Errorf("a body of %d bytes by %q, end: %v", r.Body, length, end)
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// wantDestination compares a destination with an authority.
func wantDestination(t *testing.T, got allowlist.Destination, authority string) {
	t.Helper()
	host, port, err := net.SplitHostPort(authority)
	if err != nil {
		t.Fatalf("%q: %v", authority, err)
	}
	want := strings.TrimSuffix(strings.ToLower(host), ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		want = addr.String()
	}
	if got.Host.String() != want || strconv.Itoa(int(got.Port)) != port {
		t.Errorf("%v, want %s and %s", got, want, port)
	}
}
