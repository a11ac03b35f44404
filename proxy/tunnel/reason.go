package tunnel

// A Reason says why a tunnel ended.
type Reason uint8

// The reasons. The tunnel itself sets Client, Upstream, Idle, MaxDuration and Error, and
// Denied and Limit because of Gate and Config.Spend. The callers of Close set the others.
const (
	None        Reason = iota // the tunnel has not ended
	Client                    // the client finished first
	Upstream                  // the upstream finished first
	Idle                      // no byte moved for Config.Idle
	MaxDuration               // Config.Max has passed
	Denied                    // the gate refused the first bytes
	Revoked                   // the tunnel is no longer allowed
	Quarantined               // the identity was quarantined
	Limit                     // Config.Spend returned false
	Drain                     // the process is shutting down
	Error                     // a connection failed; see Result.Err
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
