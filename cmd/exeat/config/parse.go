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
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// parser fills a Config from the nodes of one file.
type parser struct {
	Config
	dir   string
	taken map[allowlist.Host]bool               // suffixes of resolver.groups
	asked map[netip.AddrPort][]*strictyaml.Node // name servers, and where they stand
	errs  strictyaml.Errors
}

// Parse reads a configuration from memory; path names it in errors and is what
// relative paths are relative to.
func Parse(path string, data []byte) (Config, error) {
	p := &parser{Config: Defaults(), dir: filepath.Dir(path), taken: map[allowlist.Host]bool{}, asked: map[netip.AddrPort][]*strictyaml.Node{}}
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
	seen := map[string]bool{}
	for key, n := range root.Fields() {
		seen[key] = true
		switch key {
		case "version":
			n.Word("1")
		case "identity":
			p.identity(n)
		case "policy":
			p.policy(n)
		case "listeners":
			p.listeners(n)
		case "admin":
			p.admin(n)
		case "metrics":
			p.metrics(n)
		case "resolver":
			p.resolver(n)
		case "dns":
			p.dns(n)
		case "records":
			p.records(n)
		case "refusals":
			p.refusals(n)
		case "timeouts":
			p.timeouts(n)
		case "http":
			p.http(n)
		case "limits":
			p.limits(n)
		default:
			n.Unknown("version", "identity", "policy", "listeners", "admin", "metrics", "resolver", "dns", "records", "refusals", "timeouts", "http", "limits")
		}
	}
	p.checkServers()
	for _, key := range []string{"version", "policy", "listeners"} {
		if !seen[key] {
			root.Errorf("%s is missing: it is required", key)
		}
	}
	for _, l := range p.Listeners {
		if l.needsIdentity() && !seen["identity"] {
			root.Errorf("identity is missing: listener %s needs the gateway's certificate, key and bundle", l.Name)
		}
	}
}

func (p *parser) identity(n *strictyaml.Node) {
	p.Identity = &identity.FileConfig{}
	for key, v := range n.Fields() {
		switch key {
		case "dir":
			p.Identity.Dir = p.path(v)
		case "certificate":
			p.Identity.Certificate = p.path(v)
		case "key":
			p.Identity.Key = p.path(v)
		case "bundle":
			p.Identity.Bundle = p.path(v)
		case "workload_api":
			p.WorkloadAPI, _ = v.Text()
		case "close_at_svid_expiry":
			p.CloseAtExpiry, _ = v.Bool()
		case "bundles":
			p.Identity.Bundles = map[string]string{}
			for domain, file := range v.Fields() {
				p.Identity.Bundles[domain] = p.path(file)
			}
		default:
			v.Unknown("workload_api", "dir", "certificate", "key", "bundle", "bundles", "close_at_svid_expiry")
		}
	}
	c := p.Identity
	files := c.Dir != "" || c.Certificate != "" || c.Key != "" || c.Bundle != "" || len(c.Bundles) > 0
	switch {
	case !n.IsMapping(): // an error already
	case p.WorkloadAPI != "" && files:
		n.Errorf("workload_api stands alone: its bundles come with it")
	case p.WorkloadAPI != "":
		p.Identity = nil
	case c.Dir == "" && (c.Certificate == "" || c.Key == "" || c.Bundle == ""):
		n.Errorf("write workload_api, or dir, or all three of certificate, key and bundle")
	}
}

// policy is a path, a list of paths, or keys with what to do at a reload.
func (p *parser) policy(n *strictyaml.Node) {
	if !n.IsMapping() {
		p.Policy, _ = p.paths(n)
		return
	}
	for key, v := range n.Fields() {
		switch key {
		case "files":
			p.Policy, _ = p.paths(v)
		case "poll":
			if duration(v, &p.PolicyPoll); p.PolicyPoll == 0 {
				p.PolicyPoll = -1
			}
		case "max_revoke":
			p.MaxRevoke = share(v)
		default:
			v.Unknown("files", "poll", "max_revoke")
		}
	}
	if p.Policy == nil {
		n.Errorf("files is missing: write the policy's files or directories")
	}
}

// share reads a percentage from 1% to 100%.
func share(n *strictyaml.Node) float64 {
	text, ok := n.Text()
	if !ok {
		return 0
	}
	percent, err := strconv.Atoi(strings.TrimSuffix(text, "%"))
	if err != nil || percent < 1 || percent > 100 || !strings.HasSuffix(text, "%") {
		n.Errorf("%q is no share: write 1%% to 100%%", text)
		return 0
	}
	return float64(percent) / 100
}

