package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// Checked is the result of [Check].
type Checked struct {
	// Version of the policy, "" if there is none yet, and that of the quarantine list,
	// "" if nobody is in quarantine.
	Version, Quarantine string
	// Warnings are probable mistakes, in the order of the listeners.
	Warnings []string
}

// Check checks a configuration as New does, and opens nothing. It needs neither
// resolver nor recorder.
func Check(cfg Config) (Checked, error) {
	if err := cfg.check(); err != nil {
		return Checked{}, err
	}
	state, err := newInForce(&cfg, limit.NewBudgets(cfg.Limits))
	if err != nil {
		return Checked{}, err
	}
	d := doors{cfg: &cfg, verifier: state.verifier}
	for _, l := range cfg.Listeners {
		if _, err := d.config(l); err != nil {
			return Checked{}, err
		}
	}
	loaded := cfg.Policy.Loaded()
	policy := loaded.Policy.WithQuarantine(loaded.Quarantine)
	if policy == nil {
		return Checked{}, nil
	}
	return Checked{Version: policy.Version(), Quarantine: policy.QuarantineVersion(), Warnings: unknownIdentities(&cfg, policy)}, nil
}

// unknownIdentities returns a warning for each identity, named by a listener, for which the
// policy would refuse every request. Quarantine is not a mistake.
func unknownIdentities(cfg *Config, policy *allowlist.Policy) (warnings []string) {
	for _, l := range cfg.Listeners {
		ids, proof := listenerIdentities(cfg, l)
		for _, id := range ids {
			switch policy.Knows(id, proof) { //nolint:exhaustive // the other results are not mistakes in the configuration
			case allowlist.IdentityUnknown:
				warnings = append(warnings, fmt.Sprintf("listener %s: no entry of the policy matches %s, so whatever it asks for is refused as %s", l.Name, id, allowlist.IdentityUnknown))
			case allowlist.IdentitySourceNotAccepted:
				warnings = append(warnings, fmt.Sprintf("listener %s: no entry of %s accepts %s, so whatever it asks for is refused as %s", l.Name, id, proof, allowlist.IdentitySourceNotAccepted))
			}
		}
	}
	return warnings
}

// listenerIdentities returns the identities that a listener gives its callers, in order,
// and how records say they are proven. It returns none for a listener that requires
// certificates.
func listenerIdentities(cfg *Config, l Listener) ([]spiffeid.ID, allowlist.Proof) {
	switch l.Identity {
	case Self:
		return []spiffeid.ID{cfg.Identity.Snapshot().ID()}, allowlist.ProofListener
	case Fixed:
		return []spiffeid.ID{l.ID}, allowlist.ProofListener
	case SourceMap:
		ids := slices.Collect(maps.Values(l.Sources))
		slices.SortFunc(ids, func(a, b spiffeid.ID) int { return strings.Compare(a.String(), b.String()) })
		return slices.Compact(ids), allowlist.ProofSourceMap
	case MTLS:
	}
	return nil, allowlist.NoProof
}
