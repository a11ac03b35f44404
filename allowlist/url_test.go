package allowlist

import (
	"errors"
	"strings"
	"testing"
)

// TestParseURL checks what the target of a plain request is read as, and the error for
// malformed targets.
func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"http://a.example/":              "a.example:80 /",
		"http://a.example":               "a.example:80 /",
		"http://a.example?q":             "a.example:80 / ?q",
		"http://A.Example.:8080/B?c=/d?": "a.example:8080 /B ?c=/d?",
		"http://a.example:80/%2e/../x":   "a.example:80 /%2e/../x",
		"http://a.example//b":            "a.example:80 //b",
		"http://a.example/?":             "a.example:80 / ?",
		"http://[::1]/":                  "[::1]:80 /",
		"http://[::1]:81/":               "[::1]:81 /",
		"http://[::ffff:192.0.2.1]/":     "192.0.2.1:80 /",
		"http://192.0.2.1/a@b:c":         "192.0.2.1:80 /a@b:c",

		"HTTP://a.example/": "a.example:80 /", "hTTp://A.example:81/": "a.example:81 /",
		"http://a.example:/": "a.example:80 /", "http://a.example:?q": "a.example:80 / ?q", "http://a.example.:/": "a.example:80 /", "http://[::1]:/": "[::1]:80 /", "http://192.0.2.1:": "192.0.2.1:80 /",
		"http://a.example/?%": "a.example:80 / ?%", "http://a.example?%zz%2": "a.example:80 / ?%zz%2", `http://a.example/?a\b`: `a.example:80 / ?a\b`, "http://a.example/?a#b": "a.example:80 / ?a#b",
		"http://a.example/?\xc3\xa9\xff\x80": "a.example:80 / ?\xc3\xa9\xff\x80", "http://a.example/?//../?{}|\"<>^`": "a.example:80 / ?//../?{}|\"<>^`",
		"ws://a.example/": "a.example:80 / ws", "WS://a.example:81/b?c": "a.example:81 /b ?c ws", "ws://a.example:": "a.example:80 / ws",
	} {
		u, err := ParseURL(in)
		got := u.Dest.String() + " " + u.Path
		if u.Query != "" {
			got += " " + u.Query
		}
		if u.WebSocket {
			got += " ws"
		}
		if bare := !strings.ContainsAny(strings.SplitAfterN(in, "//", 2)[1], "/?"); u.NoPath != bare {
			t.Errorf("ParseURL(%q): NoPath is %v", in, u.NoPath)
		}
		if err != nil || got != want {
			t.Errorf("ParseURL(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]error{
		"/": ErrTarget, "": ErrTarget, "*": ErrTarget, ":": ErrTarget, "://a.example/": ErrTarget, "//evil/": ErrTarget, "a.example:80": ErrTarget,
		"HTTPS://a.example/": ErrTarget, "wss://a.example/": ErrTarget, "ws:/a.example/": ErrTarget, "ws:///": ErrHost, "httpx://a.example/": ErrTarget, "http\xc5\xbf://a.example/": ErrTarget, "w\xc5\xbf://a.example/": ErrTarget, "https://a.example/": ErrTarget, "ftp://a.example/": ErrTarget, "unix:/x": ErrTarget, "file:///x": ErrTarget,
		"http:a.example/": ErrTarget, "http:/a.example/": ErrTarget, "http:///p": ErrHost, "http://": ErrHost, "http://:80/": ErrHost,
		"http://a.example@evil.example/": ErrTarget, "http://a.example:pw@evil.example/": ErrTarget,
		"http://:/": ErrHost, "http://[::1]:0/": ErrPort, "http://a.example:%38/": ErrPort, "http://a.example:8\xef\xbc\x90/": ErrPort, "http://a.example:0/": ErrPort, "http://a.example:080/": ErrPort, "http://a.example:65536/": ErrPort,
		"http://a.example:80:81/": ErrTarget, "http://::1/": ErrTarget, "http://[a.example]/": ErrHost, "http://[::1/": ErrTarget, "http://[::1]x/": ErrTarget,
		"http://[fe80::1%25eth0]/": ErrHost, "http://2130706433/": ErrHost, "http://0x7f.1/": ErrHost, "http://a.example%2f/": ErrHost,
		"http://a.example/#f": ErrTarget, `http://a.example\@evil/`: ErrTarget, `http://a.example/\x`: ErrTarget,
		"http://a.example/%": ErrTarget, "http://a.example/%2": ErrTarget, "http://a.example/%zz": ErrTarget, "http://a.example/%?a": ErrTarget, `http://a.example\?a`: ErrTarget, "http://a.example#?a": ErrTarget, "http://a.example/#?a": ErrTarget,
		"http://a.example/ ": ErrTarget, "http://a.example/\x00": ErrTarget, "http://a.example/\xc3\xa9": ErrTarget, "http://a.example/\x7f": ErrTarget,
		"http://a.example/?a b": ErrTarget, "http://a.example/?\r": ErrTarget, "http://a.example/?\n": ErrTarget, "http://a.example/?\x00": ErrTarget, "http://a.example/?\t": ErrTarget, "http://a.example/?\x0b": ErrTarget, "http://a.example/?\x1f": ErrTarget, "http://a.example/?\x7f": ErrTarget, "http://\xc3\xa9.example/": ErrHost,
	} {
		if u, err := ParseURL(in); !errors.Is(err, want) || u != (URL{}) {
			t.Errorf("ParseURL(%q) = %+v, %v, want %v", in, u, err, want)
		}
	}
}

// TestErrorsOfTargetsNameTheirCause checks that the error for a malformed target names
// what is wrong, and quotes nothing of the target.
func TestErrorsOfTargetsNameTheirCause(t *testing.T) {
	plain := func(s string) error { _, err := ParseURL(s); return err }
	connect := func(s string) error { _, err := ParseDestination(s); return err }
	for in, row := range map[string]struct {
		parse func(string) error
		want  string
	}{
		"http://secret@a.example/":       {plain, "userinfo"},
		"http://a.example/secret%zz":     {plain, "escape"},
		"http://secret%2e.example/":      {plain, "escape"},
		"http://s\xc3\xa9cret.example/":  {plain, "non-ASCII"},
		"http://a.example/s\xc3\xa9cret": {plain, "non-ASCII"},
		"http://a.example:secret/":       {plain, "port"},
		"http://a.example:99999/":        {plain, "port"},
		"secret://a.example/":            {plain, "scheme"},
		"https://a.example/":             {plain, "scheme"},
		"/secret":                        {plain, "want http://HOST/"},
		"http:///secret":                 {plain, "missing"},
		"http://a.example/#secret":       {plain, "fragment"},
		`http://a.example/\secret`:       {plain, "backslash"},
		"http://a.example/?secret\x01":   {plain, "control"},
		"http://se_cret;.example/":       {plain, "byte that no name has"},
		"http://-secret.example/":        {plain, "hyphen"},
		"http://127.1/":                  {plain, "number"},
		"http://[secret]/":               {plain, "brackets"},
		"http://xn--secret.example/":     {plain, "xn--"},
		"secret.example":                 {connect, "want HOST:PORT"},
		"secret.example:":                {connect, "port"},
		"secret@a.example:443":           {connect, "userinfo"},
		"s\xc3\xa9cret.example:443":      {connect, "non-ASCII"},
		"secret%00.example:443":          {connect, "escape"},
		":443":                           {connect, "missing"},
	} {
		if err := row.parse(in); err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(strings.ToLower(err.Error()), "secret") {
			t.Errorf("%q: %v, want %q and nothing of the target", in, err, row.want)
		}
	}
}

// FuzzParseURL checks that a URL is the same after it is written and parsed again, and
// that its parts are parts of the text.
func FuzzParseURL(f *testing.F) {
	for _, seed := range []string{"http://a.example/", "http://[::1]:81/a?b", "http://a.example@b/", "http://a.example//b", "http://A.example.?x", "HTTP://a.example:/", "ws://a.example?%", "http://a.example/?\xff#\\"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURL(s)
		if err != nil {
			if u != (URL{}) {
				t.Fatalf("%q: got %+v with an error", s, u)
			}
			return
		}
		if u.Dest.Host.IsZero() || u.Dest.Port == 0 || !strings.HasPrefix(u.Path, "/") || u.Query != "" && u.Query[0] != '?' {
			t.Fatalf("%q: %+v", s, u)
		}
		if strings.ContainsAny(u.Path+u.Query, " \t\v\f\r\n\x00\x7f") || !isASCII(u.Path) {
			t.Fatalf("%q: %q%q does not fit into one request line", s, u.Path, u.Query)
		}
		if !strings.HasSuffix(s, u.Query) || u.Path != "/" && !strings.HasSuffix(s, u.Path+u.Query) {
			t.Fatalf("%q: path %q and query %q are not parts of it", s, u.Path, u.Query)
		}
		if u.NoPath && (u.Path+u.Query != "/" || strings.HasSuffix(s, "/")) {
			t.Fatalf("%q: %+v", s, u)
		}
		u.NoPath = false // the text below has a path
		scheme := "http://"
		if u.WebSocket {
			scheme = "ws://"
		}
		again, err := ParseURL(scheme + u.Dest.String() + u.Path + u.Query)
		if err != nil || again != u {
			t.Fatalf("%q: %+v, written and read again %+v, %v", s, u, again, err)
		}
	})
}

