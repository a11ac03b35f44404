package refusal

import (
	"fmt"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// RuleYAML returns a rule for one caller as YAML for the list identities of a policy, or ""
// if r is nil. A caller in observe mode stays in it.
func RuleYAML(id string, mode allowlist.Mode, r *allowlist.Rule) string {
	if r == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  - id: %s\n", id)
	if mode == allowlist.ModeObserve {
		b.WriteString("    mode: inherit\n")
	}
	b.WriteString("    allow:\n      - ")
	if host := r.Host.String(); r.CIDR.IsValid() {
		fmt.Fprintf(&b, "cidr: %s\n", r.CIDR)
	} else if strings.Contains(host, ".") {
		fmt.Fprintf(&b, "host: %s\n", host)
	} else { // a bare word may be something else in YAML: null, true
		fmt.Fprintf(&b, "host: %q\n", host)
	}
	add := func(key string, values []string) {
		if len(values) > 0 {
			b.WriteString("        " + key + ": [" + strings.Join(values, ", ") + "]\n")
		}
	}
	if len(r.Ports) != 1 || r.Ports[0].String() != "443" { // the default
		add("ports", texts(r.Ports, "%s"))
	}
	add("addresses", texts(r.Addresses, "%q"))
	add("methods", texts(r.Methods, "%q"))
	add("paths", texts(r.Paths, "%q"))
	add("dns", texts(r.Types, "%s"))
	for _, text := range flags(r) {
		b.WriteString("        " + text + "\n")
	}
	return b.String()
}

// texts formats each value with verb, %s or %q. Values that are neither numbers nor words
// are quoted with %q, because YAML may read them as something else.
func texts[T any](values []T, verb string) []string {
	all := make([]string, 0, len(values))
	for _, v := range values {
		all = append(all, fmt.Sprintf(verb, fmt.Sprint(v)))
	}
	return all
}

// flags returns the lines of a rule whose keys have one value.
func flags(r *allowlist.Rule) []string {
	var all []string
	switch r.TLS {
	case allowlist.TLSRequire:
		all = append(all, "tls: require")
	case allowlist.TLSAuto:
		all = append(all, "tls: auto")
	case allowlist.TLSOff:
		all = append(all, "tls: off")
	case allowlist.TLSDefault:
	}
	if r.ECH == allowlist.ECHRefuse {
		all = append(all, "ech: refuse")
	}
	if r.Upgrade {
		all = append(all, "upgrade: true")
	}
	if r.NoTunnel {
		all = append(all, "tunnel: false")
	}
	if !r.Expires.IsZero() {
		all = append(all, "expires: "+expiresValue(r.Expires))
	}
	return all
}

// expiresValue returns the value of expires for a rule that ends at a time: the last day of the
// rule if it ends at midnight UTC, or the time otherwise.
func expiresValue(at time.Time) string {
	if at = at.UTC(); at.Equal(at.Truncate(24 * time.Hour)) {
		return at.AddDate(0, 0, -1).Format(time.DateOnly)
	}
	return at.Format(time.RFC3339Nano)
}
