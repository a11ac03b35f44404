package dns

import "github.com/exeat-dev/exeat/allowlist"

// shape is the form of an answer without records of the name.
type shape uint8

const (
	silence    shape = iota // nothing is sent
	nameError               // NXDOMAIN with SOA
	noData                  // NOERROR with SOA
	refused                 // REFUSED
	failed                  // SERVFAIL
	formError               // FORMERR
	notImpl                 // NOTIMP
	badVersion              // BADVERS
)

// code returns the response code of an answer of this form.
func (s shape) code() int {
	switch s {
	case nameError:
		return codeNXDomain
	case refused:
		return codeRefused
	case failed:
		return codeServFail
	case formError:
		return codeFormErr
	case notImpl:
		return codeNotImp
	case badVersion:
		return codeBadVers
	case noData, silence:
	}
	return codeNoError
}

// Extended errors that explain an answer (RFC 8914 section 4).
const (
	edeOther        = 0
	edeStale        = 3
	edeNotReady     = 14
	edeBlocked      = 15
	edeProhibited   = 18
	edeStaleNX      = 19
	edeUnreachable  = 22
	edeNetworkError = 23
)

// form returns the form of the answer that refuses a query, and its extended error.
func (r *ruling) form(from *transport, kind kind, q *query) (form shape, extended uint16) {
	reason := r.reason
	switch {
	case reason == allowlist.NoReason: // the decision was only observed
		reason = r.decision.WouldReason
	case from.isDatagram() && (reason == allowlist.RateLimited || r.lookupsFull): // the only measure against floods
		return silence, edeOther
	}
	form, extended = answerTo(reason)
	if (reason == allowlist.ResolveFailed || reason == allowlist.ResolveTimeout) && r.failure.HasExtended {
		extended = r.failure.Extended
	}
	switch {
	case kind == transfer:
		return refused, edeProhibited
	case r.aliasReason != allowlist.NoReason: // the queried name itself is allowed, and exists
		return noData, edeBlocked
	case form == nameError && (r.decision.Above || q.isRoot()):
		return noData, extended
	}
	return form, extended
}

// answerTo is the only table from reasons to the answers that clients see. A reason
// that no query can have is answered as a fault of the gateway.
func answerTo(reason allowlist.Reason) (s shape, extended uint16) {
	switch reason {
	case allowlist.MalformedTarget, allowlist.IdentityUnknown, allowlist.IdentitySourceNotAccepted,
		allowlist.QuarantinedIdentity, allowlist.DeniedByRule, allowlist.NotOnAllowlist, allowlist.RuleExpired:
		return nameError, edeBlocked
	case allowlist.SpecialName:
		return nameError, edeBlocked
	case allowlist.TypeNotAllowed, allowlist.ResolvedAddressDenied:
		return noData, edeBlocked
	case allowlist.IdentityMissing, allowlist.IdentityInvalid, allowlist.IdentityExpired, allowlist.IdentityUntrusted,
		allowlist.RateLimited, allowlist.Busy, allowlist.Draining:
		return refused, edeProhibited
	case allowlist.NameBudget: // a stub resolver takes SERVFAIL for a failure of this name, not of the server
		return failed, edeProhibited
	case allowlist.PolicyUnavailable:
		return failed, edeNotReady
	case allowlist.ResolveTimeout:
		return failed, edeUnreachable
	case allowlist.ResolveFailed:
		return failed, edeNetworkError
	case allowlist.MalformedHeader:
		return formError, edeOther
	case allowlist.MethodNotAllowed: // the opcode
		return notImpl, edeProhibited
	case allowlist.UnsupportedVersion:
		return badVersion, edeOther
	case allowlist.ClientGone:
		return silence, edeOther
	case allowlist.NoReason, allowlist.MalformedRequestLine, allowlist.MalformedPort, allowlist.MissingHost,
		allowlist.DuplicateHost, allowlist.AuthorityMismatch, allowlist.ConnectOnly, allowlist.HeadTooLarge,
		allowlist.HeadTimeout, allowlist.PortNotAllowed, allowlist.PathNotAllowed,
		allowlist.IPNotOnAllowlist, allowlist.UpgradeNotAllowed, allowlist.DialFailed, allowlist.DialRefused, allowlist.DialTimeout,
		allowlist.ResponseFailed, allowlist.ResponseTimeout, allowlist.CutOff, allowlist.AuditUnavailable,
		allowlist.SNIMismatch, allowlist.SNIMissing, allowlist.NotTLS, allowlist.ECHRefused,
		allowlist.TunnelLimit, allowlist.UploadLimit,
		allowlist.InternalError, allowlist.TLSHandshakeFailed:
	}
	return failed, edeOther
}
