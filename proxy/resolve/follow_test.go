package resolve

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// anywhere returns an asker that may be led to every name.
func anywhere() Asker {
	return Asker{Follow: func(allowlist.Host) bool { return true }}
}

// lookupFor does what lookup does, for an asker.
func lookupFor(t *testing.T, r *Resolver, a Asker, name string, typ uint16) string {
	t.Helper()
	ctx, cancel := newContext(t)
	defer cancel()
	answer, err := r.Lookup(ctx, a, question(t, name, typ))
	return describe(t, answer, err)
}

const outerSOA = "example. 60 IN SOA ns.example. admin.example. 1 2 3 4 60"

// split returns a resolver with two servers: in for internal.example, and out for all
// other names.
func split(t *testing.T, cfg Config, outer, inner func(asked) answer) (r *Resolver, out, in *server) {
	t.Helper()
	out, in = newServer(t, outer), newServer(t, inner)
	cfg.Groups = []Group{{Suffixes: []allowlist.Host{host(t, "internal.example")}, Servers: []Server{{Addr: in.addr}}}}
	return newResolver(t, cfg, out), out, in
}

// TestTargetsOfAliasesAreLookedUp checks that the servers for the target of an alias are asked
// for it, whatever the servers for the alias say about it.
func TestTargetsOfAliasesAreLookedUp(t *testing.T) {
	const alias = "www.example. 60 IN CNAME db.internal.example."
	for name, outer := range map[string]answer{
		"the alias alone":           {records: []string{alias}},
		"with a referral":           {records: []string{alias, "--", "internal.example. 60 IN NS ns.internal.example."}},
		"that there is no name":     {records: []string{alias, "--", outerSOA}, code: dns.RcodeNameError},
		"no name, without SOA":      {records: []string{alias}, code: dns.RcodeNameError},
		"that there is no data":     {records: []string{alias, "--", outerSOA}},
		"a record of another name":  {records: []string{"x.example. 60 IN A 192.0.2.66", alias}},
		"over two aliases":          {records: []string{"mid.example. 60 IN CNAME db.internal.example.", "www.example. 60 IN CNAME mid.example."}},
		"the target's name, signed": {records: []string{alias, "www.example. 60 IN TXT x"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, out, in := split(t, Config{}, always(outer), addresses("10.0.0.7"))
			check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "10.0.0.7 from upstream")
			check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "10.0.0.7 from cache")
			check(t, lookupFor(t, r, anywhere(), "db.internal.example", dns.TypeA), "10.0.0.7 from cache")
			check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeAAAA), "NOERROR from upstream")
			out.wasAsked(t, "udp A www.example", "udp AAAA www.example")
			in.wasAsked(t, "udp A db.internal.example", "udp AAAA db.internal.example")
		})
	}
	t.Run("what the target's own servers say counts", func(t *testing.T) {
		r, _, _ := split(t, Config{}, always(answer{records: []string{alias}}), always(answer{code: dns.RcodeNameError, records: []string{"--", "internal.example. 60 IN SOA a. b. 1 2 3 4 60"}}))
		check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "NXDOMAIN from upstream")
		check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "NXDOMAIN from cache")
	})
	t.Run("a whole answer counts as it is", func(t *testing.T) {
		r, _, in := split(t, Config{}, always(answer{records: []string{alias, "db.internal.example. 60 IN A 192.0.2.9"}}), addresses("10.0.0.7"))
		check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "192.0.2.9 from upstream")
		in.wasAsked(t)
	})
	t.Run("of one group that there is no name", func(t *testing.T) {
		r, out, _ := split(t, Config{}, always(answer{code: dns.RcodeNameError, records: []string{"www.example. 60 IN CNAME gone.example.", "--", outerSOA}}), nil)
		check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "NXDOMAIN from upstream")
		out.wasAsked(t, "udp A www.example")
	})
	t.Run("by the same servers", func(t *testing.T) {
		r, out, _ := split(t, Config{}, func(q asked) answer {
			if q.name == "www.example" {
				return answer{records: []string{"www.example. 60 IN CNAME 1.0/25.example."}}
			}
			return answer{records: []string{"1.0/25.example. 60 IN A 192.0.2.1"}}
		}, nil)
		check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "192.0.2.1 from upstream")
		out.wasAsked(t, "udp A 1.0/25.example", "udp A www.example")
	})
	t.Run("to what is in the table of hosts, and to localhost", func(t *testing.T) {
		cfg := Config{Hosts: map[allowlist.Host][]netip.Addr{host(t, "own.example"): addrs("10.0.0.9")}}
		r, _, _ := split(t, cfg, func(q asked) answer {
			target := strings.Replace(q.name, "to-", "", 1)
			return answer{code: dns.RcodeNameError, records: []string{q.name + ". 60 IN CNAME " + target + ".", "--", outerSOA}}
		}, nil)
		check(t, lookupFor(t, r, anywhere(), "to-own.example", dns.TypeA), "10.0.0.9 from upstream")
		check(t, lookupFor(t, r, anywhere(), "to-localhost", dns.TypeA), "127.0.0.1 from upstream")
	})
}

