// Package head reads the heads of HTTP/1.x requests, strictly.
//
// A head is everything from the method to the empty line. [NewReader] reads
// one head after the other from a connection and leaves what follows
// untouched; [Parse] judges one head that is already in memory:
//
//	r := head.NewReader(conn, 0)
//	defer r.Release()
//	h, err := r.ReadHead()
//	if err != nil { … errors.Is(err, head.ErrTooLarge) … }
//	early := r.Buffered() // what the client sent behind the head
//
// There is one way to write each thing and everything else is refused, since a
// proxy is bypassed where two parsers read one request in two ways: no bare LF
// or CR, no folded lines, no space before a colon, no second Host. The package
// takes the request apart and stops there: it does not look into the target,
// does not compare it with Host, reads no body ([Head.Body] says where one ends)
// and knows no policy. Which
// methods and targets are fine is the caller's to say.
package head

import (
	"errors"
	"iter"
	"strings"
)

const (
	// DefaultLimit is the size of the largest head, in bytes, for a Reader
	// that was made with limit 0.
	DefaultLimit = 64 << 10

	// MaxFields is the largest number of fields in a head. Browsers send
	// about twenty; the bound keeps a head of tiny fields from costing many
	// times its size in memory.
	MaxFields = 256

	// MaxMembers is the largest number of members that the fields Connection
	// and Trailer of a head list together. They name fields, so that whoever
	// forwards the head compares them with all others.
	MaxMembers = 256
)

// Why a head was refused. The errors of this package wrap one of them and say what is
// wrong in which line; no text of the request is part of theirs, and a byte that may
// not stand where it stands is named by its number. Everything else
// that ReadHead returns came from the connection.
var (
	// ErrRequestLine is a request line that is not
	// "token SP target SP HTTP-version CRLF" (RFC 9112 section 3).
	ErrRequestLine = errors.New("malformed request line")
	// ErrVersion is a well-formed HTTP version other than 1.0 and 1.1.
	ErrVersion = errors.New("unsupported HTTP version")
	// ErrHeader is a field line that is not "token:OWS value OWS CRLF" (RFC
	// 9112 section 5), or bytes behind the head given to Parse.
	ErrHeader = errors.New("malformed header")
	// ErrTooLarge is a head with more bytes than the limit, more fields than
	// MaxFields or more members than MaxMembers.
	ErrTooLarge = errors.New("head too large")
	// ErrMissingHost is an HTTP/1.1 request without a Host field (RFC 9112
	// section 3.2).
	ErrMissingHost = errors.New("missing Host field")
	// ErrDuplicateHost is a request with more than one Host field, whatever
	// its version.
	ErrDuplicateHost = errors.New("duplicate Host field")
)

// A Field is one field line, as received but for the white space around the
// value. The name is a token, its case is the sender's. The value holds no
// control byte but tab; bytes from 0x80 up (obs-text) may be in it.
type Field struct{ Name, Value string }

// A Head is the head of one request. All its strings are parts of one copy of
// the received bytes, so it stays valid when the Reader goes on. It is never
// changed after it was returned and so may be read concurrently.
type Head struct {
	Method  string  // a token, case-sensitive, as sent; never empty
	Target  string  // bytes 0x21 to 0x7e and from 0x80 up, as sent; never empty
	Minor   int     // 0 or 1, the x of HTTP/1.x
	Host    string  // the value of the Host field; "" also if it is absent
	HasHost bool    // whether there was a Host field; always true for HTTP/1.1
	Fields  []Field // all fields, Host among them, in the order received
}

// Get returns the value of the first field of that name, or "" if there is
// none. Case is ignored in ASCII letters only.
func (h *Head) Get(name string) string {
	for v := range h.Values(name) {
		return v
	}
	return ""
}

// Values yields the values of all fields of that name in the order received.
// Case is ignored in ASCII letters only.
func (h *Head) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range h.Fields {
			if sameName(h.Fields[i].Name, name) && !yield(h.Fields[i].Value) {
				return
			}
		}
	}
}

// sameName compares a received name, which is ASCII, with any other. At equal
// length in bytes the Unicode folds of EqualFold cannot match: each of them
// takes two bytes or more for one letter.
func sameName(received, name string) bool {
	return len(received) == len(name) && strings.EqualFold(received, name)
}
