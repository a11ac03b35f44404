package workload

import "github.com/exeat-dev/exeat/identity"

// EventKind says what an [Event] is about.
type EventKind uint8

// The kinds of events; zero is none of them.
const (
	// Updated means that there is a new snapshot. What was decided under the
	// one before may have to be decided again; see
	// [identity.Snapshot.SameTrust].
	Updated EventKind = iota + 1
	// Refused means that the agent sent something unsound, and that the last
	// snapshot stays.
	Refused
	// BundleRefused means that the bundle of another trust domain is unsound.
	// The last one of that trust domain stays, if there is one, and all else that
	// came with it is used.
	BundleRefused
	// AgentLost means that the agent went away, or that it has no identity for
	// us any more; the last snapshot stays. It is reported once for an absence.
	AgentLost
	// AgentBack means that the agent answers again. It is reported once, before
	// what came with it.
	AgentBack
)

// String returns the kind in lower case, or "unknown".
func (k EventKind) String() string {
	switch k {
	case Updated:
		return "updated"
	case Refused:
		return "refused"
	case BundleRefused:
		return "bundle refused"
	case AgentLost:
		return "agent lost"
	case AgentBack:
		return "agent back"
	}
	return "unknown"
}

// Event is something that happened to a [Source].
type Event struct {
	// Kind says what.
	Kind EventKind
	// Snapshot is the new one if Kind is Updated, and nil otherwise.
	Snapshot *identity.Snapshot
	// Err says what is wrong, in one line, if Kind is Refused,
	// BundleRefused or AgentLost.
	Err error
}
