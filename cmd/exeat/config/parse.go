package config

import (
	"io/fs"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// parser fills a Config from the nodes of one file.
type parser struct {
	Config
	dir   string
	taken map[allowlist.Host]bool // suffixes of resolver.groups
	errs  strictyaml.Errors
}

// Parse reads a configuration from memory; path names it in errors and is what
// relative paths are relative to.
func Parse(path string, data []byte) (Config, error) {
	p := &parser{Config: Defaults(), dir: filepath.Dir(path), taken: map[allowlist.Host]bool{}}
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
			n.Unknown("version", "identity", "policy", "listeners", "admin", "metrics", "resolver", "records", "refusals", "timeouts", "http", "limits")
		}
	}
	for _, key := range []string{"version", "policy", "listeners"} {
		if !seen[key] {
			root.Errorf("%s is missing: it is required", key)
		}
	}
	for _, l := range p.Listeners {
		if l.Identity != Fixed && !seen["identity"] {
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

func (p *parser) listeners(n *strictyaml.Node) {
	names := map[string]bool{}
	for item := range n.Items() {
		l := p.listener(item)
		if names[l.Name] {
			item.Errorf("there are two listeners with the name %q", l.Name)
		}
		names[l.Name] = true
		p.Listeners = append(p.Listeners, l)
	}
	if len(p.Listeners) == 0 {
		n.Errorf("the list is empty: write a listener")
	}
}

func (p *parser) listener(n *strictyaml.Node) Listener {
	var l Listener
	addressed := false
	for key, v := range n.Fields() {
		switch key {
		case "name":
			l.Name, _ = v.Text()
		case "address":
			addressed = true
			l.Address = p.address(v)
		case "identity":
			l.Identity = identityKind(v)
		case "id":
			l.ID = spiffeID(v)
		case "present":
			p.present(v, &l)
		case "socket_mode":
			l.SocketMode = socketMode(v)
		case "proxy_protocol":
			l.Proxies = prefixes(v, nil)
		case "trace_parent":
			word, _ := v.Word("link", "accept")
			l.AcceptTrace = word == "accept"
		default:
			v.Unknown("name", "address", "identity", "id", "present", "socket_mode", "proxy_protocol", "trace_parent")
		}
	}
	if !addressed {
		n.Errorf("the listener has no address: write HOST:PORT or unix:/path")
	}
	l.check(n)
	return l
}

func identityKind(n *strictyaml.Node) IdentityKind {
	switch word, _ := n.Word("mtls", "self", "fixed"); word {
	case "self":
		return Self
	case "fixed":
		return Fixed
	}
	return MTLS
}

// check is what no single field can know.
func (l *Listener) check(n *strictyaml.Node) {
	if l.Name == "" {
		n.Errorf("the listener has no name: records name it")
	}
	if l.Address == "" {
		return // an error already
	}
	unix := strings.HasPrefix(l.Address, "unix:")
	if l.SocketMode != 0 && !unix {
		n.Errorf("socket_mode is for unix sockets only")
	}
	if l.Proxies != nil && unix {
		n.Errorf("proxy_protocol is for TCP only: a unix socket has no address to replace")
	}
	if (l.Identity == Fixed) != !l.ID.IsZero() {
		n.Errorf("id goes with identity: fixed, which needs it")
	}
	if l.Identity == MTLS {
		return
	}
	if l.WebCertificate != "" {
		n.Errorf("present is for identity: mtls only: this listener speaks no TLS")
	}
	if !unix && !isLoopback(l.Address) {
		n.Errorf("a listener that asks for no certificate gives its identity to whoever reaches %s: use 127.0.0.1, [::1] or a unix socket", l.Address)
	}
}

func isLoopback(address string) bool {
	ap, err := netip.ParseAddrPort(address)
	return err == nil && ap.Addr().IsLoopback()
}

// address is HOST:PORT with a literal host, so that nothing depends on a name
// being looked up at start; port 0 asks for a free one.
func (p *parser) address(n *strictyaml.Node) string {
	text, ok := n.Text()
	if !ok {
		return ""
	}
	if path, unix := strings.CutPrefix(text, "unix:"); unix {
		if path == "" {
			n.Errorf("the path is missing: write unix:/path")
			return ""
		}
		return "unix:" + p.join(path)
	}
	if _, err := netip.ParseAddrPort(text); err != nil {
		n.Errorf("%q is no address: write an IP address and a port such as 127.0.0.1:8443, or unix:/path", text)
		return ""
	}
	return text
}

func spiffeID(n *strictyaml.Node) spiffeid.ID {
	text, ok := n.Text()
	if !ok {
		return spiffeid.ID{}
	}
	id, err := spiffeid.FromString(text)
	if err != nil || id.Path() == "" {
		n.Errorf("%q is no SPIFFE ID of a workload: write spiffe://trust.domain/path", text)
		return spiffeid.ID{}
	}
	return id
}

func (p *parser) present(n *strictyaml.Node, l *Listener) {
	if n.IsScalar() {
		n.Word("svid")
		return
	}
	for key, v := range n.Fields() {
		switch key {
		case "certificate":
			l.WebCertificate = p.path(v)
		case "key":
			l.WebKey = p.path(v)
		default:
			v.Unknown("certificate", "key")
		}
	}
	if l.WebCertificate == "" || l.WebKey == "" {
		n.Errorf("write svid, or both certificate and key")
	}
}

func socketMode(n *strictyaml.Node) fs.FileMode {
	text, ok := n.Text()
	if !ok {
		return 0
	}
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode == 0 || mode > 0o777 {
		n.Errorf("%q is no permission: write it in octal, such as \"0660\"", text)
		return 0
	}
	return fs.FileMode(mode)
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
