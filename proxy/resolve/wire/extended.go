package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// maxExtraText bounds the text of an extended error, which the server chooses.
const maxExtraText = 80

// Extended is an extended error (RFC 8914), with which a server explains why it has no
// answer. The zero value means that there is none.
type Extended struct {
	Given bool
	Code  uint16
	Text  string // text of the server: any bytes, at most maxExtraText
}

// ServerError is an error response of a server.
type ServerError struct {
	Code     int
	Extended Extended
}

// Error returns the code and the extended error as printable text.
func (e *ServerError) Error() string {
	text := RCodeText(e.Code)
	if !e.Extended.Given {
		return text
	}
	if name, ok := dns.ExtendedErrorCodeToString[e.Extended.Code]; ok {
		text += ", " + name
	}
	text = fmt.Sprintf("%s (EDE %d)", text, e.Extended.Code)
	if e.Extended.Text != "" {
		text += fmt.Sprintf(": %q", allowlist.Visible(e.Extended.Text))
	}
	return text
}

// RCodeText returns the word for a response code, such as SERVFAIL.
func RCodeText(code int) string {
	if name, ok := dns.RcodeToString[code]; ok {
		return name
	}
	return fmt.Sprintf("code %d", code)
}

// IsBogus reports whether the server has found that the answer does not pass DNSSEC
// validation.
func (e *ServerError) IsBogus() bool { return e.Extended.isBogus() }

// informativeness ranks the extended errors of one response by how much they say: a
// server may send several, and "other" among the first.
func (e Extended) informativeness() int {
	switch {
	case !e.Given:
		return 0
	case e.Code == dns.ExtendedErrorCodeOther:
		return 1
	case e.isBogus():
		return 3
	}
	return 2
}

// isBogus reports whether the code is one of a failed DNSSEC validation.
func (e Extended) isBogus() bool {
	switch e.Code {
	case dns.ExtendedErrorCodeDNSSECIndeterminate, dns.ExtendedErrorCodeDNSBogus, dns.ExtendedErrorCodeSignatureExpired,
		dns.ExtendedErrorCodeSignatureNotYetValid, dns.ExtendedErrorCodeDNSKEYMissing, dns.ExtendedErrorCodeRRSIGsMissing,
		dns.ExtendedErrorCodeNoZoneKeyBitSet, dns.ExtendedErrorCodeNSECMissing:
		return e.Given
	}
	return false
}

// WithoutEDNS reports whether an error may be about the OPT of the query, so that the
// server should be asked once more without it (RFC 6891 section 7).
func WithoutEDNS(err error) bool {
	said, ok := errors.AsType[*ServerError](err)
	return ok && (said.Code == dns.RcodeFormatError || said.Code == dns.RcodeNotImplemented || said.Code == dns.RcodeBadVers)
}

// refusal returns the error for a response whose code is an error, or that has no
// question. It reads the extended error as far as possible, because a failing server may
// not write a well-formed message. Without a question nothing tells which name does not
// exist: NXDOMAIN is then no answer, and a response without an error does not belong to
// the query.
func (p *parser) refusal(code int) error {
	records := 0
	for i := headLen / 2; i < headLen; i += 2 {
		records += int(binary.BigEndian.Uint16(p.msg[i:]))
	}
	for range records {
		_, h, err := p.next()
		if err != nil {
			break
		}
		if h.typ == dns.TypeOPT {
			p.options(h)
		}
		p.off += h.size
	}
	switch code |= p.extended << 4; code {
	case NoError:
		return ErrStray
	case NXDomain:
		return fmt.Errorf("%w: NXDOMAIN without a question", ErrMalformed)
	}
	return &ServerError{Code: code, Extended: p.ede}
}

// options reads an OPT: the upper bits of the response code, and that one of its
// extended errors which says the most.
func (p *parser) options(h header) {
	p.extended = int(h.ttl >> 24)
	for rest := p.msg[p.off : p.off+h.size]; len(rest) >= 4; {
		option, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if rest = rest[4:]; size > len(rest) {
			return
		}
		if option == dns.EDNS0EDE && size >= 2 {
			text := rest[2:size]
			if e := (Extended{Given: true, Code: binary.BigEndian.Uint16(rest)}); e.informativeness() > p.ede.informativeness() {
				e.Text = string(text[:min(len(text), maxExtraText)])
				p.ede = e
			}
		}
		rest = rest[size:]
	}
}
