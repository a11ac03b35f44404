package allowlist

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Host is a destination host in its one canonical form: a DNS name in lower case without
// a final dot, or an IP address (IPv4-mapped IPv6 unmapped, never with a zone). It is
// comparable: equal hosts are equal values. The decision, the look-up, the dial, the TLS
// check and the record all use this value. The zero value is no host.
type Host struct {
	name string
	addr netip.Addr
}

// Errors of ParseHost, ParseDestination, ParseURL and CheckPath. A malformed port has an
// error of its own because it has a reason of its own. The errors that wrap these add the
// cause as one of a few constant texts, so that no byte of a target is ever in an error.
var (
	ErrHost   = errors.New("malformed host")
	ErrTarget = errors.New("malformed target")
	ErrPort   = errors.New("malformed port: want 1 to 65535 in decimal")

	errForm = fmt.Errorf("%w: want HOST:PORT", ErrTarget)

	errNoHost   = fmt.Errorf("%w: it is missing", ErrHost)
	errNonASCII = fmt.Errorf("%w: it has a non-ASCII byte (write an international name as its A-label)", ErrHost)
	errEscape   = fmt.Errorf("%w: it has an escape", ErrHost)
	errByte     = fmt.Errorf("%w: it has a byte that no name has", ErrHost)
	errLabels   = fmt.Errorf("%w: a label or the name is empty or too long, or a label begins or ends with a hyphen", ErrHost)
	errALabel   = fmt.Errorf("%w: a label that begins with xn-- is no A-label", ErrHost)
	errNumber   = fmt.Errorf("%w: a name that ends in a number is an IPv4 address, of four plain decimals", ErrHost)
	errAddress  = fmt.Errorf("%w: it is no IPv6 address without a zone", ErrHost)
	errBrackets = fmt.Errorf("%w: an IPv6 address, and nothing else, stands in brackets, without a zone", ErrHost)
)

const (
	maxName  = 253 // RFC 1035 section 2.3.4, without the final dot
	maxLabel = 63
)

// HostOf returns the host of an address; a zone is dropped.
func HostOf(addr netip.Addr) Host {
	return Host{addr: addr.Unmap().WithZone("")}
}

// ParseHost parses a DNS name, an IPv4 address or an IPv6 address without brackets. It
// folds ASCII case and strips exactly one final dot. Everything else that is not the
// canonical spelling is ErrHost: non-ASCII, escapes, an A-label that does not round-trip,
// a name whose last label is a number, a zone. The host shares no memory with s, which
// may be a small part of a large buffer.
func ParseHost(s string) (Host, error) {
	if strings.Contains(s, ":") {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return Host{}, errAddress
		}
		return HostOf(addr), nil
	}
	if lastLabelIsNumber(s) {
		addr, err := netip.ParseAddr(s) // strict: four decimals, no leading zero
		if err != nil {
			return Host{}, errNumber
		}
		return HostOf(addr), nil
	}
	name := strings.TrimSuffix(s, ".")
	if !validName(name) {
		return Host{}, nameError(s)
	}
	name = strings.ToLower(name) // validName accepts ASCII only
	if strings.Contains(name, "xn--") && !validALabels(name) {
		return Host{}, errALabel
	}
	return Host{name: strings.Clone(name)}, nil
}