// TestAliasesAreFollowedWithinBounds checks that the number of aliases that are followed
// and the time for it are bounded, and that a loop ends.
func TestAliasesAreFollowedWithinBounds(t *testing.T) {
	t.Run("a chain without an end", func(t *testing.T) {
		n := 0
		out := newServer(t, func(q asked) answer {
			n++
			return answer{records: []string{fmt.Sprintf("%s. 60 IN CNAME n%d.example.", q.name, n)}}
		})
		check(t, lookupFor(t, newResolver(t, Config{}, out), anywhere(), "www.example", dns.TypeA), "resolve-failed")
		if got := len(out.questions()); got != 17 {
			t.Errorf("%d questions", got)
		}
	})
	t.Run("a circle", func(t *testing.T) {
		out := newServer(t, func(q asked) answer {
			next := map[string]string{"www.example": "a.example", "a.example": "b.example", "b.example": "a.example"}
			return answer{records: []string{q.name + ". 60 IN CNAME " + next[q.name] + "."}}
		})
		r := newResolver(t, Config{}, out)
		check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "resolve-failed")
		out.wasAsked(t, "udp A a.example", "udp A b.example", "udp A www.example")
	})
	t.Run("a silent end", func(t *testing.T) {
		r, _, _ := split(t, Config{}, always(answer{records: []string{"www.example. 60 IN CNAME db.internal.example."}}), always(answer{silent: true}))
		r.impatient(20 * time.Millisecond)
		_, err := r.Lookup(t.Context(), anywhere(), question(t, "www.example", dns.TypeA))
		check(t, describe(t, Answer{}, err), "resolve-timeout")
		if got, want := FailureOf(err).Detail, "alias db.internal.example: server "; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "(udp): no answer in time") {
			t.Errorf("detail %q, want %q", got, want)
		}
	})
	t.Run("the time of one look-up for all", func(t *testing.T) {
		r, out, in := split(t, Config{}, always(answer{records: []string{"www.example. 60 IN CNAME db.internal.example."}}), addresses("10.0.0.7"))
		check(t, lookup(t, r, "www.example", dns.TypeA), "NOERROR from upstream")
		r.flights.life = time.Nanosecond // the time is over when the alias is known
		_, err := r.Lookup(t.Context(), anywhere(), question(t, "www.example", dns.TypeA))
		check(t, describe(t, Answer{}, err), "resolve-timeout")
		check(t, FailureOf(err).Detail, "alias db.internal.example: server "+in.addr.String()+" (udp): no answer in time")
		out.wasAsked(t, "udp A www.example")
		in.wasAsked(t)
	})
	t.Run("the caller's time", func(t *testing.T) {
		r, _, in := split(t, Config{}, always(answer{records: []string{"www.example. 60 IN CNAME db.internal.example."}}), always(answer{silent: true}))
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			in.await(t, 1)
			cancel()
		}()
		_, err := r.Lookup(ctx, anywhere(), question(t, "www.example", dns.TypeA))
		check(t, describe(t, Answer{}, err), "resolve-failed")
	})
}

