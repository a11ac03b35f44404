package head_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/proxy/head"
)

func TestParseAccepts(t *testing.T) {
	host := func(v string) []head.Field { return []head.Field{{Name: "Host", Value: v}} }
	tests := map[string]struct {
		raw  string
		want head.Head
	}{
		"CONNECT as curl sends it": {
			"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nUser-Agent: curl/8.9.1\r\nProxy-Connection: Keep-Alive\r\n\r\n",
			head.Head{Method: "CONNECT", Target: "a.example:443", Major: 1, Minor: 1, Host: "a.example:443", HasHost: true, Fields: []head.Field{
				{Name: "Host", Value: "a.example:443"}, {Name: "User-Agent", Value: "curl/8.9.1"}, {Name: "Proxy-Connection", Value: "Keep-Alive"},
			}},
		},
		"HTTP/1.0 without Host": {
			"CONNECT a.example:443 HTTP/1.0\r\n\r\n",
			head.Head{Method: "CONNECT", Target: "a.example:443", Major: 1},
		},
		"a lower-case method, for the caller to refuse": {
			"connect a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
			head.Head{Method: "connect", Target: "a:1", Major: 1, Minor: 1, Host: "a", HasHost: true, Fields: host("a")},
		},
		"every byte a target may hold": {
			"GET " + printable + " HTTP/1.1\r\nHost: a\r\n\r\n",
			head.Head{Method: "GET", Target: printable, Major: 1, Minor: 1, Host: "a", HasHost: true, Fields: host("a")},
		},
		"bytes beyond ASCII in the target, for the caller to refuse": {
			"CONNECT \uff41llowed.example:443 HTTP/1.0\r\n\r\n",
			head.Head{Method: "CONNECT", Target: "\uff41llowed.example:443", Major: 1},
		},
		"an empty Host": {
			"GET / HTTP/1.1\r\nHost:\r\n\r\n",
			head.Head{Method: "GET", Target: "/", Major: 1, Minor: 1, HasHost: true, Fields: host("")},
		},
		"white space around a value and within it": {
			"GET / HTTP/1.0\r\nA: \t b \t c\t \r\nB:\t\r\n\r\n",
			head.Head{Method: "GET", Target: "/", Major: 1, Fields: []head.Field{{Name: "A", Value: "b \t c"}, {Name: "B", Value: ""}}},
		},
		"obs-text in a value": {
			"GET / HTTP/1.0\r\nA: \x80\xff:;\"\r\n\r\n",
			head.Head{Method: "GET", Target: "/", Major: 1, Fields: []head.Field{{Name: "A", Value: "\x80\xff:;\""}}},
		},
		"a Host in another case": {
			"GET / HTTP/1.1\r\nhOST: a\r\n\r\n",
			head.Head{Method: "GET", Target: "/", Major: 1, Minor: 1, Host: "a", HasHost: true, Fields: []head.Field{{Name: "hOST", Value: "a"}}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for how, parse := range readings() {
				got, err := parse(tt.raw)
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				if diff := cmp.Diff(*got, tt.want); diff != "" {
					t.Errorf("%s: got -, want +\n%s", how, diff)
				}
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	field := func(line string) string { return "GET / HTTP/1.1\r\nHost: a\r\n" + line + "\r\n\r\n" }
	first := func(line string) string { return line + "\r\nHost: a\r\n\r\n" }
	tests := map[string]struct {
		raw  string
		want error
	}{
		"no version (HTTP/0.9)":            {"GET /\r\n", head.ErrRequestLine},
		"no target":                        {first("GET HTTP/1.1"), head.ErrRequestLine},
		"an empty target":                  {first("GET  HTTP/1.1"), head.ErrRequestLine},
		"no method":                        {first(" / HTTP/1.1"), head.ErrRequestLine},
		"two spaces before the target":     {first("GET  / HTTP/1.1"), head.ErrRequestLine},
		"two spaces behind the target":     {first("GET /  HTTP/1.1"), head.ErrRequestLine},
		"a tab for a space":                {first("GET\t/ HTTP/1.1"), head.ErrRequestLine},
		"a tab in the target":              {first("GET /\t HTTP/1.1"), head.ErrRequestLine},
		"a space behind the version":       {first("GET / HTTP/1.1 "), head.ErrRequestLine},
		"a space in the target":            {first("GET /a b HTTP/1.1"), head.ErrRequestLine},
		"NUL in the target":                {first("GET /\x00 HTTP/1.1"), head.ErrRequestLine},
		"DEL in the target":                {first("GET /\x7f HTTP/1.1"), head.ErrRequestLine},
		"a separator in the method":        {first("GE,T / HTTP/1.1"), head.ErrRequestLine},
		"bare LF behind the request line":  {"GET / HTTP/1.1\nHost: a\r\n\r\n", head.ErrRequestLine},
		"bare CR in the request line":      {first("GET /\r HTTP/1.1"), head.ErrRequestLine},
		"CR CR LF behind the request line": {first("GET / HTTP/1.1\r"), head.ErrRequestLine},
		"seventeen empty lines first":      {strings.Repeat("\r\n", 17) + first("GET / HTTP/1.1"), head.ErrRequestLine},
		"a bare LF first":                  {"\n" + first("GET / HTTP/1.1"), head.ErrRequestLine},
		"bytes of a TLS handshake":         {"\x16\x03\x01", head.ErrRequestLine},
		"a lower-case version":             {first("GET / http/1.1"), head.ErrRequestLine},
		"a version without minor":          {first("GET / HTTP/2"), head.ErrRequestLine},
		"a version with a long minor":      {first("GET / HTTP/1.11"), head.ErrRequestLine},
		"a version with a letter":          {first("GET / HTTP/1.x"), head.ErrRequestLine},
		"HTTP/2.0":                         {first("GET / HTTP/2.0"), head.ErrVersion},
		"HTTP/1.2":                         {first("GET / HTTP/1.2"), head.ErrVersion},
		"HTTP/0.9 in so many words":        {first("GET / HTTP/0.9"), head.ErrVersion},
		"the preface of HTTP/2":            {"PRI * HTTP/2.0\r\n\r\n", head.ErrVersion},

		"a folded line":                    {field("A: b\r\n c"), head.ErrHeader},
		"a line folded with a tab":         {field("A: b\r\n\tc"), head.ErrHeader},
		"a space before the first field":   {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", head.ErrHeader},
		"a space before the colon":         {field("A : b"), head.ErrHeader},
		"a tab before the colon":           {field("A\t: b"), head.ErrHeader},
		"no name":                          {field(": b"), head.ErrHeader},
		"no colon":                         {field("A"), head.ErrHeader},
		"a separator in a name":            {field("A(b): c"), head.ErrHeader},
		"a non-ASCII name":                 {field("\xc3\xa4: c"), head.ErrHeader},
		"NUL in a name":                    {field("A\x00: c"), head.ErrHeader},
		"NUL in a value":                   {field("A: b\x00c"), head.ErrHeader},
		"DEL in a value":                   {field("A: b\x7fc"), head.ErrHeader},
		"ESC in a value":                   {field("A: \x1b[2J"), head.ErrHeader},
		"bare CR in a value":               {field("A: b\rHost: c"), head.ErrHeader},
		"CR CR LF behind a field":          {field("A: b\r"), head.ErrHeader},
		"bare LF behind a field":           {field("A: b\nC: d"), head.ErrHeader},
		"bare LF for the empty line":       {"GET / HTTP/1.1\r\nHost: a\r\n\n", head.ErrHeader},
		"a Host field without a colon":     {"GET / HTTP/1.1\r\nHost\r\n\r\n", head.ErrHeader},
		"HTTP/1.1 without Host":            {"GET / HTTP/1.1\r\nA: b\r\n\r\n", head.ErrMissingHost},
		"HTTP/1.1 without any field":       {"GET / HTTP/1.1\r\n\r\n", head.ErrMissingHost},
		"a name that folds to Host":        {"GET / HTTP/1.1\r\nHos\u017f: b\r\n\r\n", head.ErrHeader},
		"two Host fields":                  {field("Host: b"), head.ErrDuplicateHost},
		"two equal Host fields":            {field("host: a"), head.ErrDuplicateHost},
		"two Host fields in HTTP/1.0":      {"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", head.ErrDuplicateHost},
		"more fields than MaxFields":       {field(strings.Repeat("A: b\r\n", head.MaxFields-1) + "A: b"), head.ErrTooLarge},
		"ten thousand fields":              {field(strings.Repeat("A:\r\n", 10_000) + "A:"), head.ErrTooLarge},
		"the end within the request line":  {"GET / HT", io.ErrUnexpectedEOF},
		"the end within a field":           {"GET / HTTP/1.1\r\nHost: a", io.ErrUnexpectedEOF},
		"the end before the empty line":    {"GET / HTTP/1.1\r\nHost: a\r\n", io.ErrUnexpectedEOF},
		"the end within the empty line":    {"GET / HTTP/1.1\r\nHost: a\r\n\r", io.ErrUnexpectedEOF},
		"a field that is wrong, then more": {field("A b\r\nHost: c"), head.ErrHeader},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for how, parse := range readings() {
				got, err := parse(tt.raw)
				if !errors.Is(err, tt.want) || got != nil {
					t.Errorf("%s: got %v, %v, want error %v", how, got, err, tt.want)
				}
			}
		})
	}
}

// TestEveryByteInEveryPlace tries each byte value in each place where bytes are checked.
func TestEveryByteInEveryPlace(t *testing.T) {
	accepts := func(form string) (got string) {
		for c := range 256 {
			raw := strings.Replace(form, "#", string([]byte{byte(c)}), 1)
			if _, err := head.Parse([]byte(raw)); err == nil {
				got += string([]byte{byte(c)})
			}
		}
		return got
	}
	const token = "!#$%&'*+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ^_`abcdefghijklmnopqrstuvwxyz|~"
	var text, high strings.Builder
	text.WriteString("\t ")
	for c := range 256 {
		if c > ' ' && c != 0x7f {
			text.WriteByte(byte(c))
		}
		if c > 0x7f {
			high.WriteByte(byte(c))
		}
	}
	for _, tt := range []struct{ where, form, want string }{
		{"first of a method", "#ET / HTTP/1.0\r\n\r\n", token},
		{"within a method", "G#T / HTTP/1.0\r\n\r\n", token},
		{"target", "GET # HTTP/1.0\r\n\r\n", printable + high.String()},
		{"major version", "GET / HTTP/#.0\r\n\r\n", "1"},
		{"minor version", "GET / HTTP/1.#\r\nHost: a\r\n\r\n", "01"},
		{"first of a name", "GET / HTTP/1.0\r\n#A: b\r\n\r\n", token},
		{"within a name", "GET / HTTP/1.0\r\nA#B: b\r\n\r\n", strings.Replace(token, "A", ":A", 1)},
		{"value", "GET / HTTP/1.0\r\nA: b#c\r\n\r\n", text.String()},
	} {
		if got := accepts(tt.form); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.where, got, tt.want)
		}
	}
}

func TestParseRefusesBytesBehindTheHead(t *testing.T) {
	got, err := head.Parse([]byte("GET / HTTP/1.0\r\n\r\nGET"))
	if !errors.Is(err, head.ErrHeader) || got != nil {
		t.Errorf("got %v, %v, want error %v", got, err, head.ErrHeader)
	}
}

func TestErrorsDoNotRepeatTheRequest(t *testing.T) {
	for _, raw := range []string{
		"GET secret\x00 HTTP/1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nProxy-Authorization : secret\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nHost: secret\r\n\r\n",
	} {
		if _, err := head.Parse([]byte(raw)); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v, want an error without the request's bytes", err)
		}
	}
}

