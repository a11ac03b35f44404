// Package hello reads the ClientHello that begins a TLS connection: which name
// it asks for, and whether it offers to hide another one (ECH).
//
//	var r hello.Reader
//	for {
//		… more bytes behind seen …
//		h, err := r.Read(seen)
//		if !errors.Is(err, hello.ErrIncomplete) { … }
//	}
//
// It keeps and copies none of the bytes, however they are cut into segments and
// TLS records. It does not read a connection, does not judge names (they are as
// they were sent), and knows nothing of policy.
package hello

import "errors"

// Limit bounds a ClientHello in bytes, the headers of its records included.
const Limit = 64 << 10

// The errors of Read. They are returned as they are.
var (
	// ErrIncomplete means that the bytes may become a ClientHello.
	ErrIncomplete = errors.New("the ClientHello is incomplete")
	// ErrNotHello means that the bytes are no ClientHello, whatever follows.
	ErrNotHello = errors.New("not a ClientHello")
	// ErrTooLarge means that it is more than Limit.
	ErrTooLarge = errors.New("the ClientHello is too large")
)

// Hello is what a ClientHello says. The zero value asks for no name.
type Hello struct {
	// Name is the host_name of the server_name extension (RFC 6066 section 3)
	// as it was sent, "" if there is none: neither in canonical form nor valid.
	Name string
	// ECH means that it offers Encrypted Client Hello (RFC 9849), so that Name
	// may only be the name that it shows. Some clients offer it to every
	// server without having anything to hide.
	ECH bool
}

const (
	recordHeader  = 5 // type, version, length (RFC 8446 section 5.1)
	messageHeader = 4 // type, length (section 4)
	maxRecord     = 1 << 14

	typeChangeCipher = 20
	typeAlert        = 21
	typeHandshake    = 22
	typeClientHello  = 1
	majorVersion     = 3 // of every version of TLS
)

// Begins reports whether a connection that begins with b may become one of TLS,
// and whether that is sure: it begins with a handshake record, or with one that a
// server may pass over before a ClientHello, an alert or a change of cipher. These
// are known by their header, as other protocols have the same first byte. Nothing
// is not sure.
func Begins(b []byte) (begins, sure bool) {
	if len(b) == 0 {
		return true, false
	}
	switch b[0] {
	case typeHandshake:
		return true, true
	case typeAlert, typeChangeCipher:
	default:
		return false, false
	}
	const most = 2 // bytes of an alert
	begins = (len(b) < 2 || b[1] == majorVersion) && (len(b) < 4 || b[3] == 0) && (len(b) < 5 || b[4] <= most)
	return begins, begins && len(b) >= recordHeader
}

// Reader finds the end of a ClientHello, looking at every byte once. The zero
// value is ready. It is not for concurrent use.
type Reader struct {
	at   int // so far the bytes are known to be what they should be
	left int // of the record that begins before at
	got  int // bytes of the message before at
	body int // bytes of the message behind its header, once that is known
}

// Read reads the ClientHello at the beginning of b: all bytes of the connection
// so far, so that what was given before is there again and unchanged. What
// follows the ClientHello is not looked at. After an error the Hello is zero.
func (r *Reader) Read(b []byte) (Hello, error) {
	whole := len(b)
	b = b[:min(whole, Limit)]
	done, err := r.frame(b)
	switch {
	case err != nil:
		return Hello{}, err
	case !done && whole >= Limit:
		return Hello{}, ErrTooLarge
	case !done:
		return Hello{}, ErrIncomplete
	}
	m := message{rest: b, left: messageHeader}
	return m.read()
}

// frame goes on through the records and reports whether the message is complete.
func (r *Reader) frame(b []byte) (done bool, err error) {
	for {
		if r.left == 0 {
			if ok, err := r.record(b); !ok {
				return false, err
			}
		}
		if r.at == len(b) {
			return false, nil
		}
		n := min(r.left, len(b)-r.at)
		if r.got < messageHeader {
			n = 1
			if err := r.header(b[r.at]); err != nil {
				return false, err
			}
		}
		r.at, r.left, r.got = r.at+n, r.left-n, r.got+n
		if r.got >= messageHeader+r.body && r.got >= messageHeader {
			return true, nil
		}
	}
}

// record reads the header of the next record; false without an error means
// that it is incomplete.
func (r *Reader) record(b []byte) (ok bool, err error) {
	h := b[r.at:min(len(b), r.at+recordHeader)]
	if len(h) > 0 && h[0] != typeHandshake || len(h) > 1 && h[1] != majorVersion {
		return false, ErrNotHello
	}
	if len(h) < recordHeader {
		return false, nil
	}
	length := int(h[3])<<8 | int(h[4])
	if length == 0 || length > maxRecord {
		return false, ErrNotHello
	}
	r.at, r.left = r.at+recordHeader, length
	return true, nil
}

// header reads a byte of the message's header.
func (r *Reader) header(c byte) error {
	if r.got == 0 {
		if c != typeClientHello {
			return ErrNotHello
		}
		return nil
	}
	if r.body = r.body<<8 | int(c); r.body > Limit {
		return ErrTooLarge
	}
	return nil
}
