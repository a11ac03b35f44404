package native

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"strconv"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// line is a JSON object that is being written, in the form that [encoding/json] gives a
// struct whose fields have omitempty, except that it also escapes the characters that a
// terminal obeys. Fields are written in the order of the calls; their names need no
// escapes.
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

// text writes a text unless it is empty.
func (l *line) text(name, value string) {
	if value != "" {
		l.mustText(name, value)
	}
}

// mustText writes a text even if it is empty.
func (l *line) mustText(name, value string) {
	l.key(name)
	if isPlain(value) {
		l.buf = append(l.buf, '"')
		l.buf = append(l.buf, value...)
		l.buf = append(l.buf, '"')
		return
	}
	// The conversion replaces bytes that are not UTF-8 by U+FFFD. encoding/json would
	// write an escape for them, which changes when the line is read and written again.
	escaped, _ := json.Marshal(string([]rune(value))) // no error is possible for a string
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

// number writes a number unless it is zero.
func (l *line) number(name string, n int64) {
	if n != 0 {
		l.mustNumber(name, n)
	}
}

// mustNumber writes a number even if it is zero.
func (l *line) mustNumber(name string, n int64) {
	l.key(name)
	l.buf = strconv.AppendInt(l.buf, n, 10)
}

// count writes a count unless it is zero.
func (l *line) count(name string, n uint64) {
	if n != 0 {
		l.mustCount(name, n)
	}
}

// mustCount writes a count even if it is zero.
func (l *line) mustCount(name string, n uint64) {
	l.key(name)
	l.buf = strconv.AppendUint(l.buf, n, 10)
}

// flag writes true, or nothing if the flag is not set.
func (l *line) flag(name string, set bool) {
	if set {
		l.key(name)
		l.buf = append(l.buf, "true"...)
	}
}

func (l *line) milliseconds(name string, d time.Duration) { l.thousandths(name, d.Microseconds()) }

// thousandths writes n/1000 exactly, unless it is zero.
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

// time writes a time in UTC, in RFC 3339 with all nine digits of the fraction, so that
// lines sort as text.
func (l *line) time(name string, t time.Time) {
	l.key(name)
	l.buf = append(l.buf, '"')
	l.buf = t.UTC().AppendFormat(l.buf, time.RFC3339) // faster than AppendFormat with a layout that has nine digits
	l.buf[len(l.buf)-1] = '.'                         // for the Z
	ns := t.Nanosecond()
	for unit := int(time.Second) / 10; unit > 0; unit /= 10 {
		l.buf = append(l.buf, "0123456789"[ns/unit%10])
	}
	l.buf = append(l.buf, 'Z', '"')
}

// address writes an address if it is valid.
func (l *line) address(name string, addr netip.Addr) {
	switch {
	case !addr.IsValid():
	case addr.Zone() != "": // a zone may be any text
		l.mustText(name, addr.String())
	default:
		l.key(name)
		l.buf = append(l.buf, '"')
		l.buf = addr.AppendTo(l.buf)
		l.buf = append(l.buf, '"')
	}
}

// addresses writes a list unless it is empty.
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
		l.buf = addr.WithZone("").AppendTo(l.buf) // no zone is written
		l.buf = append(l.buf, '"')
	}
	l.buf = append(l.buf, ']')
}

// addrPort writes an address and port if they are valid.
func (l *line) addrPort(name string, addr netip.AddrPort) {
	switch {
	case !addr.IsValid():
	case addr.Addr().Zone() != "":
		l.mustText(name, addr.String())
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
