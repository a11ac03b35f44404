package ocsf

import (
	"slices"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Classes. class_uid / 1000 is the category_uid.
const (
	entityManagement = 3004
	networkActivity  = 4001
	httpActivity     = 4002
	dnsActivity      = 4003
)

// Values of activity_id of the other classes; method returns those of HTTP Activity.
const (
	activityUpdate = 3 // Entity Management
	activityFail   = 4 // Network Activity

	activityQuery   = 1 // DNS Activity: no answer was sent
	activityTraffic = 6 // DNS Activity: the query and its answer
)

// other is the value of a *_id field whose meaning is in the text field beside it.
const other = 99

// Values of severity_id.
const (
	informational = 1
	low           = 2
	medium        = 3
)

// Values of status_id. 0 means unknown and is left out.
const (
	statusSuccess = 1
	statusFailure = 2
)

// Values of action_id and disposition_id.
const (
	actionUnknown  = 0
	actionAllowed  = 1
	actionDenied   = 2
	actionObserved = 3

	dispositionAllowed       = 1
	dispositionBlocked       = 2
	dispositionLogged        = 17
	dispositionCount         = 20
	dispositionAccessRevoked = 24
	dispositionError         = 27
)

const (
	entityPolicy = 5 // type_id of a managed entity
	outbound     = 2 // direction_id
	tcp          = "tcp"
	udp          = "udp"
)

// method returns the activity_id of HTTP Activity, and its caption.
func method(m string) (id int, caption string) {
	switch m {
	case "":
		return 0, "Unknown"
	case "CONNECT":
		return 1, "Connect"
	case "DELETE":
		return 2, "Delete"
	case "GET":
		return 3, "Get"
	case "HEAD":
		return 4, "Head"
	case "OPTIONS":
		return 5, "Options"
	case "POST":
		return 6, "Post"
	case "PUT":
		return 7, "Put"
	case "TRACE":
		return 8, "Trace"
	case "PATCH":
		return 9, "Patch"
	}
	return other, "Other"
}

// responseCode returns the rcode_id of a DNS response, and its caption.
func responseCode(code string) (id int, caption string) {
	switch code {
	case "NOERROR":
		return 0, "NoError"
	case "FORMERR":
		return 1, "FormError"
	case "SERVFAIL":
		return 2, "ServError"
	case "NXDOMAIN":
		return 3, "NXDomain"
	case "NOTIMP":
		return 4, "NotImp"
	case "REFUSED":
		return 5, "Refused"
	case "BADVERS":
		return 16, "BADSIG_VERS"
	}
	return other, code
}

// control returns action_id and disposition_id.
func control(r *audit.Record) (action, disposition int) {
	if revoked(r) {
		return actionDenied, dispositionAccessRevoked
	}
	if r.Merged != nil && slices.ContainsFunc(r.Merged.Counts, notDenied) {
		return actionUnknown, dispositionCount
	}
	switch r.Verdict {
	case allowlist.Allow:
		return actionAllowed, dispositionAllowed
	case allowlist.Observe:
		return actionObserved, dispositionLogged
	case allowlist.Fail:
		if r.Policy == "" || r.LetNothingOut() { // it failed before the policy decided, or independent of the decision
			return actionUnknown, dispositionError
		}
		return actionAllowed, dispositionError // the policy allowed it, and it failed
	case allowlist.Deny:
	}
	return actionDenied, dispositionBlocked
}

func notDenied(c audit.Count) bool { return c.Verdict != allowlist.Deny }

// revoked reports whether the record is the end of a tunnel that policy, quarantine or
// identity no longer allow.
func revoked(r *audit.Record) bool {
	if r.Event != audit.EventTunnelClose {
		return false
	}
	return r.CloseReason == tunnel.Denied || r.CloseReason == tunnel.Revoked || r.CloseReason == tunnel.Quarantined
}

// outcome returns the status_id of a decision, which says whether the caller got its
// tunnel.
func outcome(r *audit.Record) int {
	if r.Verdict == allowlist.Allow || r.Verdict == allowlist.Observe {
		return statusSuccess
	}
	return statusFailure
}

// severity returns medium if a tunnel was revoked, low if something was refused or
// failed, and informational otherwise.
func severity(r *audit.Record) int {
	switch {
	case revoked(r), r.Reason == allowlist.QuarantinedIdentity:
		return medium
	case r.Event == audit.EventHandshake, r.Event == audit.EventSummary,
		(r.Event == audit.EventDecision || r.Event == audit.EventCollapsed) && outcome(r) == statusFailure,
		r.Event == audit.EventPolicyReload && r.Policy == "":
		return low
	}
	return informational
}
