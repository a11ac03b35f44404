package hostile

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
)

// load parses a policy file, which must be valid.
func load(tb testing.TB, text string) *allowlist.Policy {
	tb.Helper()
	policy, err := parsePolicy(text)
	if err != nil {
		tb.Fatal(err)
	}
	return policy
}

func parsePolicy(text string) (*allowlist.Policy, error) {
	opts := policyfile.Options{TrustDomain: spiffeid.RequireTrustDomainFromString(trustDomain)}
	return policyfile.Parse(opts, map[string][]byte{"policy.yaml": []byte(text)})
}

// ports are the ports for which PORT and LISTENER stand in requests and policies: the
// port of the origins, and that of the listener with TLS.
type ports struct{ port, listener uint16 }

// fill replaces PORT and LISTENER.
func (p ports) fill(text string) string {
	return strings.NewReplacer("PORT", strconv.Itoa(int(p.port)), "LISTENER", strconv.Itoa(int(p.listener))).Replace(text)
}

// at returns the target of a host and the origin's port.
func (p ports) at(host string) string { return fmt.Sprint(host, ":", p.port) }

// policy returns the policy with which every gateway starts. Every address outside this
// machine that its rules allow is refused by class, so that no case sends a packet to
// another machine.
func (p ports) policy() string { return p.fill(policyText) }

// limitedTo returns the policy with limits for builder, or for all of test.example.
func (p ports) limitedTo(limits, shared string) string {
	text := strings.Replace(p.policy(), "    owner: team-ci\n", "    owner: team-ci\n    "+limits+"\n", 1)
	if shared != "" {
		text = strings.Replace(text, "quarantine:\n", "  - id: spiffe://test.example/**\n    "+shared+"\n    allow: [{host: everybody.example}]\nquarantine:\n", 1)
	}
	return text
}

// until returns a policy that allows held.example and allowed.example until a date.
func (p ports) until(then time.Time) string {
	text := "version: 1\nidentities:\n  - id: " + id("builder") + "\n    allow:\n"
	for _, host := range []string{"held.example", "allowed.example"} {
		text += "      - {host: " + host + ", ports: [PORT], addresses: 127.0.0.1/32, expires: " + then.UTC().Format(time.RFC3339Nano) + "}\n"
	}
	return p.fill(text)
}

const policyText = `version: 1
identities:
  - id: spiffe://test.example/builder
    owner: team-ci
    allow:
      - {host: allowed.example, ports: [PORT, 80, 443], addresses: 127.0.0.1/32}
      - {host: "**.wild.example", ports: [PORT, LISTENER], addresses: 127.0.0.1/32}
      - {host: "*.one.example", ports: [PORT], addresses: 127.0.0.1/32}
      - {host: xn--bcher-kva.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: held.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: loopback.example, ports: [PORT], addresses: 126.0.0.0/7}
      - {host: anywhere.example, ports: [PORT]}
      - {host: everywhere.example, ports: [PORT], addresses: [0.0.0.0/0, "::/0"]}
      - {host: read-only.example, ports: [PORT], methods: [GET], addresses: 127.0.0.1/32}
      - {host: chat.example, ports: [PORT], methods: [GET], paths: ["/chat/**"], upgrade: true, addresses: 127.0.0.1/32}
      - {host: public-path.example, ports: [PORT], paths: ["/public/**"], addresses: 127.0.0.1/32}
      - {host: strict.example, ports: [PORT], tls: require, addresses: 127.0.0.1/32}
      - {host: auto.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: off.example, ports: [PORT], tls: "off", addresses: 127.0.0.1/32}
      - {host: plain-sight.example, ports: [PORT], tls: require, ech: refuse, addresses: 127.0.0.1/32}
      - {host: expired.example, ports: [PORT], expires: 2020-01-01, addresses: 127.0.0.1/32}
    deny:
      - {host: denied.wild.example}
  - id: spiffe://test.example/wide # everything that a range can open
    allow:
      - {cidr: 0.0.0.0/0, ports: ["1-65535"]}
      - {cidr: "::/0", ports: ["1-65535"]}
  - id: spiffe://test.example/exact # what one address opens
    allow:
      - {cidr: 127.0.0.1/32, ports: [PORT, LISTENER]}
      - {cidr: "::1/128", ports: [PORT]}
  - id: spiffe://test.example/strict # one address, for TLS
    allow:
      - {cidr: 127.0.0.1/32, ports: [PORT], tls: require}
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: elsewhere.example, ports: [1], addresses: 127.0.0.1/32}
  - id: spiffe://test.example/watched # the same, observed
    mode: observe
    observe_until: 9999-01-01
    allow:
      - {cidr: 127.0.0.1/32, ports: [PORT], tls: require}
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: elsewhere.example, ports: [1], addresses: 127.0.0.1/32}
      - {host: strict.example, ports: [PORT], tls: require, addresses: 127.0.0.1/32}
    deny:
      - {host: "**.denied.example"}
  - id: spiffe://test.example/mapped # the same in another spelling
    allow:
      - {cidr: "::ffff:127.0.0.1/128", ports: [PORT]}
  - id: spiffe://test.example/fenced # a name, but not into a range
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
    deny:
      - {cidr: 127.0.0.0/8}
  - id: spiffe://test.example/unopened # a name, but not its address
    allow:
      - {host: allowed.example, ports: [PORT]}
  - id: spiffe://test.example/ns/a
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
  - id: spiffe://test.example/ns/one/*
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
  - id: spiffe://test.example/sidecar
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
  - id: spiffe://test.example/legacy
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
quarantine:
  - id: spiffe://test.example/legacy
    reason: INC-77
`
