package hostile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
)

// wire is the protocol of the requests of a case.
type wire string

// The wires. A case of anyWire runs over each of them. One of noWire runs once, because what
// it checks happens before a request or without one, or comes by SOCKS5.
const (
	anyWire wire = ""
	h1      wire = "h1"
	h2      wire = "h2"
	noWire  wire = "none"
)

// wires are the wires for which cases are counted.
var wires = [...]wire{h1, h2}

// runsOver reports whether a case runs over a wire. Cases without a wire run with those of
// HTTP/1.
func (s scenario) runsOver(w wire) bool {
	return s.only == anyWire || s.only == w || s.only == noWire && w == h1
}

// wireOf returns the wire of the case of a head that is refused for a reason, or allowed.
// Over HTTP/2, a head that it cannot carry has no case, nor has one whose reason would be
// another.
func wireOf(head string, reason allowlist.Reason) wire {
	h, err := translate(head)
	switch {
	case err != nil, reason == allowlist.MissingHost, reason == allowlist.UpgradeNotAllowed: // it has no upgrades, and Host may be missing
		return h1
	case reason == allowlist.HeadTooLarge && slices.ContainsFunc(slices.Concat(h.pseudo, h.fields), func(f field) bool { return len(f[1]) > 64<<10 }):
		return h1 // it ends the connection
	case reason != allowlist.MalformedHeader && slices.ContainsFunc(h.fields, concernsConnection):
		return h1
	}
	return anyWire
}

// field is a name and a value.
type field [2]string

// concernsConnection reports whether HTTP/2 does not allow a field (RFC 9113 section 8.2.2).
func concernsConnection(f field) bool {
	switch f[0] {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	case "te":
		return f[1] != "trailers"
	}
	return false
}

// streamHead is the head of a request of HTTP/1.1 as HTTP/2 has it.
type streamHead struct {
	pseudo, fields []field
	body           int  // length that Content-Length announces; 0 without one
	connect        bool // the stream becomes a tunnel
}

// pairs returns the names and values of all fields, in turn.
func (h streamHead) pairs() []string {
	var all []string
	for _, f := range slices.Concat(h.pseudo, h.fields) {
		all = append(all, f[0], f[1])
	}
	return all
}

// errNotCarried is the error for a head that HTTP/2 cannot carry.
var errNotCarried = errors.New("HTTP/2 cannot carry it")

// translate returns a head of HTTP/1.1, with its end and perhaps more, as HTTP/2 has it. It
// keeps all that is wrong with the target and the fields, but spells names in lower case and
// has no white space around values. A Host field is left out if a client of HTTP/2 would
// leave it out: if it says the same as the target, or does not count.
func translate(text string) (h streamHead, err error) {
	head, _, ended := strings.Cut(text, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	method, rest, ok := strings.Cut(lines[0], " ")
	target, version := rest[:max(0, strings.LastIndexByte(rest, ' '))], rest[strings.LastIndexByte(rest, ' ')+1:]
	if !ended || !ok || method == "" || target == "" || version != "HTTP/1.1" {
		return h, fmt.Errorf("the line %.40q: %w", lines[0], errNotCarried)
	}
	h.connect = strings.EqualFold(method, "CONNECT")
	h.pseudo = []field{{":method", method}, {":authority", target}}
	if !h.connect {
		if h.pseudo, err = splitURL(method, target); err != nil {
			return h, err
		}
	}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t") {
			return h, fmt.Errorf("the line %.40q: %w", line, errNotCarried)
		}
		f := field{strings.ToLower(name), strings.Trim(value, " \t")}
		if f[0] == "content-length" {
			_, _ = fmt.Sscanf(f[1], "%d", &h.body) // 0 for any other text
		}
		h.fields = append(h.fields, f)
	}
	isHost := func(f field) bool { return f[0] == "host" }
	if at := slices.IndexFunc(h.fields, isHost); !h.connect || at >= 0 && h.fields[at][1] == target && !slices.ContainsFunc(h.fields[at+1:], isHost) {
		h.fields = slices.DeleteFunc(h.fields, isHost)
	}
	return h, nil
}

// splitURL returns the pseudo-header fields of a plain request for a URL.
func splitURL(method, target string) ([]field, error) {
	scheme, rest, ok := strings.Cut(target, "://")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, path := rest[:end], rest[end:]
	switch {
	case !ok || scheme == "" || authority == "":
		return nil, fmt.Errorf("the target %.40q has no authority: %w", target, errNotCarried)
	case path == "" && method == "OPTIONS":
		path = "*"
	case !strings.HasPrefix(path, "/"):
		path = "/" + path
	}
	return []field{{":method", method}, {":scheme", scheme}, {":authority", authority}, {":path", path}}, nil
}

// notOverH2 says which cases of a row HTTP/2 has not, and why.
func notOverH2() map[string]string {
	return map[string]string{
		"A16": "a head of more than 64 KiB: H16",
		"D2":  "it has no HTTP/1.0",
		"D3":  "`:authority` is enough: D39",
		"D8":  "data stays on its stream: D40",
		"D9":  "it has no request line",
		"D10": "it has no request line",
		"D12": "it has no HTTP/1.0",
		"D13": "it has no lines",
		"D14": "a head of more than 64 KiB: H16",
		"D16": "a request without an authority: D39",
		"D17": "a Host that differs is refused: D39",
		"D18": "a target without an authority: D39",
		"D19": "a target without an authority: D39",
		"D20": "it has no lines, and no HTTP/1.0",
		"D24": "such fields of a request are refused: D38",
		"D25": "each request has a stream of its own: D43",
		"D30": "a stream has no connection that a login could belong to",
		"D31": "trailers and `connection` are refused: D38, D42",
		"D32": "it has no upgrades: D38",
		"D33": "it has no upgrades, and no lines",
		"D34": "queries over HTTP/2 are tested in `proxy/front` and `e2e`",
		"D35": "as for D34",
		"D36": "as for D34",
		"E4":  "a stream is no connection: E17",
		"F13": "it has no HTTP/1.0",
		"H1":  "a head is one frame, or more: H18",
		"H4":  "the slots are those of connections",
		"H5":  "a part of a head: H16, H18",
		"H15": "such fields of a request are refused: D38",
	}
}

// overH2 returns the cell about HTTP/2 in the table: the number of cases, and which others it
// cannot carry.
func (r row) overH2() string {
	text := fmt.Sprint(r.count(h2))
	if why := notOverH2()[r.id]; why != "" {
		text += " (" + why + ")"
	}
	return text
}

// TestRowsSayWhatHTTP2CannotCarry checks that exactly the rows with cases that do not run over
// HTTP/2 say why.
func TestRowsSayWhatHTTP2CannotCarry(t *testing.T) {
	whys := notOverH2()
	for _, c := range classes(nil) {
		for _, r := range c.rows {
			lacks := slices.ContainsFunc(r.cases, func(s scenario) bool { return s.only == h1 })
			if _, says := whys[r.id]; says != lacks {
				t.Errorf("%s says why it has no case over HTTP/2: %v; it lacks some: %v", r.id, says, lacks)
			}
			delete(whys, r.id)
		}
	}
	for id := range whys {
		t.Errorf("%s is no row", id)
	}
}