func (p *parser) admin(n *strictyaml.Node) {
	for key, v := range n.Fields() {
		switch key {
		case "address":
			p.AdminAddress = p.address(v)
			if strings.HasPrefix(p.AdminAddress, "unix:") {
				v.Errorf("probes and scrapers speak TCP: write an IP address and a port")
			}
		default:
			v.Unknown("address")
		}
	}
}

func (p *parser) metrics(n *strictyaml.Node) {
	for key, v := range n.Fields() {
		switch key {
		case "identities":
			p.MetricIdentities, _ = v.Int(0, 10_000)
		default:
			v.Unknown("identities")
		}
	}
}

// prefixes reads one or more ranges of addresses; problem, if not nil, says what
// is wrong with one.
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

func (p *parser) refusals(n *strictyaml.Node) {
	for key, v := range n.Fields() {
		switch key {
		case "disclosure":
			if word, ok := v.Word("full", "id", "none"); ok {
				p.Disclosure, _ = refusal.ParseDisclosure(word)
			}
		default:
			v.Unknown("disclosure")
		}
	}
}

func (p *parser) timeouts(n *strictyaml.Node) {
	for key, v := range n.Fields() {
		switch key {
		case "handshake":
			positive(v, &p.HandshakeTimeout)
		case "head":
			positive(v, &p.HeadTimeout)
		case "client_hello":
			positive(v, &p.HelloTimeout)
		case "dial":
			positive(v, &p.DialTimeout)
		case "keep_alive":
			positive(v, &p.KeepAlive)
		case "body":
			positive(v, &p.BodyTimeout)
		case "response":
			positive(v, &p.ResponseTimeout)
		case "tunnel_idle":
			positive(v, &p.TunnelIdle)
		case "tunnel_max":
			positive(v, &p.TunnelMax)
		case "drain_delay":
			duration(v, &p.DrainDelay)
		case "drain_timeout":
			duration(v, &p.DrainTimeout)
		default:
			v.Unknown("handshake", "head", "client_hello", "dial", "keep_alive", "body", "response", "tunnel_idle", "tunnel_max", "drain_delay", "drain_timeout")
		}
	}
}

// http says what becomes of the fields of plain requests.
func (p *parser) http(n *strictyaml.Node) {
	for key, v := range n.Fields() {
		switch key {
		case "via":
			via, ok := v.Bool()
			p.NoVia = ok && !via
		case "forwarded":
			word, _ := v.Word("remove", "pass")
			p.PassForwarded = word == "pass"
		default:
			v.Unknown("via", "forwarded")
		}
	}
}

func duration(n *strictyaml.Node, into *time.Duration) {
	if d, ok := n.Duration(); ok {
		*into = d
	}
}

func positive(n *strictyaml.Node, into *time.Duration) {
	d, ok := n.Duration()
	if ok && d <= 0 {
		n.Errorf("write a time above zero, such as 10s")
		return
	}
	if ok {
		*into = d
	}
}

func (p *parser) limits(n *strictyaml.Node) {
	for key, v := range n.Fields() {
		switch key {
		case "connections":
			if i, ok := v.Int(1, 1<<20); ok {
				p.MaxConnections = i
			}
		case "head_bytes":
			if i, ok := v.Int(1<<10, 1<<20); ok {
				p.HeadLimit = i
			}
		default:
			p.budget(key, v)
		}
	}
}

// budget reads what each source or identity may use.
func (p *parser) budget(key string, n *strictyaml.Node) {
	const most = 1_000_000_000
	l := &p.Limits
	into := map[string]*int{
		"connections_per_source": &l.Connections, "handshakes_per_source": &l.Handshakes,
		"requests_per_identity": &l.Requests,
		"tunnels":               &l.Identity.Tunnels, "connects_per_second": &l.Identity.ConnectsPerSecond,
	}[key]
	switch {
	case into != nil:
		if i, ok := n.Int(1, most); ok {
			*into = i
		}
	case key == "upload_per_hour":
		if i, ok := n.Bytes(); ok {
			l.Identity.UploadPerHour = i
		}
	default:
		n.Unknown("connections", "head_bytes", "connections_per_source", "handshakes_per_source", "requests_per_identity",
			"tunnels", "connects_per_second", "upload_per_hour")
	}
}

func (p *parser) paths(n *strictyaml.Node) ([]string, bool) {
	texts, ok := n.Texts()
	for i := range texts {
		texts[i] = p.join(texts[i])
	}
	return texts, ok
}

func (p *parser) path(n *strictyaml.Node) string {
	text, ok := n.Text()
	if !ok {
		return ""
	}
	return p.join(text)
}

// join makes a path relative to the configuration file's directory.
func (p *parser) join(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(p.dir, path)
}
