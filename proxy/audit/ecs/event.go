package ecs

import (
	"slices"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// decided reports whether the record is about a decision.
func decided(r *audit.Record) bool {
	return r.Event == audit.EventDecision || r.Event == audit.EventCollapsed
}

// category returns the one value of event.category.
func category(r *audit.Record) string {
	switch r.Event {
	case audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
		return "configuration"
	case audit.EventDecision, audit.EventCollapsed, audit.EventSummary, audit.EventTunnelProgress, audit.EventTunnelClose,
		audit.EventHandshake:
	}
	return "network"
}

// types returns event.type; the schema lists the values that each category allows.
func types(r *audit.Record) []string {
	switch r.Event {
	case audit.EventDecision, audit.EventCollapsed:
		if r.Protocol == audit.ProtocolDNS {
			return queryTypes(r)
		}
		switch r.Verdict {
		case allowlist.Allow, allowlist.Observe:
			return []string{"connection", "start", "allowed"}
		case allowlist.Deny:
			return []string{"connection", "denied"}
		case allowlist.Fail: // neither allowed nor denied is true
		}
	case audit.EventSummary:
		if r.Merged == nil || !slices.ContainsFunc(r.Merged.Counts, notDenied) {
			return []string{"connection", "denied"}
		}
	case audit.EventTunnelProgress:
		return []string{"connection", "info"}
	case audit.EventTunnelClose:
		if revoked(r) {
			return []string{"connection", "end", "denied"}
		}
		return []string{"connection", "end"}
	case audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
		return []string{"change"}
	case audit.EventHandshake:
	}
	return []string{"connection"}
}

// queryTypes returns event.type of a DNS query, which starts no connection.
func queryTypes(r *audit.Record) []string {
	switch r.Verdict {
	case allowlist.Allow, allowlist.Observe:
		return []string{"protocol", "allowed"}
	case allowlist.Deny:
		return []string{"protocol", "denied"}
	case allowlist.Fail:
	}
	return []string{"protocol"}
}

func notDenied(c audit.Count) bool { return c.Verdict != allowlist.Deny }

// revoked reports whether a tunnel ended because policy, quarantine or identity no
// longer allow it.
func revoked(r *audit.Record) bool {
	return r.CloseReason == tunnel.Denied || r.CloseReason == tunnel.Revoked || r.CloseReason == tunnel.Quarantined
}

// action returns event.action: the verdict, or the event.
func action(r *audit.Record) string {
	if decided(r) {
		return r.Verdict.String()
	}
	return string(r.Event)
}

// outcome returns event.outcome: whether the caller, or the change, succeeded. It is
// empty if the record does not say so.
func outcome(r *audit.Record) string {
	switch r.Event {
	case audit.EventDecision, audit.EventCollapsed:
		if r.Verdict == allowlist.Allow || r.Verdict == allowlist.Observe {
			return "success"
		}
		return "failure"
	case audit.EventHandshake:
		return "failure"
	case audit.EventPolicyReload:
		if r.Policy == "" { // the policy was refused
			return "failure"
		}
	case audit.EventIdentityRotate, audit.EventQuarantine:
		return "success"
	case audit.EventSummary, audit.EventTunnelProgress, audit.EventTunnelClose:
	}
	return ""
}
