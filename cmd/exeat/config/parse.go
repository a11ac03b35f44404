package config

import (
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// minPoll is the shortest time between two readings of the policy files.
const minPoll = time.Second

// parser fills a Config from the nodes of a file.
type parser struct {
	Config
	dir  directory
	errs strictyaml.Errors

	occupied []occupied // addresses of the listeners read so far
}

// Parse reads a configuration from memory. path names it in errors, and paths in it are
// relative to path's directory.
func Parse(path string, data []byte) (Config, error) {
	p := &parser{Config: Defaults(), dir: directory{filepath.Dir(path), Places{}}}
	p.Places = p.dir.places
	root := strictyaml.Parse(path, data, &p.errs)
	if root != nil {
		p.root(root)
		if len(p.errs) == 0 {
			root.ReportUnread()
		}
	}
	if err := p.errs.Err(); err != nil {
		return Config{}, err
	}
	return p.Config, nil
}

func (p *parser) root(root *strictyaml.Node) {
	if root.IsEmpty() {
		root.Errorf("the file is empty: write version: 1 and what docs/operating.md shows")
		return
	}
	if root.Has("identities") && !root.Has("policy") {
		root.Errorf("this is a policy: write a configuration whose key policy names it, and check it alone with exeat policy lint")
		return
	}
	resolver := &resolverReader{dir: p.dir, taken: map[allowlist.Host]bool{}, asked: map[netip.AddrPort][]*strictyaml.Node{}}
	there := readKeys(root,
		key{"version", func(n *strictyaml.Node) { n.Word("1") }},
		key{"identity", p.identity},
		key{"policy", p.policy},
		key{"listeners", p.listeners},
		key{"admin", mapping(key{"address", p.admin})},
		key{"metrics", mapping(key{"identities", number(&p.MetricIdentities, 0, 10_000)})},
		key{"resolver", resolver.keys(&p.Config)},
		key{"dns", dnsLimits(&p.Config)},
		key{"records", p.records},
		key{"refusals", mapping(key{"disclosure", p.disclosure})},
		key{"timeouts", timeouts(&p.Config)},
		key{"http", fields(&p.Config)},
		key{"limits", limits(&p.Config)},
	)
	if there == nil {
		return
	}
	resolver.checkListeners(&p.Config)
	for _, name := range []string{"version", "policy", "listeners"} {
		if there[name] == nil {
			root.Errorf("%s is missing: it is required", name)
		}
	}
	for _, l := range p.Listeners {
		if l.Address != "" && l.needsIdentity() && there["identity"] == nil {
			root.Errorf("identity is missing: listener %s needs the gateway's certificate, key and bundle", l.Name)
		}
	}
}

func (p *parser) identity(n *strictyaml.Node) {
	c := &identity.FileConfig{}
	p.Identity = c
	there := readKeys(n,
		key{"workload_api", func(v *strictyaml.Node) {
			if word(&p.WorkloadAPI)(v); p.WorkloadAPI != "" {
				p.dir.note(v, p.WorkloadAPI)
			}
		}},
		key{"dir", p.dir.path(&c.Dir)},
		key{"certificate", p.dir.path(&c.Certificate)},
		key{"key", p.dir.path(&c.Key)},
		key{"bundle", p.dir.path(&c.Bundle)},
		key{"bundles", func(v *strictyaml.Node) {
			c.Bundles = map[string]string{}
			for domain, file := range v.Fields() {
				path := ""
				p.dir.path(&path)(file)
				c.Bundles[domain] = path
			}
		}},
		key{"close_at_svid_expiry", boolean(&p.Gateway.CloseAtExpiry)},
	)
	agent, dir := there["workload_api"] != nil, there["dir"] != nil
	certificate, key, bundle := there["certificate"] != nil, there["key"] != nil, there["bundle"] != nil
	switch {
	case there == nil: // there is an error already
	case agent && (dir || certificate || key || bundle || there["bundles"] != nil):
		n.Errorf("workload_api stands alone: its bundles come with it")
	case agent:
		p.Identity = nil
	case dir && (certificate || key || bundle):
		n.Errorf("dir stands without certificate, key and bundle: write either the directory or the three files")
	case !dir && (!certificate || !key || !bundle):
		n.Errorf("write workload_api, or dir, or all three of certificate, key and bundle")
	}
}

// policy reads a path, a list of paths, or a mapping with paths and settings of
// reloads.
func (p *parser) policy(n *strictyaml.Node) {
	if !n.IsMapping() {
		p.dir.paths(&p.Policy)(n)
		return
	}
	there := readKeys(n,
		key{"files", p.dir.paths(&p.Policy)},
		key{"poll", p.poll},
		key{"max_revoke", p.maxRevoke},
	)
	if there != nil && there["files"] == nil {
		n.Errorf("files is missing: write the policy's files or directories")
	}
}

// poll reads how often the files are read without an event; zero means never.
func (p *parser) poll(n *strictyaml.Node) {
	if orNever(&p.PolicyPoll)(n); p.PolicyPoll > 0 && p.PolicyPoll < minPoll {
		n.Errorf("write at least %s, or 0s for never: changes that the system tells of are seen at once", minPoll)
	}
}

// maxRevoke reads a share, or a mapping of a share and of the number of identities that
// may always lose something.
func (p *parser) maxRevoke(n *strictyaml.Node) {
	m := &p.Gateway.MaxRevoke
	m.AtLeast = live.DefaultAtLeast
	if !n.IsMapping() {
		m.Share = readShare(n, &p.Warnings)
		return
	}
	there := readKeys(n,
		key{"share", func(v *strictyaml.Node) { m.Share = readShare(v, &p.Warnings) }},
		key{"at_least", number(&m.AtLeast, 1, 1_000_000)},
	)
	if there != nil && there["share"] == nil {
		n.Errorf("share is missing: write which share of the identities may lose something, such as 30%%")
	}
}

// readShare reads a percentage from 1% to 100%.
func readShare(n *strictyaml.Node, warnings *strictyaml.Errors) float64 {
	text, ok := n.Text()
	if !ok {
		return 0
	}
	percent, err := strconv.Atoi(strings.TrimSuffix(text, "%"))
	if err != nil || percent < 1 || percent > 100 || !strings.HasSuffix(text, "%") {
		n.Errorf("%q is no share: write 1%% to 100%%", text)
		return 0
	}
	if percent == 100 {
		warnings.Add(n.Pos(), "%s: with 100%% nothing is ever held, as without max_revoke: write a smaller share, or remove max_revoke", n.Name())
	}
	return float64(percent) / 100
}

func (p *parser) admin(n *strictyaml.Node) {
	p.Gateway.Admin.Address = p.dir.address(n)
	if strings.HasPrefix(p.Gateway.Admin.Address, "unix:") {
		n.Errorf("probes and scrapers speak TCP: write an IP address and a port")
		return
	}
	p.occupy(n, adminListener, p.Gateway.Admin.Address)
}

func (p *parser) disclosure(n *strictyaml.Node) {
	if word, ok := n.Word("full", "id", "none"); ok {
		p.Gateway.Front.Disclosure, _ = refusal.ParseDisclosure(word)
	}
}

// prefixes reads one or more ranges of addresses. problem, if not nil, returns what is
// wrong with a range, or "".
func prefixes(n *strictyaml.Node, problem func(netip.Prefix) string) []netip.Prefix {
	var list []netip.Prefix
	for item := range n.OneOrMore() {
		text, ok := item.Text()
		if !ok {
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil || prefix != prefix.Masked() {
			item.Errorf("%q is no range of addresses: write one such as 10.0.0.0/8, or an address with /32 or /128", text)
			continue
		}
		if problem != nil && problem(prefix) != "" {
			item.Errorf("%s %s", prefix, problem(prefix))
			continue
		}
		list = append(list, prefix)
	}
	return list
}

// timeouts returns a function that reads the timeouts.
func timeouts(c *Config) func(*strictyaml.Node) {
	return compared(
		func(there map[string]*strictyaml.Node) {
			neverReached(c, there["tunnel_idle"], c.Gateway.Tunnel.Idle, "timeouts.tunnel_max", c.Gateway.Tunnel.Max)
		},
		key{"handshake", positive(&c.Gateway.HandshakeTimeout)},
		key{"head", positive(&c.Gateway.Front.HeadTimeout)},
		key{"client_hello", positive(&c.Gateway.HelloTimeout)},
		key{"dial", positive(&c.Gateway.DialTimeout)},
		key{"keep_alive", positive(&c.Gateway.Front.KeepAlive)},
		key{"body", positive(&c.Gateway.Forward.Body)},
		key{"response", positive(&c.Gateway.Forward.Response)},
		key{"tunnel_idle", positive(&c.Gateway.Tunnel.Idle)},
		key{"tunnel_max", positive(&c.Gateway.Tunnel.Max)},
		key{"drain_delay", duration(&c.Gateway.DrainDelay)},
		key{"drain_timeout", duration(&c.Gateway.DrainTimeout)},
	)
}

// fields returns a function that reads how the fields of plain requests are treated.
func fields(c *Config) func(*strictyaml.Node) {
	return mapping(
		key{"via", func(v *strictyaml.Node) {
			via, ok := v.Bool()
			c.Gateway.Forward.NoVia = ok && !via
		}},
		key{"forwarded", func(v *strictyaml.Node) {
			word, _ := v.Word("remove", "pass")
			c.Gateway.Forward.PassForwarded = word == "pass"
		}},
	)
}

// limits returns a function that reads the limits of each source, of each identity, and
// of all together.
func limits(c *Config) func(*strictyaml.Node) {
	const most = 1_000_000_000
	l := &c.Gateway.Limits
	return compared(
		func(there map[string]*strictyaml.Node) {
			neverReached(c, there["connections_per_source"], l.Connections, "limits.connections", c.Gateway.MaxConnections)
			neverReached(c, there["tunnels"], l.Identity.Tunnels, "limits.connections", c.Gateway.MaxConnections)
			neverReached(c, there["streams_per_connection"], c.Gateway.Front.Streams, "limits.connections", c.Gateway.MaxConnections)
			neverReached(c, there["connects_per_second"], l.Identity.ConnectsPerSecond, "limits.requests_per_identity", l.Requests)
		},
		key{"connections", written(&c.FitConnections, number(&c.Gateway.MaxConnections, 1, 1<<20))},
		key{"streams_per_connection", number(&c.Gateway.Front.Streams, 1, 100_000)},
		key{"head_bytes", number(&c.Gateway.Front.HeadLimit, 1<<10, 1<<20)},
		key{"connections_per_source", number(&l.Connections, 1, most)},
		key{"handshakes_per_source", number(&l.Handshakes, 1, most)},
		key{"requests_per_identity", number(&l.Requests, 1, most)},
		key{"tunnels", number(&l.Identity.Tunnels, 1, most)},
		key{"connects_per_second", number(&l.Identity.ConnectsPerSecond, 1, most)},
		key{"upload_per_hour", func(v *strictyaml.Node) {
			if i, ok := v.Bytes(); ok {
				l.Identity.UploadPerHour = i
			}
		}},
	)
}

// written wraps a function that reads a key whose default is lowered to what the system
// allows. It clears fit, because a number in the file is not lowered.
func written(fit *bool, read func(*strictyaml.Node)) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) {
		*fit = false
		read(n)
	}
}