func TestFieldsByName(t *testing.T) {
	h, err := head.Parse([]byte("GET / HTTP/1.0\r\nVia: a\r\nX: k\r\nvia: b\r\nVIA:\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slices.Collect(h.Values("Via")), []string{"a", "b", ""}); diff != "" {
		t.Errorf("Values: got -, want +\n%s", diff)
	}
	if got := h.Get("vIA"); got != "a" {
		t.Errorf("Get: got %q, want %q", got, "a")
	}
	if got := h.Get("Absent"); got != "" {
		t.Errorf("Get: got %q, want %q", got, "")
	}
}

// printable holds every ASCII byte that a target may contain.
const printable = "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"

// curl is a typical head.
const curl = "CONNECT api.allowed.example:443 HTTP/1.1\r\nHost: api.allowed.example:443\r\nUser-Agent: curl/8.9.1\r\nProxy-Connection: Keep-Alive\r\n\r\n"

// readings returns the ways in which bytes are read as a head. All must have the same
// result.
func readings() map[string]func(raw string) (*head.Head, error) {
	read := func(src io.Reader) (*head.Head, error) {
		r := head.NewReader(src, 0)
		defer r.Release()
		return r.ReadHead()
	}
	return map[string]func(string) (*head.Head, error){
		"parsed":       func(raw string) (*head.Head, error) { return head.Parse([]byte(raw)) },
		"read whole":   func(raw string) (*head.Head, error) { return read(strings.NewReader(raw)) },
		"read by byte": func(raw string) (*head.Head, error) { return read(&chunks{rest: []byte(raw), sizes: []int{1}}) },
		"read by five": func(raw string) (*head.Head, error) { return read(&chunks{rest: []byte(raw), sizes: []int{5}}) },
	}
}

// chunks is a connection that returns its bytes in pieces of the given sizes, the last of
// which repeats, and counts the bytes that were read.
type chunks struct {
	rest  []byte
	sizes []int
	taken int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.sizes[0])], c.rest)
	c.rest = c.rest[n:]
	c.taken += n
	if len(c.sizes) > 1 {
		c.sizes = c.sizes[1:]
	}
	return n, nil
}

func render(h *head.Head) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/%s\r\n", h.Method, h.Target, h.Version())
	for _, f := range h.Fields {
		fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
	}
	b.WriteString("\r\n")
	return b.String()
}
