package resolve

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// everything is a filter that allows every address and name.
type everything struct{}

// Addr implements Filter.
func (everything) Addr(netip.Addr) bool { return true }

// Hop implements Filter.
func (everything) Hop(allowlist.Host) bool { return true }

// older makes the cached answer to a question older.
func (r *Resolver) older(t *testing.T, q Question, by time.Duration) {
	t.Helper()
	e := r.cache.get(q)
	if e == nil {
		t.Fatalf("%v is not kept", q)
	}
	e.at, e.until = e.at.Add(-by), e.until.Add(-by)
	e.retry.Add(-int64(by))
}

// TestHowLongAnswersAreCached checks which answers are cached, and for how long.
func TestHowLongAnswersAreCached(t *testing.T) {
	const soa = "example. 40 IN SOA ns.example. admin.example. 1 2 3 4 400"
	rows := []struct {
		name  string
		first answer
		kept  time.Duration // 0 means that the answer is not cached
		want  string        // the answer from the cache, if it is kept
	}{
		{"an answer", answer{records: []string{"api.example. 50 IN A 192.0.2.1", "api.example. 20 IN A 192.0.2.2"}}, 20 * time.Second, "192.0.2.1 192.0.2.2 from cache"},
		{"an answer without time to live", answer{records: []string{"api.example. 0 IN A 192.0.2.1"}}, 0, ""},
		{"an answer with a long time to live, for an hour", answer{records: []string{"api.example. 99999 IN A 192.0.2.1"}}, time.Hour, "192.0.2.1 from cache"},
		{"no data, for the time of the SOA", answer{records: []string{"--", soa}}, 40 * time.Second, "NOERROR from cache"},
		{"no such name with a long SOA, for five minutes", answer{code: dns.RcodeNameError, records: []string{"--", strings.Replace(soa, "40", "4000", 1)}}, 300 * time.Second, "NXDOMAIN from cache"},
		{"no such name, without SOA", answer{code: dns.RcodeNameError}, 0, ""},
		{"a failure of a server", answer{code: dns.RcodeServerFailure}, 0, ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			s := newServer(t, func(q asked) answer {
				if q.n == 0 {
					return row.first
				}
				return answer{records: addressRecords(q, "192.0.2.9")}
			})
			r := newResolver(t, Config{}, s)
			q := question(t, "api.example", dns.TypeA)
			before := time.Now()
			lookup(t, r, "api.example", dns.TypeA)
			after := time.Now()
			if row.kept == 0 {
				if a, ok := r.Cached(q, before); ok && row.first.code == 0 {
					t.Errorf("it is kept: %v", a)
				}
				return
			}
			check(t, lookup(t, r, "api.example", dns.TypeA), row.want)
			if a, ok := r.Cached(q, before.Add(row.kept-time.Second)); !ok || a.TTL(after.Add(row.kept-time.Second)) > time.Second {
				t.Errorf("a second before its end: %v, %v", ok, a)
			}
			if _, ok := r.Cached(q, after.Add(row.kept)); ok {
				t.Error("it is kept longer")
			}
			r.older(t, q, row.kept)
			check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.9 from upstream")
		})
	}
}

// TestStaleAnswers checks that expired answers are served while no server answers.
func TestStaleAnswers(t *testing.T) {
	q := question(t, "api.example", dns.TypeA)
	newOne := func(t *testing.T, cfg Config, later answer) (*Resolver, *server) {
		t.Helper()
		s := newServer(t, func(q asked) answer {
			if q.n == 0 {
				return answer{records: addressRecords(q, "192.0.2.1")}
			}
			return later
		})
		r := newResolver(t, cfg, s).impatient(300 * time.Millisecond)
		check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from upstream")
		return r, s
	}
	t.Run("servers fail", func(t *testing.T) {
		r, s := newOne(t, Config{}, answer{code: dns.RcodeServerFailure})
		r.older(t, q, time.Minute)
		check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from stale")
		s.await(t, 3)
		check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from stale")
		if n := len(s.questions()); n != 3 {
			t.Errorf("asked %d times: servers that failed are asked again at once", n)
		}
		r.older(t, q, staleRetry)
		check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from stale")
		s.await(t, 5)
	})
	t.Run("for an hour", func(t *testing.T) {
		r, _ := newOne(t, Config{}, answer{code: dns.RcodeServerFailure})
		r.older(t, q, time.Minute+time.Hour)
		check(t, lookup(t, r, "api.example", dns.TypeA), "resolve-failed")
	})
	t.Run("not at all", func(t *testing.T) {
		r, _ := newOne(t, Config{ServeStale: -1}, answer{code: dns.RcodeServerFailure})
		r.older(t, q, time.Minute)
		check(t, lookup(t, r, "api.example", dns.TypeA), "resolve-failed")
	})
	t.Run("before a silent server's time is over", func(t *testing.T) {
		r, _ := newOne(t, Config{}, answer{silent: true})
		r.impatient(patience).staleAfter = time.Millisecond
		r.older(t, q, time.Minute)
		check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from stale")
	})
	t.Run("a server says otherwise", func(t *testing.T) {
		r, _ := newOne(t, Config{}, answer{code: dns.RcodeNameError})
		r.older(t, q, time.Minute)
		check(t, lookup(t, r, "api.example", dns.TypeA), "NXDOMAIN from upstream")
	})
	t.Run("in a response, for 30 seconds", func(t *testing.T) {
		r, _ := newOne(t, Config{}, answer{code: dns.RcodeServerFailure})
		r.older(t, q, time.Minute)
		a, err := r.Lookup(t.Context(), Asker{}, q)
		if err != nil || a.TTL(time.Now()) != 30*time.Second {
			t.Fatalf("%v, %v", a, err)
		}
		var m dns.Msg
		packet, _ := a.Append(nil, Reply{Question: []byte("\x03api\x07example\x00\x00\x01\x00\x01")}, time.Now(), everything{})
		if err := m.Unpack(packet); err != nil || len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 30 {
			t.Errorf("%v, %v", m, err)
		}
	})
}

