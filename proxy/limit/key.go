package limit

// Key names a limit by the configuration key that sets it, for records. The zero value
// is no limit.
type Key uint8

// The limits that callers may exceed. The policy sets those of identities, in limits or
// shared_limits. Where it sets none, the configuration does: under the same name,
// except for the limit on queries.
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
	keyCount // the number of keys; not a key itself
)

// Keys returns all keys.
func Keys() []Key {
	all := make([]Key, 0, keyCount-1)
	for k := NoKey + 1; k < keyCount; k++ {
		all = append(all, k)
	}
	return all
}

// String returns the key behind the name of its mapping, or "" for NoKey.
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

// WithDetail returns the name of the limit, with a text behind it if the text is not empty,
// for a record.
func (k Key) WithDetail(text string) string {
	if text == "" {
		return k.String()
	}
	return k.String() + ": " + text
}
