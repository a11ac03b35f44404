package allowlist

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The policy of the benchmarks resembles a real one: a hundred rules for each identity,
// some of them wildcards and ranges, rules for everyone and for namespaces, and a few
// deny rules.
const (
	rulesPerIdentity = 100
	benchRequests    = 1 << 16 // enough to measure many paths through the policy
)

var benchTime = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

func benchIDText(i int) string {
	return fmt.Sprintf("spiffe://prod.example/ns/team-%d/sa/service-%d", i/10, i)
}

func benchEntry(i, rules int) Entry {
	e := Entry{Pattern: must(ParseIdentityPattern(benchIDText(i))), Owner: "team"}
	for r := range rules {
		rule := Rule{Name: "r", At: "policy.yaml:1"}
		switch r % 20 {
		case 17:
			rule.Host = must(ParseHostPattern(fmt.Sprintf("*.one-%d-%d.partner.example", i, r)))
		case 18:
			rule.Host = must(ParseHostPattern(fmt.Sprintf("**.many-%d-%d.partner.example", i, r)))
		case 19:
			rule.CIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i), byte(r), 0}), 24)
		default:
			rule.Host = must(ParseHostPattern(benchName(i, r)))
		}
		if r%50 == 49 {
			rule.Expires = benchTime.AddDate(1, 0, 0)
		}
		e.Allow = append(e.Allow, rule)
	}
	e.Deny = []Rule{
		{Name: "d", Host: must(ParseHostPattern(fmt.Sprintf("denied-%d.partner.example", i)))},
		{Name: "d", CIDR: netip.MustParsePrefix("20.200.0.0/16")},
	}
	return e
}

func benchName(i, r int) string { return fmt.Sprintf("api-%d-%d.partner.example", i, r) }

func benchSpec(rules int) (spec Spec, identities int) {
	identities = max(1, rules/rulesPerIdentity)
	for i := range identities {
		spec.Entries = append(spec.Entries, benchEntry(i, min(rules, rulesPerIdentity)))
	}
	for ns := 0; ns < identities; ns += 20 { // every second namespace
		e := Entry{Pattern: must(ParseIdentityPattern(fmt.Sprintf("spiffe://prod.example/ns/team-%d/**", ns/10)))}
		e.Allow = []Rule{{Name: "n", Host: must(ParseHostPattern(fmt.Sprintf("**.team-%d.internal.example", ns/10)))}}
		spec.Entries = append(spec.Entries, e)
	}
	everyone := Entry{Pattern: EveryonePattern(spiffeid.RequireTrustDomainFromString("prod.example"))}
	for _, host := range []string{"otel.observability.example", "*.time.example", "**.packages.example"} {
		everyone.Allow = append(everyone.Allow, Rule{Name: "e", Host: must(ParseHostPattern(host))})
	}
	spec.Entries = append(spec.Entries, everyone)
	return spec, identities
}

// benchQuestions returns requests of random identities. Each has a separate copy of the
// ID string, as if it had just been parsed from a certificate.
func benchQuestions(identities, rules int, host func(*rand.Rand, int, int) string) []Request {
	rng := rand.New(rand.NewPCG(1, 2))
	requests := make([]Request, benchRequests)
	for n := range requests {
		i := rng.IntN(identities)
		requests[n] = Request{
			ID:    spiffeid.RequireFromString(benchIDText(i)),
			Proof: ProofX509SVID,
			Dest:  must(ParseDestination(host(rng, i, rules) + ":443")),
			Time:  benchTime,
		}
	}
	return requests
}

func hitHost(rng *rand.Rand, i, rules int) string {
	switch r := rng.IntN(min(rules, rulesPerIdentity)); r % 20 {
	case 17:
		return fmt.Sprintf("h%d.one-%d-%d.partner.example", rng.IntN(9), i, r)
	case 18:
		return fmt.Sprintf("a.h%d.many-%d-%d.partner.example", rng.IntN(9), i, r)
	case 19:
		return fmt.Sprintf("20.%d.%d.%d", byte(i)%200, r, rng.IntN(256))
	default:
		return benchName(i, r)
	}
}

func missHost(rng *rand.Rand, i, rules int) string {
	return benchName(i, rules+rng.IntN(1000))
}

func deniedHost(_ *rand.Rand, i, _ int) string {
	return fmt.Sprintf("denied-%d.partner.example", i)
}

func BenchmarkDecide(b *testing.B) {
	for _, rules := range []int{10, 10_000, 1_000_000} {
		spec, identities := benchSpec(rules)
		policy := must(Compile(spec))
		for _, kind := range []struct {
			name string
			host func(*rand.Rand, int, int) string
		}{{"hit", hitHost}, {"miss", missHost}, {"deny", deniedHost}} {
			requests := benchQuestions(identities, rules, kind.host)
			b.Run(fmt.Sprintf("rules=%d/%s", rules, kind.name), func(b *testing.B) {
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					d := policy.Decide(requests[n%benchRequests])
					if d.Allowed() && kind.name == "deny" {
						b.Fatal("allowed")
					}
					n++
				}
			})
		}
	}
}

func BenchmarkCheckAddr(b *testing.B) {
	spec, identities := benchSpec(10_000)
	policy := must(Compile(spec))
	requests := benchQuestions(identities, 10_000, func(rng *rand.Rand, i, _ int) string { return benchName(i, 20*rng.IntN(5)) })
	decisions := make([]Decision, 0, 1024)
	for _, r := range requests[:1024] {
		decisions = append(decisions, policy.Decide(r))
	}
	for _, addr := range []string{"93.184.215.14:443", "[2606:4700::1]:443"} {
		ap := netip.MustParseAddrPort(addr)
		b.Run(addr, func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if err := decisions[n%len(decisions)].CheckAddr(ap); err != nil {
					b.Fatal(err)
				}
				n++
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, rules := range []int{10_000, 100_000} {
		spec, _ := benchSpec(rules)
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Compile(spec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkVersion computes the version of a policy. Compile does so once.
func BenchmarkVersion(b *testing.B) {
	for _, rules := range []int{10_000, 100_000} {
		spec, _ := benchSpec(rules)
		policy, err := Compile(spec)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				policy.canonicalVersion()
			}
		})
	}
}

// BenchmarkSizes parses targets of growing size and checks their paths. The time per byte
// must not grow with the size.
func BenchmarkSizes(b *testing.B) {
	pattern, err := ParsePathPattern("/public/**")
	if err != nil {
		b.Fatal(err)
	}
	for name, part := range map[string]string{"one-segment": "a", "segments": "/a", "dots": "/...", "escapes": "%41"} {
		for size := 1 << 10; size <= 64<<10; size *= 4 {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				target := "http://a.example/public/x" + strings.Repeat(part, size/len(part))
				b.SetBytes(int64(len(target)))
				for b.Loop() {
					url, err := ParseURL(target)
					if err != nil || CheckPath(url.Path) != nil || !pattern.matches(url.Path) {
						b.Fatal(err)
					}
				}
			})
		}
	}
	for name, part := range map[string]string{"host": "a.", "number": "1.", "address": "0:"} { // none of them is valid
		for size := 1 << 10; size <= 64<<10; size *= 4 {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				target := "http://" + strings.Repeat(part, size/len(part)) + "1/"
				b.SetBytes(int64(len(target)))
				for b.Loop() {
					if _, err := ParseURL(target); err == nil {
						b.Fatal("it is taken")
					}
				}
			})
		}
	}
}