// TestFailuresAreRemembered checks that servers are not asked again for a second after
// they have failed.
func TestFailuresAreRemembered(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		if q.n < 2 {
			return answer{code: dns.RcodeServerFailure}
		}
		return answer{records: addressRecords(q, "192.0.2.1")}
	})
	r := newResolver(t, Config{}, s)
	q := question(t, "api.example", dns.TypeA)
	for range 20 {
		check(t, lookup(t, r, "api.example", dns.TypeA), "resolve-failed")
		r.failures.put(q, r.failures.get(q, time.Time{}), time.Now()) // so that it is not forgotten on a slow machine
	}
	s.wasAsked(t, "udp A api.example", "udp A api.example")
	check(t, lookup(t, r, "other.example", dns.TypeA), "resolve-failed")
	r.Flush(q.Name)
	check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from upstream")

	f, now := newFailures(), time.Now()
	f.put(q, errNoHost, now)
	if f.get(q, now.Add(failureLife-1)) == nil || f.get(q, now.Add(failureLife)) != nil {
		t.Error("a failure is not remembered for a second")
	}
	for i := range maxFailures + 1 {
		f.put(question(t, fmt.Sprintf("n%d.example", i), dns.TypeA), errNoHost, now)
	}
	if f.recent.len() != maxFailures {
		t.Errorf("%d failures are remembered", f.recent.len())
	}
}

// TestFlush checks that Flush removes the answers for a name from the cache, and that an
// answer which a server owes meanwhile is not kept.
func TestFlush(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, func(q asked) answer {
		a := answer{records: addressRecords(q, "192.0.2.1", "2001:db8::1")}
		if q.name == "slow.example" && q.n == 0 {
			a.wait = release
		}
		return a
	})
	r := newResolver(t, Config{}, s).impatient(patience)
	for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
		lookup(t, r, "api.example", typ)
		lookup(t, r, "other.example", typ)
	}
	if n := r.Flush(host(t, "api.example")); n != 2 {
		t.Errorf("flushed %d answers, want 2", n)
	}
	check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from upstream")
	check(t, lookup(t, r, "other.example", dns.TypeA), "192.0.2.1 from cache")
	if n := r.Flush(host(t, "never.example")); n != 0 {
		t.Errorf("flushed %d answers of a name that nobody asked for", n)
	}

	var asking sync.WaitGroup
	asking.Go(func() { check(t, lookup(t, r, "slow.example", dns.TypeA), "192.0.2.1 from upstream") })
	s.await(t, len(s.questions())+1)
	r.Flush(host(t, "slow.example"))
	close(release)
	asking.Wait()
	check(t, lookup(t, r, "slow.example", dns.TypeA), "192.0.2.1 from upstream")
}

// TestOneQuestionForAll checks that a caller waits for the answer to a question that is
// with a server.
func TestOneQuestionForAll(t *testing.T) {
	const n = 40
	release := make(chan struct{})
	s := newServer(t, func(q asked) answer { return answer{wait: release, records: addressRecords(q, "192.0.2.1")} })
	r := newResolver(t, Config{}, s).impatient(patience)
	started := make(chan struct{}, n)
	var asking sync.WaitGroup
	for range n {
		asking.Go(func() {
			started <- struct{}{}
			if got := lookup(t, r, "api.example", dns.TypeA); got != "192.0.2.1 from upstream" && got != "192.0.2.1 from cache" {
				t.Error(got)
			}
		})
	}
	for range n {
		<-started
	}
	s.await(t, 1)
	close(release)
	asking.Wait()
	s.wasAsked(t, "udp A api.example")
}

