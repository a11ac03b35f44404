package workload

import "github.com/exeat-dev/exeat/identity"

// EventKind says what an [Event] is about.
type EventKind uint8

// The kinds of events; zero is not a kind.
const (
	// Updated means that there is a new snapshot. Decisions that were made with the
	// previous one may have to be repeated; see [identity.Snapshot.SameTrust].
	Updated EventKind = iota + 1
	// Refused means that the agent sent something unsound, and that the last snapshot
	// stays in use.
	Refused
	// BundleRefused means that the bundle of another trust domain is unsound. The last
	// sound one of that trust domain stays in use, if there is one, and the rest of the
	// update is used.
	BundleRefused
	// AgentLost means that the connection to the agent was lost, or that the agent no
	// longer has an identity for us; the last snapshot stays in use. It is reported
	// once for each absence.
	AgentLost
	// AgentBack means that the agent answers again. It is reported once, before the
	// events of its answer.
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

// Event is something that happened to a [Provider].
type Event struct {
	// Kind says what happened.
	Kind EventKind
	// Snapshot is the new snapshot if Kind is Updated, and nil otherwise.
	Snapshot *identity.Snapshot
	// Err is the error, in one line, if Kind is Refused, BundleRefused or AgentLost.
	Err error
}
