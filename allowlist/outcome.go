package allowlist

// Outcome is what the policy answers to a request or to a question for a name.
// The zero value denies. It is a value: it holds no lock and no resource, and
// stays true of the policy that made it.
type Outcome struct {
	Verdict Verdict // Deny, Allow or Observe
	// Reason of a denial; NoReason otherwise.
	Reason Reason
	// WouldReason is what Reason would have been, under Observe.
	WouldReason    Reason
	Mode           Mode
	observePrivate bool
	// Rule that allowed or denied, or that missed by the reason; nil if none.
	Rule *CompiledRule
	// Owner of the identity's entry; "" if none.
	Owner string
	// Quarantine is the line that holds; nil unless the reason is quarantined.
	Quarantine *Quarantined

	policy *Policy
	missed *CompiledRule // the rule that missed, also where it is only observed
}

// PolicyVersion names the policy that decided.
func (o Outcome) PolicyVersion() string { return o.policy.Version() }

// anyName stands for the wildcard rule of a name that no rule allowed, which
// observe mode lets through.
const anyName = "*"

// Wildcard returns what the name is counted under in the budget for names: the
// name of the wildcard rule that allowed it, or "*" if it is only observed. It is
// "" for a name that is not counted, because a rule names it exactly.
func (o Outcome) Wildcard() string {
	switch {
	case o.Verdict == Observe:
		return anyName
	case o.Rule != nil && o.Rule.Host.isWildcard():
		return o.Rule.Name()
	}
	return ""
}

// observed returns what is wrong with an address of a class that no rule opens,
// where the verdict is Observe.
func (o *Outcome) observed(class Class) Class {
	if class == Private && o.observePrivate {
		return Public
	}
	return class
}
