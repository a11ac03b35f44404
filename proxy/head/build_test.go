package head_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/proxy/head"
)

// fieldsOf returns fields from alternating names and values.
func fieldsOf(texts ...string) []head.Field {
	var fields []head.Field
	for i := 0; i < len(texts); i += 2 {
		fields = append(fields, head.Field{Name: texts[i], Value: texts[i+1]})
	}
	return fields
}

func TestBuildAccepts(t *testing.T) {
	for name, tt := range map[string]struct{ fields, want []head.Field }{
		"no field":                           {nil, nil},
		"fields in their order":              {fieldsOf("b", "1", "a", "2", "b", "3"), fieldsOf("b", "1", "a", "2", "b", "3")},
		"an empty value":                     {fieldsOf("a", ""), fieldsOf("a", "")},
		"white space and obs-text in values": {fieldsOf("a", "b \t c\x80\xff"), fieldsOf("a", "b \t c\x80\xff")},
		"TE: trailers":                       {fieldsOf("te", "trailers"), fieldsOf("te", "trailers")},
		"one cookie":                         {fieldsOf("cookie", "a=b"), fieldsOf("cookie", "a=b")},
		"cookies, at the place of the first": {fieldsOf("x", "1", "cookie", "a=b", "y", "2", "cookie", "c=d", "cookie", "e=f", "z", "3"), fieldsOf("x", "1", "cookie", "a=b; c=d; e=f", "y", "2", "z", "3")},
		"cookies, the last of them empty":    {fieldsOf("cookie", "a=b", "cookie", ""), fieldsOf("cookie", "a=b;")},
		"a name that begins with cookie":     {fieldsOf("cookie", "a=b", "cookie2", "c"), fieldsOf("cookie", "a=b", "cookie2", "c")},
	} {
		t.Run(name, func(t *testing.T) {
			given := append([]head.Field(nil), tt.fields...)
			got, err := head.Build("GET", "http://a.example/", tt.fields)
			if err != nil {
				t.Fatal(err)
			}
			want := head.Head{Method: "GET", Target: "http://a.example/", Major: 2, Fields: append([]head.Field{}, tt.want...)}
			if diff := cmp.Diff(*got, want); diff != "" {
				t.Errorf("got -, want +\n%s", diff)
			}
			if diff := cmp.Diff(tt.fields, given); diff != "" {
				t.Errorf("Build has changed the caller's fields: now -, before +\n%s", diff)
			}
		})
	}
	got, err := head.Build("GET", "/", fieldsOf("host", "a.example"))
	if err != nil || got.Host != "a.example" || !got.HasHost {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	const header = ": malformed header"
	many := func(n int, name, value string) (fields []head.Field) {
		for range n {
			fields = append(fields, head.Field{Name: name, Value: value})
		}
		return fields
	}
	for name, tt := range map[string]struct {
		method, target string
		fields         []head.Field
		want           error
		text           string
	}{
		"no method":                        {"", "/", nil, head.ErrRequestLine, "no method: malformed request line"},
		"a space in the method":            {"GET http://secret", "/", nil, head.ErrRequestLine, "byte 0x20 at column 4 in the method: malformed request line"},
		"no target":                        {"GET", "", nil, head.ErrRequestLine, "no target: malformed request line"},
		"a space in the target":            {"GET", "/secret HTTP/1.1", nil, head.ErrRequestLine, "byte 0x20 at column 8 in the target: malformed request line"},
		"a line break in the target":       {"GET", "/\r\nsecret:", nil, head.ErrRequestLine, "byte 0x0d at column 2 in the target: malformed request line"},
		"no name":                          {"GET", "/", fieldsOf("a", "1", "", "secret"), head.ErrHeader, "field 2: no name" + header},
		"a pseudo-header field":            {"GET", "/", fieldsOf(":secret", "1"), head.ErrHeader, "field 1: byte 0x3a at column 1 in the name" + header},
		"a line break in a name":           {"GET", "/", fieldsOf("a\nsecret", ""), head.ErrHeader, "field 1: byte 0x0a at column 2 in the name" + header},
		"a capital letter in a name":       {"GET", "/", fieldsOf("secreT", "1"), head.ErrHeader, "field 1: a capital letter in the name" + header},
		"a line break in a value":          {"GET", "/", fieldsOf("a", "1\r\nsecret: 1"), head.ErrHeader, "field 1: byte 0x0d at column 2 in the value" + header},
		"NUL in a value":                   {"GET", "/", fieldsOf("a", "\x00"), head.ErrHeader, "field 1: byte 0x00 at column 1 in the value" + header},
		"a space before a value":           {"GET", "/", fieldsOf("a", " secret"), head.ErrHeader, "field 1: white space around the value" + header},
		"a tab behind a value":             {"GET", "/", fieldsOf("a", "secret\t"), head.ErrHeader, "field 1: white space around the value" + header},
		"a space for a value":              {"GET", "/", fieldsOf("a", " "), head.ErrHeader, "field 1: white space around the value" + header},
		"TE with more than trailers":       {"GET", "/", fieldsOf("te", "trailers, gzip"), head.ErrHeader, "field 1: TE is not trailers alone" + header},
		"an empty TE":                      {"GET", "/", fieldsOf("te", ""), head.ErrHeader, "field 1: TE is not trailers alone" + header},
		"two Host fields":                  {"GET", "/", fieldsOf("host", "a", "host", "secret"), head.ErrDuplicateHost, "field 2: duplicate Host field"},
		"more fields than MaxFields":       {"GET", "/", many(head.MaxFields+1, "cookie", "a=b"), head.ErrTooLarge, "field 257, and no head may have more than 256: head too large"},
		"more members than MaxMembers":     {"GET", "/", fieldsOf("trailer", strings.Repeat("a,", head.MaxMembers)), head.ErrTooLarge, "field 1: 257 names of fields in Connection and Trailer, more than 256: head too large"},
		"a field and then a worse one":     {"GET", "/", fieldsOf("a", "\x01", "b", "\x02"), head.ErrHeader, "field 1: byte 0x01 at column 1 in the value" + header},
		"a name that is no ASCII":          {"GET", "/", fieldsOf("hos\u017f", "1"), head.ErrHeader, "field 1: byte 0xc5 at column 4 in the name" + header},
		"DEL in the target":                {"GET", "/\x7f", nil, head.ErrRequestLine, "byte 0x7f at column 2 in the target: malformed request line"},
		"a connection-specific Keep-Alive": {"GET", "/", fieldsOf("keep-alive", "timeout=5"), head.ErrHeader, "field 1: a field that only a connection of HTTP/1.1 has" + header},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := head.Build(tt.method, tt.target, tt.fields)
			if got != nil || !errors.Is(err, tt.want) || err.Error() != tt.text {
				t.Errorf("got %v and the error %v, want %s", got, err, tt.text)
			}
		})
	}
	for _, name := range []string{"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"} {
		if got, err := head.Build("GET", "/", fieldsOf(name, "x")); got != nil || !errors.Is(err, head.ErrHeader) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

// TestBuildAndParseHaveTheSameRules tries each byte value at each place where both check
// bytes.
func TestBuildAndParseHaveTheSameRules(t *testing.T) {
	for c := range 256 {
		b := string([]byte{byte(c)})
		for where, r := range map[string]struct{ method, target, name, value string }{
			"method": {"G" + b + "T", "/", "a", "b"},
			"target": {"GET", "/" + b + "c", "a", "b"},
			"name":   {"GET", "/", "a" + b + "c", "b"},
			"value":  {"GET", "/", "a", "b" + b + "c"},
		} {
			if where == "name" && (b == ":" || b >= "A" && b <= "Z") {
				continue // a colon ends a name of HTTP/1.1, and HTTP/2 allows no capital letters
			}
			_, parseErr := head.Parse([]byte(r.method + " " + r.target + " HTTP/1.0\r\n" + r.name + ": " + r.value + "\r\n\r\n"))
			_, buildErr := head.Build(r.method, r.target, []head.Field{{Name: r.name, Value: r.value}})
			if (parseErr == nil) != (buildErr == nil) {
				t.Errorf("byte 0x%02x in the %s: Parse %v, Build %v", c, where, parseErr, buildErr)
			}
		}
	}
}

// FuzzBuild checks that a head which Build accepts is the same if it is written as text of
// HTTP/1.1 and parsed, and that there is no head with an error.
func FuzzBuild(f *testing.F) {
	f.Add("GET", "http://a.example/", "accept\n*/*\ncookie\na=b\ncookie\nc=d\nhost\na.example")
	f.Add("POST", "/", "a\n\ncookie\n\ncookie\n\nte\ntrailers")
	f.Add("GE T", "/ ", "Connection\nclose\n x\n y\nz\n\x00\nHost\na")
	f.Fuzz(func(t *testing.T, method, target, lines string) {
		var fields []head.Field
		for name, rest, more := strings.Cut(lines, "\n"); more; name, rest, more = strings.Cut(rest, "\n") {
			var value string
			value, rest, _ = strings.Cut(rest, "\n")
			fields = append(fields, head.Field{Name: name, Value: strings.ReplaceAll(value, "\x01", "\n")})
		}
		h, err := head.Build(method, target, fields)
		if err != nil {
			if h != nil {
				t.Fatalf("got %v with error %v", h, err)
			}
			return
		}
		if h.Method != method || h.Target != target || h.Major != 2 || h.Minor != 0 {
			t.Fatalf("got %v", h)
		}
		text := *h
		text.Major, text.Minor = 1, 1
		if !h.HasHost {
			text.Minor = 0 // HTTP/1.1 needs a Host field
		}
		parsed, err := head.Parse([]byte(render(&text)))
		if err != nil {
			t.Fatalf("parsing the head as text: %v", err)
		}
		if diff := cmp.Diff(parsed.Fields, h.Fields); diff != "" && len(h.Fields) > 0 {
			t.Fatalf("parsed -, built +\n%s", diff)
		}
		checkHead(t, parsed)
		var kept []head.Field
		for _, f := range fields {
			if f.Name != "cookie" {
				kept = append(kept, f)
			}
		}
		var got []head.Field
		for _, f := range h.Fields {
			if f.Name != "cookie" {
				got = append(got, f)
			}
		}
		if diff := cmp.Diff(got, kept); diff != "" {
			t.Fatalf("fields other than cookie: got -, want +\n%s", diff)
		}
	})
}
