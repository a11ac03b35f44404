package allowlist

import "errors"

// Reason says why a request was not served. The set of reasons is closed, and one table
// has the status, the RFC 9209 error and the text of each reason, so that all doors
// answer alike. The zero value is NoReason, the reason of allowed requests.
type Reason uint8

// The reasons, in the order of the table in docs/reasons.md.
const (
	NoReason Reason = iota

	MalformedRequestLine
	MalformedTarget
	MalformedPort
	MalformedHeader
	MissingHost
	DuplicateHost
	AuthorityMismatch
	ConnectOnly
	HeadTooLarge
	UnsupportedVersion
	HeadTimeout

	IdentityMissing
	IdentityInvalid
	IdentityExpired
	IdentityUntrusted

	IdentityUnknown
	IdentitySourceNotAccepted
	QuarantinedIdentity
	DeniedByRule
	NotOnAllowlist
	PortNotAllowed
	MethodNotAllowed
	UpgradeNotAllowed
	PathNotAllowed
	RuleExpired
	IPNotOnAllowlist
	TypeNotAllowed // DNS only
	SpecialName    // DNS only
	ResolvedAddressDenied

	SNIMismatch
	SNIMissing
	NotTLS
	ECHRefused

	RateLimited
	TunnelLimit
	UploadLimit
	NameBudget

	ResolveFailed
	ResolveTimeout
	DialFailed
	DialRefused
	DialTimeout
	ResponseFailed
	ResponseTimeout
	CutOff // the gateway ended the request after it had been sent to the origin

	PolicyUnavailable
	AuditUnavailable
	Busy
	Draining
	InternalError

	TLSHandshakeFailed
	ClientGone

	reasonCount // not a reason; the number of constants before it
)

// ReasonInfo is the row of a reason in the table.
type ReasonInfo struct {
	Token string // the word for the reason in records and on the wire
	// Status is the HTTP status, or 0 if no answer can be sent.
	Status int
	// ProxyError is the Proxy-Status error type (RFC 9209 section 2.3), or "" if no
	// answer can be sent.
	ProxyError string
	// Text is for people. With the statuses 403, 502 and 504 it follows the destination
	// in a sentence, and with 403 the identity follows the text. With all other statuses,
	// and without one, it is a sentence of its own.
	Text string
}

// Reasons returns all reasons but NoReason in the order of the table.
func Reasons() []Reason {
	all := make([]Reason, 0, reasonCount-1)
	for r := MalformedRequestLine; r < reasonCount; r++ {
		all = append(all, r)
	}
	return all
}

// String returns the token of the reason, or "" for NoReason.
func (r Reason) String() string { return r.Info().Token }

