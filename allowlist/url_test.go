package allowlist

import (
	"errors"
	"strings"
	"testing"
)

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
	} {
		u, err := ParseURL(in)
		got := u.Dest.String() + " " + u.Path
		if u.Query != "" {
			got += " " + u.Query
		}
		if bare := in == "http://a.example"; u.NoPath != bare {
			t.Errorf("ParseURL(%q): NoPath is %v", in, u.NoPath)
		}
		if err != nil || got != want {
			t.Errorf("ParseURL(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]error{
		"/": ErrTarget, "": ErrTarget, "*": ErrTarget, "//evil/": ErrTarget, "a.example:80": ErrTarget,
		"HTTP://a.example/": ErrTarget, "https://a.example/": ErrTarget, "ftp://a.example/": ErrTarget, "unix:/x": ErrTarget, "file:///x": ErrTarget,
		"http:a.example/": ErrTarget, "http:/a.example/": ErrTarget, "http:///p": ErrHost, "http://": ErrHost, "http://:80/": ErrHost,
		"http://a.example@evil.example/": ErrTarget, "http://a.example:pw@evil.example/": ErrTarget,
		"http://a.example:/": ErrPort, "http://a.example:0/": ErrPort, "http://a.example:080/": ErrPort, "http://a.example:65536/": ErrPort,
		"http://a.example:80:81/": ErrTarget, "http://::1/": ErrTarget, "http://[a.example]/": ErrHost, "http://[::1/": ErrTarget, "http://[::1]x/": ErrTarget,
		"http://[fe80::1%25eth0]/": ErrHost, "http://2130706433/": ErrHost, "http://0x7f.1/": ErrHost, "http://a.example%2f/": ErrHost,
		"http://a.example/#f": ErrTarget, `http://a.example\@evil/`: ErrTarget, `http://a.example/\x`: ErrTarget,
		"http://a.example/%": ErrTarget, "http://a.example/%2": ErrTarget, "http://a.example/%zz": ErrTarget, "http://a.example/?%z": ErrTarget,
		"http://a.example/ ": ErrTarget, "http://a.example/\x00": ErrTarget, "http://a.example/\xc3\xa9": ErrTarget, "http://a.example/\x7f": ErrTarget,
	} {
		if u, err := ParseURL(in); !errors.Is(err, want) || u != (URL{}) {
			t.Errorf("ParseURL(%q) = %+v, %v, want %v", in, u, err, want)
		}
	}
}

// FuzzParseURL: what is accepted says the same when it is written down and read
// again, and its parts are those of the text.
func FuzzParseURL(f *testing.F) {
	for _, seed := range []string{"http://a.example/", "http://[::1]:81/a?b", "http://a.example@b/", "http://a.example//b", "http://A.example.?x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURL(s)
		if err != nil {
			if u != (URL{}) {
				t.Fatalf("%q: %+v beside an error", s, u)
			}
			return
		}
		if u.Dest.Host.IsZero() || u.Dest.Port == 0 || !strings.HasPrefix(u.Path, "/") || u.Query != "" && u.Query[0] != '?' {
			t.Fatalf("%q: %+v", s, u)
		}
		if !strings.HasSuffix(s, u.Query) || u.Path != "/" && !strings.HasSuffix(s, u.Path+u.Query) {
			t.Fatalf("%q: path %q and query %q are not its own", s, u.Path, u.Query)
		}
		if u.NoPath && (u.Path+u.Query != "/" || strings.HasSuffix(s, "/")) {
			t.Fatalf("%q: %+v", s, u)
		}
		u.NoPath = false // a path is written now
		again, err := ParseURL("http://" + u.Dest.String() + u.Path + u.Query)
		if err != nil || again != u {
			t.Fatalf("%q: %+v, written and read again %+v, %v", s, u, again, err)
		}
	})
}
