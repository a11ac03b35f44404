package tunnel

// A Reason says why a tunnel ended.
type Reason uint8

// The reasons. Client, Upstream, Idle, MaxDuration and Error are found by the
// tunnel itself, Denied and Limit by its gate and budget; the others come from
// whoever calls Close.
const (
	None        Reason = iota // not ended
	Client                    // the client finished first
	Upstream                  // the upstream finished first
	Idle                      // no byte either way for Config.Idle
	MaxDuration               // Config.Max has passed
	Denied                    // its first bytes were refused
	Revoked                   // the client's identity is no longer valid
	Quarantined               // the identity was quarantined
	Limit                     // Config.Spend said no
	Drain                     // the process is shutting down
	Error                     // a connection failed; Result.Err says how
)

// String returns the token that stands for r in records and metrics.
func (r Reason) String() string {
	switch r {
	case None:
		return "none"
	case Client:
		return "client"
	case Upstream:
		return "upstream"
	case Idle:
		return "idle"
	case MaxDuration:
		return "max-duration"
	case Denied:
		return "denied"
	case Revoked:
		return "revoked"
	case Quarantined:
		return "quarantined"
	case Limit:
		return "limit"
	case Drain:
		return "drain"
	case Error:
		return "error"
	}
	return "unknown"
}
