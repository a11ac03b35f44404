package dns

import (
	"hash/maphash"
	"sync"

	"github.com/exeat-dev/exeat/allowlist"
)

// Bounds of the names that are remembered: 32 times 256, at most a few megabytes.
const (
	nameShards    = 32
	namesPerShard = 256
)

// names remembers names that were read recently, so that a name which is queried again
// costs no allocation. An entry depends on the bytes of the name only, not on any
// decision.
type names struct {
	seed   maphash.Seed
	shards [nameShards]nameShard
}

type nameShard struct {
	mu    sync.Mutex
	known map[string]allowlist.Host
}

func newNames() *names {
	n := &names{seed: maphash.MakeSeed()}
	for i := range n.shards {
		n.shards[i].known = make(map[string]allowlist.Host)
	}
	return n
}

// host returns the host with the given canonical text, or false if the text is not the
// name of a host, such as an address.
func (n *names) host(text []byte) (allowlist.Host, bool) {
	shard := &n.shards[maphash.Bytes(n.seed, text)%nameShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if h, ok := shard.known[string(text)]; ok {
		return h, true
	}
	name := string(text)
	h, err := allowlist.ParseHost(name)
	if err != nil || h.IsAddr() || h.String() != name {
		return allowlist.Host{}, false
	}
	if len(shard.known) >= namesPerShard {
		clear(shard.known)
	}
	shard.known[name] = h
	return h, true
}
