package allowlist_test

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
)

const policyText = `version: 1
identities:
  - id: spiffe://prod.example/ns/ci/sa/builder
    owner: team-ci
    allow:
      - {name: packages, host: "*.packages.example"}
      - {name: database, host: db.example, ports: [5432], addresses: [10.20.0.0/16]}
`

// A policy is read once and decides every request. The decision is a value with the
// reason, which also checks each address that the name resolves to.
func Example() {
	policy, err := policyfile.Parse(policyfile.Options{}, map[string][]byte{"policy.yaml": []byte(policyText)})
	if err != nil {
		fmt.Println(err)
		return
	}
	builder := spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder")
	for _, target := range []string{"eu.packages.example:443", "db.example:443", "evil.example:443"} {
		dest, err := allowlist.ParseDestination(target)
		if err != nil {
			fmt.Println(err)
			return
		}
		decision := policy.Decide(allowlist.Request{ID: builder, Proof: allowlist.ProofX509SVID, Dest: dest, Time: time.Now()})
		if decision.Allowed() {
			fmt.Printf("%s: %s by rule %s\n", target, decision.Verdict, decision.Rule.Name())
		} else {
			fmt.Printf("%s: %s (%s), ask %s\n", target, decision.Verdict, decision.Reason, decision.Owner)
		}
	}

	// Output:
	// eu.packages.example:443: allow by rule packages
	// db.example:443: deny (port-not-allowed), ask team-ci
	// evil.example:443: deny (not-on-allowlist), ask team-ci
}

// An allowed name may resolve to an address that the policy should not open. Each address
// is checked before it is dialled.
func ExampleDecision_CheckAddr() {
	policy, err := policyfile.Parse(policyfile.Options{}, map[string][]byte{"policy.yaml": []byte(policyText)})
	if err != nil {
		fmt.Println(err)
		return
	}
	dest, err := allowlist.ParseDestination("eu.packages.example:443")
	if err != nil {
		fmt.Println(err)
		return
	}
	decision := policy.Decide(allowlist.Request{
		ID:    spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"),
		Proof: allowlist.ProofX509SVID, Dest: dest, Time: time.Now(),
	})
	for _, address := range []string{"93.184.215.14:443", "169.254.169.254:443"} {
		err := decision.CheckAddr(netip.MustParseAddrPort(address))
		if refused, ok := errors.AsType[*allowlist.AddrError](err); ok {
			fmt.Printf("%s: refused, since it is of the class %s\n", address, refused.Class)
			continue
		}
		fmt.Printf("%s: may be dialled\n", address)
	}

	// Output:
	// 93.184.215.14:443: may be dialled
	// 169.254.169.254:443: refused, since it is of the class metadata
}

// A denial can offer a rule that would allow the denied request, and no other request.
func ExampleDecision_Remedy() {
	policy, err := policyfile.Parse(policyfile.Options{}, map[string][]byte{"policy.yaml": []byte(policyText)})
	if err != nil {
		fmt.Println(err)
		return
	}
	dest, err := allowlist.ParseDestination("mirror.example:8443")
	if err != nil {
		fmt.Println(err)
		return
	}
	decision := policy.Decide(allowlist.Request{
		ID:    spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"),
		Proof: allowlist.ProofX509SVID, Dest: dest, Time: time.Now(),
	})
	rule := decision.Remedy(decision.Reason).Rule
	fmt.Println(rule.Host, rule.Ports[0])

	// Output:
	// mirror.example 8443
}