// TestGlimpseOfAMalformedTarget checks which host and port a record shows of a target
// that is malformed. Nothing is shown if the host is in doubt.
func TestGlimpseOfAMalformedTarget(t *testing.T) {
	for _, row := range []struct {
		target  string
		connect bool
		want    string // host; "" if none is returned
		port    uint16
	}{
		{"http://a.example:81/%zz", false, "a.example", 81},
		{"http://A.example./\xff", false, "a.example", 80},
		{`http://a.example\x`, false, "a.example", 80},
		{"http://a.example:99999/", false, "a.example", 0},
		{"https://a.example/", false, "a.example", 0},
		{"https://a.example:444/", false, "a.example", 444},
		{"http://[::1]:81/%", false, "[::1]", 81},
		{"http://u@a.example/", false, "", 0},
		{"http://allowed.example:x@evil.example/", false, "", 0},
		{"http://allowed.example:80@evil.example/", false, "", 0},
		{"http://secret-token:@a.example/", false, "", 0},
		{"http://a.example/@", false, "a.example", 80},
		{"http:a.example/", false, "", 0},
		{"/a.example", false, "", 0},
		{"a.example:443", false, "", 0},
		{"a.example:99999", true, "a.example", 0},
		{"a.example:443/x", true, "a.example", 443},
		{"a.example", true, "a.example", 0},
		{"u@a.example:443", true, "", 0},
		{"allowed.example:x@evil.example", true, "", 0},
		{"", true, "", 0},
		{"::1:443", true, "", 0},
	} {
		got := Glimpse(row.target, row.connect)
		host := ""
		if !got.Host.IsZero() {
			if host = got.Host.String(); got.Host.IsAddr() && got.Host.Addr().Is6() {
				host = "[" + host + "]"
			}
		}
		if host != row.want || got.Port != row.port {
			t.Errorf("%q, CONNECT: %t: %s port %d, want %s port %d", row.target, row.connect, host, got.Port, row.want, row.port)
		}
	}
}
