package allowlist

import (
	"cmp"
	"errors"
)

// Cause says more exactly than a Reason what failed, if RFC 9209 has a separate error
// type for it. The set of causes is closed. The zero value, NoCause, means that the
// reason determines the error type.
type Cause uint8

// The causes, each with its error type in RFC 9209 section 2.3.
const (
	NoCause             Cause = iota
	CauseUnroutable           // no address of the destination has a route
	CauseTerminated           // the origin ended the connection without an answer
	CauseIncomplete           // the origin ended the connection within the head of its answer
	CauseProtocol             // the origin sent bytes that are not an HTTP/1 answer
	CauseAnswerHead           // the head of the answer is larger than the gateway accepts
	CauseTransferCoding       // the answer does not say unambiguously where it ends
	CauseUpgrade              // the origin switched to a protocol that the request had not asked for
	causeCount                // not a cause
)

// Causes returns all causes but NoCause.
func Causes() []Cause {
	all := make([]Cause, 0, causeCount-1)
	for c := NoCause + 1; c < causeCount; c++ {
		all = append(all, c)
	}
	return all
}

// ProxyError returns the Proxy-Status error type of the cause, or "" for NoCause.
func (c Cause) ProxyError() string {
	switch c {
	case CauseUnroutable:
		return "destination_ip_unroutable"
	case CauseTerminated:
		return "connection_terminated"
	case CauseIncomplete:
		return "http_response_incomplete"
	case CauseProtocol:
		return "http_protocol_error"
	case CauseAnswerHead:
		return "http_response_header_section_size"
	case CauseTransferCoding:
		return "http_response_transfer_coding"
	case CauseUpgrade:
		return "http_upgrade_failed"
	case NoCause, causeCount:
	}
	return ""
}

// CauseOf returns the cause of the first ReasonError with a cause in the chain of an
// error, or NoCause if there is none.
func CauseOf(err error) Cause {
	for known := (*ReasonError)(nil); errors.As(err, &known); err = known.Err {
		if known.Cause != NoCause {
			return known.Cause
		}
	}
	return NoCause
}

// DetailOf returns the text of an error behind the last ReasonError in its chain, since a
// record has the reason in another field. It is "" if there is no such error.
func DetailOf(err error) string {
	for known := (*ReasonError)(nil); errors.As(err, &known); {
		err = known.Err
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

// ProxyError returns the Proxy-Status error type of the cause c, or that of the reason if
// c is NoCause.
func (r Reason) ProxyError(c Cause) string { return cmp.Or(c.ProxyError(), r.Info().ProxyError) }