// Info returns the row of the reason. NoReason, and any value outside the set,
// has the row of an internal error without a token.
func (r Reason) Info() ReasonInfo {
	const (
		requestError  = "http_request_error"
		requestDenied = "http_request_denied"
		limitReached  = "connection_limit_reached"
	)
	switch r {
	case MalformedRequestLine:
		return ReasonInfo{"malformed-request-line", 400, requestError, "the request line is malformed"}
	case MalformedTarget:
		return ReasonInfo{"malformed-target", 400, requestError, "the target is malformed: want HOST:PORT, or http://HOST/ for a plain request"}
	case MalformedPort:
		return ReasonInfo{"malformed-port", 400, requestError, "the port is malformed: want 1 to 65535"}
	case MalformedHeader:
		return ReasonInfo{"malformed-header", 400, requestError, "a header field is malformed"}
	case MissingHost:
		return ReasonInfo{"missing-host", 400, requestError, "the Host field is missing"}
	case DuplicateHost:
		return ReasonInfo{"duplicate-host", 400, requestError, "there is more than one Host field"}
	case AuthorityMismatch:
		return ReasonInfo{"authority-mismatch", 400, requestError, "the Host field differs from the target"}
	case ConnectOnly:
		return ReasonInfo{"connect-only", 405, requestError, "the method is not supported"}
	case HeadTooLarge:
		return ReasonInfo{"head-too-large", 431, requestError, "the request head is too large"}
	case UnsupportedVersion:
		return ReasonInfo{"unsupported-version", 505, requestError, "the HTTP version is not supported: use HTTP/1.1 or HTTP/1.0"}
	case HeadTimeout:
		return ReasonInfo{"head-timeout", 408, requestError, "the request head came too slowly"}

	case IdentityMissing:
		return ReasonInfo{"identity-missing", 407, requestDenied, "no client certificate"}
	case IdentityInvalid:
		return ReasonInfo{"identity-invalid", 407, requestDenied, "the client certificate is not an X.509-SVID"}
	case IdentityExpired:
		return ReasonInfo{"identity-expired", 407, requestDenied, "the client certificate expired"}
	case IdentityUntrusted:
		return ReasonInfo{"identity-untrusted", 407, requestDenied, "the client certificate is not trusted"}

	case IdentityUnknown:
		return ReasonInfo{"identity-unknown", 403, requestDenied, "is refused: the policy has no entry for"}
	case IdentitySourceNotAccepted:
		return ReasonInfo{"identity-source-not-accepted", 403, requestDenied, "is refused: the policy does not accept this kind of proof for"}
	case QuarantinedIdentity:
		return ReasonInfo{"quarantined", 403, requestDenied, "is closed to the quarantined"}
	case DeniedByRule:
		return ReasonInfo{"denied-by-rule", 403, requestDenied, "is denied by a rule for"}
	case NotOnAllowlist:
		return ReasonInfo{"not-on-allowlist", 403, requestDenied, "is not allowed for"}
	case PortNotAllowed:
		return ReasonInfo{"port-not-allowed", 403, requestDenied, "is not an allowed port for"}
	case MethodNotAllowed:
		return ReasonInfo{"method-not-allowed", 403, requestDenied, "is allowed only with other methods for"}
	case UpgradeNotAllowed:
		return ReasonInfo{"upgrade-not-allowed", 403, requestDenied, "is allowed only without an upgrade to another protocol for"}
	case PathNotAllowed:
		return ReasonInfo{"path-not-allowed", 403, requestDenied, "is allowed only with other paths for"}
	case RuleExpired:
		return ReasonInfo{"rule-expired", 403, requestDenied, "was allowed by a rule that has expired for"}
	case IPNotOnAllowlist:
		return ReasonInfo{"ip-not-on-allowlist", 403, requestDenied, "is an address that is not allowed for"}
	case TypeNotAllowed:
		return ReasonInfo{"type-not-allowed", 403, requestDenied, "is allowed only with other query types for"}
	case SpecialName:
		return ReasonInfo{"special-name", 403, requestDenied, "is a special name that is not looked up for"}
	case ResolvedAddressDenied:
		return ReasonInfo{"resolved-address-denied", 403, "destination_ip_prohibited", "has no address that is allowed for"}

	case SNIMismatch:
		return ReasonInfo{Token: "sni-mismatch", Text: "the ClientHello asks for another name"}
	case SNIMissing:
		return ReasonInfo{Token: "sni-missing", Text: "the ClientHello asks for no name"}
	case NotTLS:
		return ReasonInfo{"not-tls", 403, "tls_protocol_error", "is allowed only over TLS for"}
	case ECHRefused:
		return ReasonInfo{Token: "ech-refused", Text: "the ClientHello offers Encrypted Client Hello"}

	case RateLimited:
		return ReasonInfo{"rate-limited", 429, limitReached, "too many requests in a short time"}
	case TunnelLimit:
		return ReasonInfo{"tunnel-limit", 429, limitReached, "too many tunnels and plain requests are open"}
	case UploadLimit:
		return ReasonInfo{"upload-limit", 429, limitReached, "too many bytes were sent within the hour"}
	case NameBudget:
		return ReasonInfo{"name-budget", 429, limitReached, "too many names or questions below wildcards in a minute"}

	case ResolveFailed:
		return ReasonInfo{"resolve-failed", 502, "dns_error", "cannot be resolved"}
	case ResolveTimeout:
		return ReasonInfo{"resolve-timeout", 504, "dns_timeout", "was not resolved in time"}
	case DialFailed:
		return ReasonInfo{"dial-failed", 502, "destination_unavailable", "cannot be reached"}
	case DialRefused:
		return ReasonInfo{"dial-refused", 502, "connection_refused", "refused the connection"}
	case DialTimeout:
		return ReasonInfo{"dial-timeout", 504, "connection_timeout", "did not answer in time"}

	case ResponseFailed:
		return ReasonInfo{"response-failed", 502, "http_response_incomplete", "gave no valid HTTP answer"}
	case ResponseTimeout:
		return ReasonInfo{"response-timeout", 504, "http_response_timeout", "gave no HTTP answer in time"}

	case CutOff:
		return ReasonInfo{"cut-off", 502, "connection_terminated", "was cut off by the gateway after the request had been sent on"}

	case PolicyUnavailable:
		return ReasonInfo{"policy-unavailable", 503, "proxy_configuration_error", "no policy is loaded"}
	case AuditUnavailable:
		return ReasonInfo{"audit-unavailable", 503, "proxy_configuration_error", "the decision cannot be recorded"}
	case Busy:
		return ReasonInfo{"busy", 503, limitReached, "the gateway cannot take more connections"}
	case Draining:
		return ReasonInfo{"draining", 503, limitReached, "the gateway is shutting down"}
	case InternalError:
		return ReasonInfo{"internal-error", 500, "proxy_internal_error", "the gateway failed"}

	case TLSHandshakeFailed:
		return ReasonInfo{Token: "tls-handshake-failed", Text: "the TLS handshake failed"}
	case ClientGone:
		return ReasonInfo{Token: "client-gone", Text: "the client left"}

	case NoReason, reasonCount:
	}
	return ReasonInfo{Status: 500, ProxyError: "proxy_internal_error", Text: "the gateway failed"}
}