// TestCallerWhoLeavesDoesNotFailTheOthers checks that the other callers get the answer if
// the first one gives up.
func TestCallerWhoLeavesDoesNotFailTheOthers(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, func(q asked) answer { return answer{wait: release, records: addressRecords(q, "192.0.2.1")} })
	r := newResolver(t, Config{}, s).impatient(patience)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := r.Lookup(ctx, Asker{}, question(t, "api.example", dns.TypeA))
		left <- err
	}()
	s.await(t, 1)
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(release)
	got := lookup(t, r, "api.example", dns.TypeA) // the question may be with a server still, or answered
	check(t, strings.TrimSuffix(strings.TrimSuffix(got, "upstream"), "cache"), "192.0.2.1 from ")
	s.wasAsked(t, "udp A api.example")
}

// TestTooManyQuestions checks that a look-up is refused when too many questions are with
// servers.
func TestTooManyQuestions(t *testing.T) {
	s := newServer(t, addresses("192.0.2.1"))
	r := newResolver(t, Config{}, s)
	for i := range maxFlights {
		q := question(t, fmt.Sprintf("h%d.example", i), dns.TypeA)
		r.flights.flying[q] = &flight{cancel: func() {}}
	}
	check(t, lookup(t, r, "api.example", dns.TypeA), "busy")
	clear(r.flights.flying)
	check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from upstream")
}

// TestPanicReachesTheWaitingCaller checks that a panic while a question is with a server
// is raised in the goroutine of the caller that waits. It would end the process in the
// goroutine of the question.
func TestPanicReachesTheWaitingCaller(t *testing.T) {
	r := newResolver(t, Config{})
	r.flights.run = func(context.Context, Question) (Answer, error) { panic("planted") }
	for name, ask := range map[string]func(){
		"Lookup":  func() { lookup(t, r, "api.example", dns.TypeA) },
		"Resolve": func() { resolve(t, r, "api.example") },
	} {
		func() {
			defer func() {
				if cause := fmt.Sprint(recover()); !strings.HasPrefix(cause, "planted\n") || !strings.Contains(cause, "lookup_test.go") {
					t.Errorf("%s: recovered %v, want the cause and its stack", name, cause)
				}
			}()
			ask()
			t.Errorf("%s returned", name)
		}()
	}
	if len(r.flights.flying) != 0 {
		t.Error("the flight never ended")
	}
}

// TestClose checks that Close ends a look-up, and that a closed resolver refuses others.
func TestClose(t *testing.T) {
	s := newServer(t, always(answer{silent: true}))
	r := newResolver(t, Config{}, s).impatient(patience)
	failed := make(chan error)
	go func() {
		_, err := r.Lookup(t.Context(), Asker{}, question(t, "api.example", dns.TypeA))
		failed <- err
	}()
	s.await(t, 1)
	r.Close()
	check(t, describe(t, Answer{}, <-failed), "resolve-failed")
	check(t, lookup(t, r, "api.example", dns.TypeA), "resolve-failed")
	r.Close()
}

