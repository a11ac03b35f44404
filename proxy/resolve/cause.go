package resolve

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// Cause says how a server failed, in metrics and in the log.
type Cause uint8

// The causes: it does not answer; it cannot be reached, or refuses the connection; its
// certificate is not valid for its name; TLS with it fails otherwise; it closes the
// connection; it answers with SERVFAIL, with SERVFAIL because of DNSSEC, with REFUSED,
// or with another code; it refers to other servers, or does not recurse; its answer
// cannot be used; anything else.
const (
	CauseTimeout Cause = iota
	CauseUnreachable
	CauseCertificate
	CauseTLS
	CauseClosed
	CauseServFail
	CauseBogus
	CauseRefused
	CauseCode
	CauseNotRecursive
	CauseMalformed
	CauseOther

	causeCount // the number of causes; not a cause itself
)

// String returns the word for metrics and the log.
func (c Cause) String() string {
	switch c {
	case CauseTimeout:
		return "timeout"
	case CauseUnreachable:
		return "unreachable"
	case CauseCertificate:
		return "certificate"
	case CauseTLS:
		return "tls"
	case CauseClosed:
		return "closed"
	case CauseServFail:
		return "servfail"
	case CauseBogus:
		return "bogus"
	case CauseRefused:
		return "refused"
	case CauseCode:
		return "code"
	case CauseNotRecursive:
		return "not-recursive"
	case CauseMalformed:
		return "malformed"
	case CauseOther, causeCount:
	}
	return "other"
}

// Response codes that have a cause of their own.
const (
	codeServFail = 2
	codeRefused  = 5
)

// causeOf returns the cause of an error of asking a server, and describes the error in
// printable text of bounded length.
func causeOf(err error) (cause Cause, text string) {
	if said, ok := errors.AsType[*wire.ServerError](err); ok {
		switch {
		case said.Code == codeServFail && said.IsBogus():
			return CauseBogus, visible(said.Error())
		case said.Code == codeServFail:
			return CauseServFail, visible(said.Error())
		case said.Code == codeRefused:
			return CauseRefused, visible(said.Error())
		}
		return CauseCode, visible(said.Error())
	}
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return CauseCertificate, visible("certificate: " + bad.Err.Error())
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return CauseTimeout, "no answer in time"
	case errors.Is(err, wire.ErrReferral), errors.Is(err, errLame):
		return CauseNotRecursive, visible(err.Error())
	case wire.Answered(err), errors.Is(err, wire.ErrStray), errors.Is(err, wire.ErrCase):
		return CauseMalformed, visible(err.Error())
	case errors.Is(err, errStreamEnded), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return CauseClosed, errStreamEnded.Error()
	}
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		switch number { //nolint:exhaustive // what the network says
		case syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES, syscall.EPERM, syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EADDRNOTAVAIL:
			return CauseUnreachable, number.Error()
		}
		return CauseOther, visible(number.Error())
	}
	if isTLS(err) {
		return CauseTLS, visible(err.Error())
	}
	return CauseOther, visible(err.Error())
}

// isTLS reports whether an error comes from the TLS library.
func isTLS(err error) bool {
	_, record := errors.AsType[tls.RecordHeaderError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	operation, ok := errors.AsType[*net.OpError](err)
	return record || alert || ok && (operation.Op == "remote error" || operation.Op == "local error")
}

// maxCauseText bounds the text about one server, in bytes.
const maxCauseText = 150

// visible makes a text printable and bounds it.
func visible(text string) string {
	text = allowlist.Visible(text[:min(len(text), maxCauseText)])
	return text[:min(len(text), maxCauseText)]
}
