package allowlist

import (
	"cmp"
	"errors"
)

// Cause says more closely than a Reason what failed, where RFC 9209 has an error type
// of its own for that. It is one of a closed set. The zero value, NoCause, leaves the
// type to the reason.
type Cause uint8

// The causes, each with its error type in RFC 9209 section 2.3.
const (
	NoCause             Cause = iota
	CauseUnroutable           // no address of the destination has a route
	CauseTerminated           // the origin ended the connection without an answer
	CauseIncomplete           // the origin ended the connection within the head of its answer
	CauseProtocol             // what the origin sent is no answer of HTTP/1
	CauseAnswerHead           // the head of the answer is larger than the gateway takes
	CauseTransferCoding       // the answer leaves a doubt about where it ends
	CauseUpgrade              // the origin switched to a protocol that nobody had asked for
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

// ProxyError returns the Proxy-Status error type, "" for NoCause.
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

// CauseOf returns the cause of an error: that of the first ReasonError in its chain
// that has one, else NoCause.
func CauseOf(err error) Cause {
	for known := (*ReasonError)(nil); errors.As(err, &known); err = known.Err {
		if known.Cause != NoCause {
			return known.Cause
		}
	}
	return NoCause
}

// DetailOf returns what an error says without its reasons, which a record has
// besides; "" if it says no more.
func DetailOf(err error) string {
	for known := (*ReasonError)(nil); errors.As(err, &known); {
		err = known.Err
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

// ProxyError returns the Proxy-Status error type of a reason with a cause: that of
// the cause, if it has one.
func (r Reason) ProxyError(c Cause) string { return cmp.Or(c.ProxyError(), r.Info().ProxyError) }
