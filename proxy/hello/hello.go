// Package hello reads the ClientHello at the beginning of a TLS connection: the name that
// it asks for, and whether it offers to hide another name (ECH).
//
//	var r hello.Reader
//	for {
//		… append more bytes to seen …
//		h, err := r.Read(seen)
//		if !errors.Is(err, hello.ErrIncomplete) { … }
//	}
//
// It keeps and copies none of the bytes but the name, however they are split into
// segments and TLS records. It does not read from a connection, does not check names
// (they are as they were sent), and does not know the policy.
package hello

import "errors"

// Limit bounds a ClientHello in bytes, the headers of its records included.
const Limit = 64 << 10

// The errors of Read. They are never wrapped.
var (
	// ErrIncomplete means that the bytes may be the beginning of a ClientHello.
	ErrIncomplete = errors.New("the ClientHello is incomplete")
	// ErrNotHello means that the bytes do not begin a valid ClientHello, whatever
	// follows.
	ErrNotHello = errors.New("not a ClientHello")
	// ErrTooLarge means that the ClientHello is larger than Limit.
	ErrTooLarge = errors.New("the ClientHello is too large")
)

// Hello is the content of a ClientHello. The zero value asks for no name.
type Hello struct {
	// Name is the host_name of the server_name extension (RFC 6066 section 3) as it was
	// sent, or "" if there is none. It may be invalid or not in canonical form.
	Name string
	// ECH means that the ClientHello offers Encrypted Client Hello (RFC 9849), so that
	// the encrypted part may have another name than Name. Some clients offer it to every
	// server without hiding anything.
	ECH bool
}

const (
	recordHeader  = 5       // bytes: type, version, length (RFC 8446 section 5.1)
	messageHeader = 4       // bytes: type, length (section 4)
	maxRecord     = 1 << 14 // bytes of a record without its header

	typeChangeCipher = 20
	typeAlert        = 21
	typeHandshake    = 22
	typeClientHello  = 1
	majorVersion     = 3 // the same in every version of TLS
)

// Begins reports whether a connection that begins with b may be TLS, and whether this is
// sure. TLS begins with a handshake record, or with a record that a server may skip
// before a ClientHello: an alert or a change of cipher. A handshake record is recognized
// by its first byte; the others only by their whole header, because other protocols have
// the same first byte. An empty b may be TLS and is not sure.
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

// Reader finds the end of a ClientHello and examines every byte once. The zero value is
// ready to use. It is not safe for concurrent use.
type Reader struct {
	pos         int // number of bytes that have been examined and are valid
	recordLeft  int // bytes after pos that belong to the current record
	messageRead int // bytes of the message before pos, without the headers of records
	messageLen  int // length of the message without its header, as far as the header has been read
}

// Read reads the ClientHello at the beginning of b. b must hold all bytes of the
// connection so far, so it begins with the bytes of the call before. Bytes after the
// ClientHello are ignored. With an error the Hello is zero.
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

// frame reads on through the records and reports whether the message is complete.
func (r *Reader) frame(b []byte) (done bool, err error) {
	for {
		if r.recordLeft == 0 {
			if ok, err := r.record(b); !ok {
				return false, err
			}
		}
		if r.pos == len(b) {
			return false, nil
		}
		n := min(r.recordLeft, len(b)-r.pos)
		if r.messageRead < messageHeader {
			n = 1
			if err := r.header(b[r.pos]); err != nil {
				return false, err
			}
		}
		r.pos, r.recordLeft, r.messageRead = r.pos+n, r.recordLeft-n, r.messageRead+n
		if r.messageRead >= messageHeader+r.messageLen && r.messageRead >= messageHeader {
			return true, nil
		}
	}
}

// record reads the header of the next record. ok is false without an error if the header
// is incomplete.
func (r *Reader) record(b []byte) (ok bool, err error) {
	h := b[r.pos:min(len(b), r.pos+recordHeader)]
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
	r.pos, r.recordLeft = r.pos+recordHeader, length
	return true, nil
}

// header reads one byte of the header of the message.
func (r *Reader) header(c byte) error {
	if r.messageRead == 0 {
		if c != typeClientHello {
			return ErrNotHello
		}
		return nil
	}
	if r.messageLen = r.messageLen<<8 | int(c); r.messageLen > Limit {
		return ErrTooLarge
	}
	return nil
}
