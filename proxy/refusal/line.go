package refusal

import (
	"fmt"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// Line returns a rule for one caller as the policy writes it, to be put under
// identities; "" if there is no rule. A caller that is observed stays so.
func Line(id string, mode allowlist.Mode, r *allowlist.Rule) string {
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

// texts writes each of the values, in quotes by %q: all but numbers and words
// may be something else in YAML.
func texts[T any](values []T, verb string) []string {
	all := make([]string, 0, len(values))
	for _, v := range values {
		all = append(all, fmt.Sprintf(verb, fmt.Sprint(v)))
	}
	return all
}

// flags are the keys of a rule that have one value.
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
		all = append(all, "expires: "+until(r.Expires))
	}
	return all
}

// until is the day with whose end a rule ends, or the moment within a day.
func until(at time.Time) string {
	if at = at.UTC(); at.Equal(at.Truncate(24 * time.Hour)) {
		return at.AddDate(0, 0, -1).Format(time.DateOnly)
	}
	return at.Format(time.RFC3339Nano)
}