// TestOnlyAllowedAliasesAreAskedFor checks that only targets of aliases are looked up
// that the caller's policy allows, and that what is cached for one caller shows others
// no more than their policy allows.
func TestOnlyAllowedAliasesAreAskedFor(t *testing.T) {
	outer := func(q asked) answer {
		target := map[string]string{"special.example": "printer.local", "private.example": "1.2.0.192.in-addr.arpa"}[q.name]
		if target == "" {
			target = "db.internal.example"
		}
		return answer{records: []string{q.name + ". 60 IN CNAME mid.example.", "mid.example. 60 IN CNAME " + target + "."}}
	}
	r, out, in := split(t, Config{}, outer, addresses("10.0.0.7"))
	inspect, _, inspected := split(t, Config{Inspect: true}, outer, addresses("10.0.0.7"))
	free := decide(t, "www.example", []string{"www.example"}, nil)
	last := decide(t, "www.example", []string{"www.example"}, []string{"**.internal.example"})
	first := decide(t, "www.example", []string{"www.example"}, []string{"mid.example"})
	check(t, resolveFor(t, r, last), "denied-by-rule")
	check(t, resolveFor(t, r, first), "denied-by-rule")
	in.wasAsked(t)
	check(t, resolveFor(t, r, free), "10.0.0.7")
	check(t, resolveFor(t, r, last), "denied-by-rule")
	check(t, resolveFor(t, r, first), "denied-by-rule")
	check(t, resolveFor(t, r, free), "10.0.0.7")
	in.wasAsked(t, "udp A db.internal.example", "udp AAAA db.internal.example")
	out.wasAsked(t, "udp A www.example", "udp AAAA www.example")

	check(t, resolveFor(t, inspect, free), "not-on-allowlist")
	check(t, resolveFor(t, inspect, decide(t, "www.example", []string{"www.example", "mid.example"}, nil)), "not-on-allowlist")
	inspected.wasAsked(t)
	check(t, resolveFor(t, inspect, decide(t, "www.example", []string{"www.example", "mid.example", "*.internal.example"}, nil)), "10.0.0.7")

	for name, target := range map[string]string{"special.example": "printer.local", "private.example": "1.2.0.192.in-addr.arpa"} {
		_, err := r.Resolve(t.Context(), decide(t, name, []string{name}, nil))
		check(t, describe(t, Answer{}, err), "resolve-failed")
		check(t, allowlist.DetailOf(err), "an alias leads to a special name, which no rule allows: "+target)
		check(t, lookup(t, r, name, dns.TypeA), "NOERROR from cache") // this asker may not follow an alias
	}
	out.wasAsked(t, "udp A private.example", "udp A special.example", "udp A www.example", "udp AAAA private.example", "udp AAAA special.example", "udp AAAA www.example")
}

// TestSpecialNamesNeedARule checks that only an asker with a rule for a special
// name is led to it, whoever has asked before.
func TestSpecialNamesNeedARule(t *testing.T) {
	for name, aliases := range map[string]map[string]string{
		"at the end":    {"www.example": "printer.local"},
		"on the way":    {"www.example": "printer.local", "printer.local": "db.internal.example"},
		"behind others": {"www.example": "mid.example", "mid.example": "printer.local"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _, _ := split(t, Config{}, func(q asked) answer {
				if target := aliases[q.name]; target != "" {
					return answer{records: []string{q.name + ". 60 IN CNAME " + target + "."}}
				}
				return answer{records: addressRecords(q, "10.0.0.7")}
			}, addresses("10.0.0.7"))
			free, bound := decide(t, "www.example", []string{"www.example", "printer.local"}, nil), decide(t, "www.example", []string{"www.example"}, nil)
			for range 2 {
				check(t, resolveFor(t, r, free), "10.0.0.7")
				check(t, resolveFor(t, r, bound), "resolve-failed")
			}
		})
	}
}

