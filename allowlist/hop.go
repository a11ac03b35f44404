package allowlist

// CheckHop returns the reason for which a connection must not be led to
// another name than the one decided on, by an alias in the DNS: a deny rule, or
// with inspect, that the name is not allowed by itself. NoReason lets it go on.
// A decision that does not allow follows no name.
func (d Decision) CheckHop(hop Host, inspect bool) Reason {
	if !d.Allowed() || d.policy == nil || hop.name == "" {
		return MalformedTarget
	}
	req := d.Request
	req.Dest.Host = hop
	next := d.policy.Decide(req)
	if next.Reason == DeniedByRule || inspect && !next.Allowed() {
		return next.Reason
	}
	return NoReason
}