// HostOfName returns the host for a DNS name in its uncompressed wire form. The name may
// have any bytes, because the target of an alias need not be the name of a host (RFC 2181
// section 11; RFC 2317 uses slashes). For the name of a host it returns the value that
// ParseHost returns. In every other name each byte that no host name has, and each dot
// inside a label, is written as a backslash and three decimal digits. So different names
// have different texts, and the dots of the text separate labels. No rule can name such a
// host exactly, but a wildcard covers it. The error for the root and for bytes that are
// not a name is ErrHost.
func HostOfName(wire []byte) (Host, error) {
	if len(wire) == 0 || wire[0] == 0 || len(wire) > maxName+2 {
		return Host{}, errLabels
	}
	text := make([]byte, 0, len(wire)+16)
	for rest := wire; ; {
		size := int(rest[0])
		if size > maxLabel || len(rest) < 1+size+1 {
			return Host{}, errLabels
		}
		for _, c := range rest[1 : 1+size] {
			switch {
			case c == '.' || !isNameByte(c):
				text = append(text, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
			case 'A' <= c && c <= 'Z':
				text = append(text, c+'a'-'A')
			default:
				text = append(text, c)
			}
		}
		if rest = rest[1+size:]; rest[0] == 0 {
			if len(rest) > 1 {
				return Host{}, errLabels
			}
			return Host{name: string(text)}, nil
		}
		text = append(text, '.')
	}
}

// IsZero reports whether h is the zero value.
func (h Host) IsZero() bool { return h == Host{} }

// IsAddr reports whether h is an IP address.
func (h Host) IsAddr() bool { return h.addr.IsValid() }

// Addr returns the address, or the zero netip.Addr if h is a name.
func (h Host) Addr() netip.Addr { return h.addr }

// String returns the canonical text, without brackets.
func (h Host) String() string {
	if h.IsAddr() {
		return h.addr.String()
	}
	return h.name
}

// Destination is a canonical host and a port. It is comparable; the zero value
// is no destination.
type Destination struct {
	Host Host
	Port uint16
}

// ParseDestination parses an authority of the form HOST:PORT, the form of a CONNECT
// target (RFC 9112 section 3.2.3): IPv6 addresses are in brackets, names and IPv4
// addresses are not, and the port is never missing. The error wraps ErrHost, ErrTarget or
// ErrPort.
func ParseDestination(s string) (Destination, error) {
	host, port, err := splitTarget(s)
	if err != nil {
		return Destination{}, err
	}
	if strings.ContainsAny(port, "/?#") { // more than an authority
		return Destination{}, errForm
	}
	p, err := parsePort(port)
	if err != nil {
		return Destination{}, err
	}
	return Destination{Host: host, Port: p}, nil
}

// String returns HOST:PORT with brackets around an IPv6 address.
func (d Destination) String() string {
	if d.Host.addr.Is6() {
		return "[" + d.Host.String() + "]:" + strconv.Itoa(int(d.Port))
	}
	return d.Host.String() + ":" + strconv.Itoa(int(d.Port))
}

func splitTarget(s string) (Host, string, error) {
	if strings.Contains(s, "@") {
		return Host{}, "", errUserinfo
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		inner, port, found := strings.Cut(rest, "]:")
		if !found {
			return Host{}, "", errForm
		}
		addr, err := netip.ParseAddr(inner)
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return Host{}, "", errBrackets
		}
		return HostOf(addr), port, nil
	}
	name, port, found := strings.Cut(s, ":")
	if !found || strings.Contains(port, ":") {
		return Host{}, "", errForm
	}
	host, err := ParseHost(name)
	return host, port, err
}

// parsePort parses a number from 1 to 65535 in decimal without sign or leading zero.
func parsePort(s string) (uint16, error) {
	if s == "" || len(s) > 5 || s[0] == '0' {
		return 0, ErrPort
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, ErrPort
		}
		n = n*10 + int(s[i]-'0')
	}
	if n > 65535 {
		return 0, ErrPort
	}
	return uint16(n), nil
}

// lastLabelIsNumber reports whether the last label of s is a decimal or hexadecimal
// number, so that a lax resolver could read s as an IPv4 address (WHATWG URL, "ends in a
// number").
func lastLabelIsNumber(s string) bool {
	s = strings.TrimSuffix(s, ".")
	label := s[strings.LastIndexByte(s, '.')+1:]
	if len(label) >= 2 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X') {
		return isAll(label[2:], isHexDigit)
	}
	return label != "" && isAll(label, isDigit)
}

// validName checks the labels (RFC 1035 section 2.3.1, with underscores and digits
// anywhere) and the lengths of a name.
func validName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '.' {
			if !isNameByte(name[i]) {
				return false
			}
			continue
		}
		if i == start || i-start > maxLabel || name[start] == '-' || name[i-1] == '-' {
			return false
		}
		start = i + 1
	}
	return true
}

// nameError returns the error for a text that validName does not accept.
func nameError(s string) error {
	switch {
	case s == "":
		return errNoHost
	case !isASCII(s):
		return errNonASCII
	case strings.Contains(s, "%"):
		return errEscape
	case !isAll(s, isNameByte):
		return errByte
	}
	return errLabels
}

// validALabels reports whether every xn-- label decodes and encodes back to itself (RFC
// 5891 section 5.4). It does not check other labels, because IDNA refuses underscores and
// labels like r3---sn-x that real names have.
func validALabels(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if !strings.HasPrefix(label, "xn--") {
			continue
		}
		unicode, err := idna.Lookup.ToUnicode(label)
		if err != nil {
			return false
		}
		if back, err := idna.Lookup.ToASCII(unicode); err != nil || back != label || unicode == label {
			return false
		}
	}
	return true
}

// toALabels returns the A-label form of a name written in Unicode, for error
// messages only.
func toALabels(name string) (string, bool) {
	if isASCII(name) {
		return "", false
	}
	ascii, err := idna.Lookup.ToASCII(name)
	return ascii, err == nil && ascii != name
}

func isASCII(s string) bool { return isAll(s, func(c byte) bool { return c < utf8.RuneSelf }) }

func isAll(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isHexDigit(c byte) bool {
	return isDigit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func isNameByte(c byte) bool {
	return isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.'
}