// TestOneQuestionForAllAliases checks that many callers at the same time cause one
// question for each name.
func TestOneQuestionForAllAliases(t *testing.T) {
	const n = 40
	r, out, in := split(t, Config{}, always(answer{records: []string{"www.example. 60 IN CNAME db.internal.example."}}), addresses("10.0.0.7"))
	var asking sync.WaitGroup
	for range n {
		asking.Go(func() {
			if got := lookupFor(t, r, anywhere(), "www.example", dns.TypeA); !strings.HasPrefix(got, "10.0.0.7 from ") {
				t.Error(got)
			}
		})
	}
	asking.Wait()
	out.wasAsked(t, "udp A www.example")
	in.wasAsked(t, "udp A db.internal.example")
}

// TestJoinedAnswersInTheCache checks that joined answers have the shortest life of their
// parts, are served when the servers for either part fail, and are flushed with their name.
func TestJoinedAnswersInTheCache(t *testing.T) {
	q, target := question(t, "www.example", dns.TypeA), question(t, "db.internal.example", dns.TypeA)
	var fails atomic.Bool
	r, out, _ := split(t, Config{}, always(answer{records: []string{"www.example. 100 IN CNAME db.internal.example."}}), func(q asked) answer {
		if fails.Load() {
			return answer{code: dns.RcodeServerFailure}
		}
		return answer{records: []string{q.name + ". 40 IN A 10.0.0.7"}}
	})
	before := time.Now()
	check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "10.0.0.7 from upstream")
	if a, ok := r.Cached(q, before.Add(39*time.Second)); !ok || a.TTL(time.Now().Add(10*time.Second)) > 30*time.Second {
		t.Errorf("%v, %v", a, ok)
	}
	if _, ok := r.Cached(q, time.Now().Add(40*time.Second)); ok {
		t.Error("it is kept for longer than the address")
	}
	r.older(t, q, time.Minute)
	r.older(t, target, time.Minute)
	fails.Store(true)
	check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "10.0.0.7 from stale")
	if _, ok := r.Cached(q, time.Now()); ok {
		t.Error("what is past its time is kept as if it were not")
	}
	if n := r.Flush(q.Name); n != 1 {
		t.Errorf("%d answers are forgotten", n)
	}
	check(t, lookupFor(t, r, anywhere(), "www.example", dns.TypeA), "10.0.0.7 from stale")
	out.wasAsked(t, "udp A www.example", "udp A www.example", "udp A www.example")
}

// TestAliasTargetsCountAsQuestionsNotAsNames checks that targets of aliases do not count as names,
// because the caller has not chosen them.
func TestAliasTargetsCountAsQuestionsNotAsNames(t *testing.T) {
	r, _, in := split(t, Config{Names: 2}, func(q asked) answer {
		return answer{records: []string{q.name + ". 60 IN CNAME n-" + strings.Split(q.name, ".")[0] + ".internal.example."}}
	}, addresses("10.0.0.7"))
	a := anywhere()
	a.Wildcard = "**.wild.example"
	for _, name := range []string{"a.wild.example", "b.wild.example"} {
		check(t, lookupFor(t, r, a, name, dns.TypeA), "10.0.0.7 from upstream")
	}
	check(t, lookupFor(t, r, a, "c.wild.example", dns.TypeA), "name-budget")
	for _, typ := range []uint16{dns.TypeAAAA, dns.TypeTXT, dns.TypeHTTPS, dns.TypeMX, dns.TypeSRV, dns.TypeCAA, dns.TypeNS, dns.TypeSOA} {
		check(t, lookupFor(t, r, a, "a.wild.example", typ), "NOERROR from upstream")
	}
	if n := len(in.questions()); n != 10 { // with the ten for the names, these are all that may be sent
		t.Errorf("%d questions for aliases", n)
	}
	check(t, lookupFor(t, r, a, "b.wild.example", dns.TypeTXT), "name-budget")
}
