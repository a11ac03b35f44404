// Package head reads the heads of HTTP/1.x requests, strictly, and builds those of HTTP/2
// requests by the same rules.
//
// A head is everything from the method to the empty line. [NewReader] returns a Reader,
// which reads one head after the other from a connection and leaves the bytes between
// them to the caller. [Parse] parses a head that is already in memory:
//
//	r := head.NewReader(conn, 0)
//	defer r.Release()
//	h, err := r.ReadHead()
//	if err != nil { … errors.Is(err, head.ErrTooLarge) … }
//	early := r.Buffered() // bytes that the client sent after the head
//
// The fields of an HTTP/2 request do not come as text. [Build] checks them and makes a head
// of them.
//
// The package accepts one spelling only of everything that can be written in several
// ways, since a proxy can be bypassed if two parsers read a request differently: no bare
// LF or CR, no folded lines, no space before a colon, no second Host. It only splits the
// request into its parts. It does not parse the target or compare it with Host, reads no
// body ([Head.Body] returns its length) and does not know the policy. The caller decides
// which methods and targets it accepts.
package head

import (
	"errors"
	"iter"
	"strconv"
	"strings"
)

const (
	// DefaultLimit is the size of the largest head, in bytes, for a Reader that is made
	// with limit 0.
	DefaultLimit = 64 << 10

	// MaxFields is the largest number of fields in a head. Browsers send about twenty.
	// With the bound, a head of tiny fields cannot need many times its size in memory.
	MaxFields = 256

	// MaxMembers is the largest number of members that the fields Connection and Trailer
	// of a head list together. The members name fields, and a proxy that forwards the
	// head compares each of them with all fields.
	MaxMembers = 256
)

// The errors for a head that is refused. The errors that this package returns wrap one of
// them and say what is wrong in which line, or in which field of HTTP/2. Their text contains no text of the request; a
// byte that is not allowed is given as a number. All other errors of ReadHead come from
// the connection.
var (
	// ErrRequestLine is a request line that is not
	// "token SP target SP HTTP-version CRLF" (RFC 9112 section 3), or a method or target
	// passed to Build that could not stand in one.
	ErrRequestLine = errors.New("malformed request line")
	// ErrVersion is a well-formed HTTP version other than 1.0 and 1.1.
	ErrVersion = errors.New("unsupported HTTP version")
	// ErrHeader is a field line that is not "token:OWS value OWS CRLF" (RFC 9112 section
	// 5), bytes after the head that is passed to Parse, or a field passed to Build that
	// HTTP/2 does not allow.
	ErrHeader = errors.New("malformed header")
	// ErrTooLarge is a head with more bytes than the limit, more fields than
	// MaxFields or more members than MaxMembers.
	ErrTooLarge = errors.New("head too large")
	// ErrMissingHost is an HTTP/1.1 request without a Host field (RFC 9112
	// section 3.2).
	ErrMissingHost = errors.New("missing Host field")
	// ErrDuplicateHost is a request of any version with more than one Host field.
	ErrDuplicateHost = errors.New("duplicate Host field")
)

// A Field is one field line, as received but without the white space around the value.
// Name is a token in the case in which it was sent. Value has no control byte but tab,
// and may have bytes from 0x80 up (obs-text).
type Field struct{ Name, Value string }

// A Head is the head of one request. The strings of a parsed head are parts of one copy of
// the received bytes, so it stays valid when the Reader reads on. A head never changes after it
// has been returned, so it is safe for concurrent use.
type Head struct {
	Method  string  // a token, case-sensitive, as sent; never empty
	Target  string  // bytes 0x21 to 0x7e and from 0x80 up, as sent; never empty
	Major   int     // 1, or 2 for a head from Build
	Minor   int     // 0 or 1, the x of HTTP/1.x; 0 for HTTP/2
	Host    string  // the value of the Host field; "" if there is none
	HasHost bool    // there is a Host field; always true for HTTP/1.1
	Fields  []Field // all fields, Host among them, in the order received
}

// IsHTTP10 reports whether the request is of HTTP/1.0, which has no chunks, interim answers
// or upgrades, and whose connection ends with the answer.
func (h *Head) IsHTTP10() bool { return h.Major == 1 && h.Minor == 0 }

// Version returns the version as it stands in HTTP-version and Via, such as 1.1. It is 2.0
// for HTTP/2 (RFC 9110 section 2.5).
func (h *Head) Version() string { return strconv.Itoa(h.Major) + "." + strconv.Itoa(h.Minor) }

// Get returns the value of the first field with the given name, or "" if there is none.
// The case of ASCII letters is ignored.
func (h *Head) Get(name string) string {
	for v := range h.Values(name) {
		return v
	}
	return ""
}

// Values yields the values of all fields with the given name in the order received. The
// case of ASCII letters is ignored.
func (h *Head) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range h.Fields {
			if sameName(h.Fields[i].Name, name) && !yield(h.Fields[i].Value) {
				return
			}
		}
	}
}

// sameName reports whether a received name, which is ASCII, equals another name, without
// regard to the case of ASCII letters. EqualFold also folds some other letters to ASCII,
// but these have two bytes or more, so the lengths differ.
func sameName(received, name string) bool {
	return len(received) == len(name) && strings.EqualFold(received, name)
}
