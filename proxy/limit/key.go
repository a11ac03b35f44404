package limit

// Key names a limit as the key that sets it, for the record of what is over it. The
// zero value is no limit.
type Key uint8

// The limits that callers may be over. Those of an identity are set in the policy, by
// limits or shared_limits, and where it sets none in the configuration, under the
// same name but for queries.
const (
	NoKey Key = iota
	KeyConnections
	KeyConnectionsPerSource
	KeyHandshakesPerSource
	KeyRequestsPerIdentity
	KeyTunnels
	KeySharedTunnels
	KeyConnectsPerSecond
	KeySharedConnectsPerSecond
	KeyUploadPerHour
	KeySharedUploadPerHour
	KeyDNSPerSecond
	KeySharedDNSPerSecond
	KeyQueriesPerSecond
	KeyLookups
	KeyLookupsPerIdentity
	KeyDNSConnections
	KeyDNSConnectionsPerIdentity
	keyCount // not a key
)

// Keys returns all keys.
func Keys() []Key {
	all := make([]Key, 0, keyCount-1)
	for k := NoKey + 1; k < keyCount; k++ {
		all = append(all, k)
	}
	return all
}

// String returns the key with the one of the mapping that it stands in, "" for none.
func (k Key) String() string {
	switch k {
	case KeyConnections:
		return "limits.connections"
	case KeyConnectionsPerSource:
		return "limits.connections_per_source"
	case KeyHandshakesPerSource:
		return "limits.handshakes_per_source"
	case KeyRequestsPerIdentity:
		return "limits.requests_per_identity"
	case KeyTunnels:
		return "limits.tunnels"
	case KeySharedTunnels:
		return "shared_limits.tunnels"
	case KeyConnectsPerSecond:
		return "limits.connects_per_second"
	case KeySharedConnectsPerSecond:
		return "shared_limits.connects_per_second"
	case KeyUploadPerHour:
		return "limits.upload_per_hour"
	case KeySharedUploadPerHour:
		return "shared_limits.upload_per_hour"
	case KeyDNSPerSecond:
		return "limits.dns_per_second"
	case KeySharedDNSPerSecond:
		return "shared_limits.dns_per_second"
	case KeyQueriesPerSecond:
		return "dns.queries_per_second"
	case KeyLookups:
		return "dns.lookups"
	case KeyLookupsPerIdentity:
		return "dns.lookups_per_identity"
	case KeyDNSConnections:
		return "dns.connections"
	case KeyDNSConnectionsPerIdentity:
		return "dns.connections_per_identity"
	case NoKey, keyCount:
	}
	return ""
}

// Says returns a text behind the name of the limit, for a record; the name alone if
// there is no text.
func (k Key) Says(text string) string {
	if text == "" {
		return k.String()
	}
	return k.String() + ": " + text
}
