package allowlist

// Outcome is the part that a Decision and a NameDecision have in common. The zero value
// denies. It holds no lock and no resource, so it may be copied, and it does not change
// when the policy is replaced.
type Outcome struct {
	Verdict Verdict // Deny, Allow or Observe
	// Reason is the reason of a denial; NoReason otherwise.
	Reason Reason
	// WouldReason is, if the verdict is Observe, the reason that enforcement would give;
	// NoReason otherwise.
	WouldReason    Reason
	Mode           Mode
	observePrivate bool // observe mode lets private addresses through
	// Rule is the rule that allowed or denied, or the rule that missed nearest if the
	// reason comes from a miss; nil if there is none or the verdict is Observe.
	Rule *CompiledRule
	// Owner is the owner in the most specific entry that names one; "" if none does.
	Owner string
	// Quarantine is the line that matches the identity if the reason is quarantined; nil
	// otherwise.
	Quarantine *Quarantined

	policy *Policy       // the policy that decided
	missed *CompiledRule // the rule that missed nearest, also if the verdict is Observe
}

// PolicyVersion returns the version of the policy that decided.
func (o Outcome) PolicyVersion() string { return o.policy.Version() }

// anyName is the result of Wildcard for a name that no rule allows and that observe mode
// lets through.
const anyName = "*"

// Wildcard returns the key under which the budget for names counts the name: the name of
// the wildcard rule that allowed it, or "*" if the verdict is Observe. It is "" for a
// name that is not counted because a rule names it exactly.
func (o Outcome) Wildcard() string {
	switch {
	case o.Verdict == Observe:
		return anyName
	case o.Rule != nil && o.Rule.Host.isWildcard():
		return o.Rule.Name()
	}
	return ""
}

// observed returns Public if observe mode lets a caller reach an address of a class, and
// the class otherwise.
func (o *Outcome) observed(class Class) Class {
	if class == Private && o.observePrivate {
		return Public
	}
	return class
}
