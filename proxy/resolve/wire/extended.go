package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// maxExtraText bounds the text of an extended error, which its server chooses.
const maxExtraText = 80

// Extended is an extended error (RFC 8914) by which a server says why it has no
// answer. The zero value is none.
type Extended struct {
	Given bool
	Code  uint16
	Text  string // of the server: any bytes, at most maxExtraText
}

// ServerError is a response code by which a server says that it has no answer.
type ServerError struct {
	Code     int
	Extended Extended
}

// Error names the code and the extended error, in printable text.
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

// IsBogus reports whether the server says that the answer is not what DNSSEC proves
// it to be.
func (e *ServerError) IsBogus() bool { return e.Extended.isBogus() }

// telling returns how much an extended error says, beside others of the same server:
// servers give several, and "other" among the first.
func (e Extended) telling() int {
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

func (e Extended) isBogus() bool {
	switch e.Code {
	case dns.ExtendedErrorCodeDNSSECIndeterminate, dns.ExtendedErrorCodeDNSBogus, dns.ExtendedErrorCodeSignatureExpired,
		dns.ExtendedErrorCodeSignatureNotYetValid, dns.ExtendedErrorCodeDNSKEYMissing, dns.ExtendedErrorCodeRRSIGsMissing,
		dns.ExtendedErrorCodeNoZoneKeyBitSet, dns.ExtendedErrorCodeNSECMissing:
		return e.Given
	}
	return false
}

// WithoutEDNS reports whether an error may be about the OPT of the query, so that
// the server is to be asked once more without it (RFC 6891 section 7).
func WithoutEDNS(err error) bool {
	said, ok := errors.AsType[*ServerError](err)
	return ok && (said.Code == dns.RcodeFormatError || said.Code == dns.RcodeNotImplemented || said.Code == dns.RcodeBadVers)
}

// refusal returns the error of a response whose code is one, or that has no question.
// The extended error is what can be read of it: a server that fails may not write a
// proper message. Without a question nothing says which name does not exist, so that
// NXDOMAIN is no answer, and a response without an error is not the one to the query.
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
			if e := (Extended{Given: true, Code: binary.BigEndian.Uint16(rest)}); e.telling() > p.ede.telling() {
				e.Text = string(text[:min(len(text), maxExtraText)])
				p.ede = e
			}
		}
		rest = rest[size:]
	}
}