// Verdict returns the verdict of a request that is not served for the reason: Fail if
// something did not work or the state of the gateway is the cause, and Deny otherwise.
// The limit of a source address is an exception: it has the reason of an identity's
// limit, and the verdict of the request is Fail.
func (r Reason) Verdict() Verdict {
	switch r { //nolint:exhaustive // everything else is a denial
	case ResolveFailed, ResolveTimeout, DialFailed, DialRefused, DialTimeout, ResponseFailed, ResponseTimeout, CutOff,
		PolicyUnavailable, AuditUnavailable, Busy, Draining, InternalError,
		TLSHandshakeFailed, ClientGone:
		return Fail
	}
	return Deny
}

// observable reports whether observe mode lets a request through that the policy would
// deny for this reason.
func (r Reason) observable() bool {
	switch r { //nolint:exhaustive // a short list out of a long set; the rest is enforced always
	case NotOnAllowlist, PortNotAllowed, UpgradeNotAllowed, MethodNotAllowed, PathNotAllowed, RuleExpired, IPNotOnAllowlist:
		return true
	}
	return false
}

// ReasonError is an error with the reason for which a request that was allowed could not
// be served. If Reason is NoReason, as in the zero value, the error counts as
// InternalError, because NoReason would mean that the request was served.
type ReasonError struct {
	Reason Reason
	Cause  Cause // NoCause if there is no more exact cause than the reason
	Err    error // the error behind it, for the gateway's own log and the record; may be nil
}

// Error returns the reason and the text of Err. The text is for the gateway's own log
// only, because it may name internal addresses and servers.
func (e *ReasonError) Error() string {
	reason := ReasonOf(e).String()
	if e.Err == nil {
		return reason
	}
	return reason + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *ReasonError) Unwrap() error { return e.Err }

// ReasonOf returns the reason of the first ReasonError in the chain of an error. It
// returns InternalError if there is no ReasonError or its Reason is NoReason, and
// NoReason only for a nil error.
func ReasonOf(err error) Reason {
	if err == nil {
		return NoReason
	}
	if known, ok := errors.AsType[*ReasonError](err); ok && known.Reason != NoReason {
		return known.Reason
	}
	return InternalError
}
