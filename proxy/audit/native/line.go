package native

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"strconv"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// line is an object of JSON that is being written, as [encoding/json] would
// write a struct whose fields are left out when they are empty, but for more
// escapes: what a terminal obeys does not stand in it. Fields come in
// the order of the calls; their names need no escapes.
type line struct{ buf []byte }

// key begins a field.
func (l *line) key(name string) {
	if l.buf[len(l.buf)-1] != '{' {
		l.buf = append(l.buf, ',')
	}
	l.buf = append(l.buf, '"')
	l.buf = append(l.buf, name...)
	l.buf = append(l.buf, '"', ':')
}

// text leaves out a text that is empty.
func (l *line) text(name, value string) {
	if value != "" {
		l.must(name, value)
	}
}

// must writes a text, empty or not.
func (l *line) must(name, value string) {
	l.key(name)
	if isPlain(value) {
		l.buf = append(l.buf, '"')
		l.buf = append(l.buf, value...)
		l.buf = append(l.buf, '"')
		return
	}
	// The conversion makes U+FFFD of a byte that is no UTF-8, which encoding/json
	// would write as an escape: read and written again it would be another line.
	escaped, _ := json.Marshal(string([]rune(value))) // of a string there is no error
	l.buf = allowlist.AppendVisible(l.buf, escaped)
}

// isPlain reports whether a text needs no escapes.
func isPlain(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}

// number leaves out zero.
func (l *line) number(name string, n int64) {
	if n != 0 {
		l.mustNumber(name, n)
	}
}

// mustNumber writes a number, zero or not.
func (l *line) mustNumber(name string, n int64) {
	l.key(name)
	l.buf = strconv.AppendInt(l.buf, n, 10)
}

// count leaves out zero.
func (l *line) count(name string, n uint64) {
	if n != 0 {
		l.mustCount(name, n)
	}
}

// mustCount writes a count, zero or not.
func (l *line) mustCount(name string, n uint64) {
	l.key(name)
	l.buf = strconv.AppendUint(l.buf, n, 10)
}

// flag leaves out false.
func (l *line) flag(name string, set bool) {
	if set {
		l.key(name)
		l.buf = append(l.buf, "true"...)
	}
}

func (l *line) milliseconds(name string, d time.Duration) { l.thousandths(name, d.Microseconds()) }

// thousandths writes n/1000, exactly, and leaves out zero.
func (l *line) thousandths(name string, n int64) {
	if n == 0 {
		return
	}
	l.key(name)
	whole, part := n/1000, n%1000
	if n < 0 {
		part = -part
		if whole == 0 {
			l.buf = append(l.buf, '-')
		}
	}
	l.buf = strconv.AppendInt(l.buf, whole, 10)
	if part == 0 {
		return
	}
	l.buf = append(l.buf, '.')
	for unit := int64(100); part > 0; unit /= 10 {
		l.buf = append(l.buf, "0123456789"[part/unit])
		part %= unit
	}
}

// time writes a time in UTC: RFC 3339 with all nine digits, so that lines sort
// as text.
func (l *line) time(name string, t time.Time) {
	l.key(name)
	l.buf = append(l.buf, '"')
	l.buf = t.UTC().AppendFormat(l.buf, time.RFC3339) // which is faster than a form of our own
	l.buf[len(l.buf)-1] = '.'                         // for the Z
	ns := t.Nanosecond()
	for unit := int(time.Second) / 10; unit > 0; unit /= 10 {
		l.buf = append(l.buf, "0123456789"[ns/unit%10])
	}
	l.buf = append(l.buf, 'Z', '"')
}

// address leaves out what is none.
func (l *line) address(name string, addr netip.Addr) {
	switch {
	case !addr.IsValid():
	case addr.Zone() != "": // any text
		l.must(name, addr.String())
	default:
		l.key(name)
		l.buf = append(l.buf, '"')
		l.buf = addr.AppendTo(l.buf)
		l.buf = append(l.buf, '"')
	}
}

// addresses leaves out a list that is empty.
func (l *line) addresses(name string, all []netip.Addr) {
	if len(all) == 0 {
		return
	}
	l.key(name)
	l.buf = append(l.buf, '[')
	for i, addr := range all {
		if i > 0 {
			l.buf = append(l.buf, ',')
		}
		l.buf = append(l.buf, '"')
		l.buf = addr.WithZone("").AppendTo(l.buf) // none of these has one
		l.buf = append(l.buf, '"')
	}
	l.buf = append(l.buf, ']')
}

// addrPort leaves out what is none.
func (l *line) addrPort(name string, addr netip.AddrPort) {
	switch {
	case !addr.IsValid():
	case addr.Addr().Zone() != "":
		l.must(name, addr.String())
	default:
		l.key(name)
		l.buf = append(l.buf, '"')
		l.buf = addr.AppendTo(l.buf)
		l.buf = append(l.buf, '"')
	}
}

func (l *line) hex(name string, id []byte) {
	l.key(name)
	l.buf = append(l.buf, '"')
	l.buf = hex.AppendEncode(l.buf, id)
	l.buf = append(l.buf, '"')
}