// TestNameBudget checks the bound on distinct names below a wildcard, over both doors.
func TestNameBudget(t *testing.T) {
	s := newServer(t, addresses("192.0.2.1"))
	r := newResolver(t, Config{Names: 5}, s)
	other := decide(t, "x.wild.example", []string{"*.wild.example", "**.deep.example", "exact.example"}, nil)
	id := other.Holder()
	rule := other.Rule.Name()
	ask := func(a Asker, name string, typ uint16) string {
		t.Helper()
		got, err := r.Lookup(t.Context(), a, question(t, name, typ))
		return describe(t, got, err)
	}
	wild := Asker{Holder: id, Wildcard: rule}
	for _, name := range []string{"a.wild.example", "b.wild.example", "c.wild.example"} {
		check(t, ask(wild, name, dns.TypeA), "192.0.2.1 from upstream")
		check(t, ask(wild, name, dns.TypeAAAA), "NOERROR from upstream") // the name is counted already
	}
	connect := func(name string) string {
		t.Helper()
		dec := *other
		dec.Dest.Host = host(t, name)
		return resolveFor(t, r, &dec)
	}
	check(t, connect("d.wild.example"), "192.0.2.1") // counts once for both families
	check(t, connect("e.wild.example"), "192.0.2.1")
	packets := len(s.questions())
	for i := range 100 {
		check(t, ask(wild, fmt.Sprintf("n%d.wild.example", i), dns.TypeA), "name-budget")
		check(t, connect(fmt.Sprintf("m%d.wild.example", i)), "name-budget")
	}
	if n := len(s.questions()) - packets; n != 0 {
		t.Errorf("%d packets left beyond the bound", n)
	}
	check(t, ask(wild, "a.wild.example", dns.TypeMX), "NOERROR from upstream") // the name is counted already
	check(t, ask(Asker{Holder: id}, "n1.wild.example", dns.TypeA), "192.0.2.1 from upstream")
	check(t, ask(wild, "n1.wild.example", dns.TypeA), "192.0.2.1 from cache")
	check(t, ask(Asker{Holder: id, Wildcard: "another rule"}, "n2.wild.example", dns.TypeA), "192.0.2.1 from upstream")
	check(t, ask(Asker{Holder: shown("b"), Wildcard: rule}, "n3.wild.example", dns.TypeA), "192.0.2.1 from upstream")
	mapped := Asker{Holder: allowlist.HolderOf(id.ID(), allowlist.ProofSourceMap), Wildcard: rule}
	for i := range 5 { // the identity has another budget by source-map
		check(t, ask(mapped, fmt.Sprintf("f%d.wild.example", i), dns.TypeA), "192.0.2.1 from upstream")
	}
	check(t, ask(mapped, "f5.wild.example", dns.TypeA), "name-budget")
}

// TestMappedHoldersHaveTheirOwnNameBudget checks that mapped holders spend nothing of other
// holders' budgets, and the other way round, over both doors.
func TestMappedHoldersHaveTheirOwnNameBudget(t *testing.T) {
	r := newResolver(t, Config{Names: 3}, newServer(t, addresses("192.0.2.1")))
	dec := decide(t, "x.wild.example", []string{"*.wild.example"}, nil)
	forged := *dec
	forged.Proof = allowlist.ProofSourceMap
	n := 0
	spend := func(d *allowlist.Decision, want string) {
		t.Helper()
		n++
		asked := *d
		asked.Dest.Host = host(t, fmt.Sprintf("n%d.wild.example", n))
		check(t, resolveFor(t, r, &asked), want)
	}
	for _, d := range []*allowlist.Decision{&forged, dec} {
		for range 3 {
			spend(d, "192.0.2.1")
		}
		for range 100 {
			spend(d, "name-budget")
		}
	}
}

// TestNameBudgetOverTime checks that a name counts until a minute has passed since it was
// last looked up.
func TestNameBudgetOverTime(t *testing.T) {
	b, a, now := newBudgets(2), Asker{Wildcard: "w"}, time.Now()
	for i, row := range []struct {
		after time.Duration
		name  string
		want  bool
	}{
		{0, "a", true},
		{10 * time.Second, "b", true},
		{0, "c", false},
		{0, "a", true}, // counts for another minute
		{49 * time.Second, "c", false},
		{11 * time.Second, "c", true}, // b and the last a are a minute old
		{0, "b", true},
		{0, "a", false},
		{0, "d", false},
		{time.Minute, "d", true},
	} {
		now = now.Add(row.after)
		if got := b.admit(a, row.name, now); got != row.want {
			t.Errorf("row %d: %s is admitted: %v, want %v", i, row.name, got, row.want)
		}
	}
	if !b.admit(Asker{}, "z", now) {
		t.Error("a name that no wildcard allowed is counted")
	}
	for i := range maxBudgets + 10 {
		b.admit(Asker{Wildcard: fmt.Sprint(i)}, "x", now)
	}
	if b.sets.len() != maxBudgets || b.counted != maxBudgets {
		t.Errorf("%d rules with %d names are counted, want %d", b.sets.len(), b.counted, maxBudgets)
	}
	greedy := newBudgets(1000)
	greedy.most = 1000
	for i := range 1000 {
		greedy.admit(Asker{Wildcard: fmt.Sprint(i % 2)}, fmt.Sprint(i), now)
	}
	if greedy.sets.len() != 2 || greedy.counted != 1000 {
		t.Errorf("%d rules with %d names are counted", greedy.sets.len(), greedy.counted)
	}
	greedy.admit(Asker{Wildcard: "1"}, "one more", now)
	if greedy.sets.len() != 1 || greedy.counted != 501 {
		t.Errorf("%d rules with %d names are counted", greedy.sets.len(), greedy.counted)
	}
}

// TestOrigins checks the text of each origin of an answer.
func TestOrigins(t *testing.T) {
	var got []string
	for o := range OriginLocal + 2 {
		got = append(got, o.String())
	}
	if want := []string{"upstream", "cache", "stale", "local", "invalid"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
