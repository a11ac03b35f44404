package resolve

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// TestQuestionsSentForAnIdentityAreBounded checks that no more questions are sent for an
// identity within a minute than its budget has, and that each question counts: for every
// name below a wildcard, over both doors, under every rule, and whatever the servers
// answer.
func TestQuestionsSentForAnIdentityAreBounded(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		switch q.name[0] {
		case 'f':
			return answer{code: dns.RcodeServerFailure}
		case 'n':
			return answer{code: dns.RcodeNameError} // without an SOA, so it is not cached
		case 'z':
			return answer{records: []string{q.name + ". 0 IN CNAME x.example."}}
		}
		return answer{}
	})
	const names = 8
	r := newResolver(t, Config{Names: names}, s)
	decision := decide(t, "x.wild.example", []string{"*.wild.example"}, nil)
	rules := []string{decision.Rule.Name(), "another rule", "*"}
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeTXT, dns.TypeSRV, dns.TypeMX}
	draw := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for range 400 {
		name := fmt.Sprintf("%c%d.wild.example", "fnze"[draw.IntN(4)], draw.IntN(2))
		r.Flush(host(t, name)) // as if the answer, or the failure, had expired
		if draw.IntN(4) == 0 {
			dec := *decision
			dec.Dest.Host = host(t, name)
			if resolveFor(t, r, &dec) == "name-budget" {
				refused++
			}
			continue
		}
		q := question(t, name, types[draw.IntN(len(types))])
		_, err := r.Lookup(t.Context(), Asker{Holder: decision.Holder(), Wildcard: rules[draw.IntN(len(rules))]}, q)
		if allowlist.ReasonOf(err) == allowlist.NameBudget {
			refused++
		}
	}
	got := 0
	for _, line := range s.questions() {
		if got += rounds; strings.Contains(line, " f") { // a question is sent twice to a server that fails
			got -= rounds - 1
		}
	}
	if want := rounds * names * questionsPerName; got != want || refused < 200 {
		t.Errorf("%d questions left, want %d; %d were refused", got/rounds, want/rounds, refused)
	}
	other := Asker{Holder: shown("b"), Wildcard: "*"}
	if _, err := r.Lookup(t.Context(), other, question(t, "e9.wild.example", dns.TypeA)); err != nil {
		t.Errorf("another identity: %v", err)
	}
	mapped := Asker{Holder: allowlist.HolderOf(decision.ID, allowlist.ProofSourceMap), Wildcard: "*"}
	if _, err := r.Lookup(t.Context(), mapped, question(t, "e7.wild.example", dns.TypeA)); err != nil {
		t.Errorf("the identity by its address: %v", err)
	}
	if _, err := r.Lookup(t.Context(), Asker{Holder: decision.Holder()}, question(t, "e8.wild.example", dns.TypeA)); err != nil {
		t.Errorf("a name that a rule names: %v", err)
	}
}

// TestQuestionsThatAreNotSentCostNothing checks that the budget pays nothing for an
// answer from the cache, a remembered failure, an old answer while servers fail, and a
// question that has been sent for another caller.
func TestQuestionsThatAreNotSentCostNothing(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, func(q asked) answer {
		switch q.name[0] {
		case 'f':
			return answer{code: dns.RcodeServerFailure}
		case 'w':
			return answer{wait: release, records: addressRecords(q, "192.0.2.1")}
		}
		return answer{records: addressRecords(q, "192.0.2.1")}
	})
	r := newResolver(t, Config{Names: 1}, s)
	r.budgets.limit = 10 // names; ten questions for each
	a := Asker{Holder: shown("a"), Wildcard: "*.wild.example"}
	ask := func(name string) error {
		_, err := r.Lookup(t.Context(), a, question(t, name, dns.TypeA))
		return err
	}
	left := func(what string, want int) {
		t.Helper()
		r.budgets.mu.Lock()
		defer r.budgets.mu.Unlock()
		d, ok := r.budgets.questions.get(a.Holder)
		if !ok {
			t.Fatal("nothing was counted")
		}
		if got := d.within(time.Since(r.budgets.begin)); got != want {
			t.Errorf("%s: %d questions are counted, want %d", what, got, want)
		}
	}
	for range 20 {
		_, _ = ask("e.wild.example"), ask("f.wild.example")
	}
	left("the cache and a failure", 2)
	q := question(t, "e.wild.example", dns.TypeA)
	old := r.cache.get(q)
	r.cache.put(q, old.msg, time.Now().Add(-10*time.Minute), r.cache.generation(q.Name))
	r.cache.get(q).retry.Store(time.Now().Add(time.Minute).UnixNano())
	for range 20 {
		if err := ask("e.wild.example"); err != nil {
			t.Error(err)
		}
	}
	left("an old answer", 2)
	packets := len(s.questions())

	somebody := Asker{Holder: shown("b"), Wildcard: "*.wild.example"}
	done := make(chan error)
	go func() {
		_, err := r.Lookup(t.Context(), somebody, question(t, "w.wild.example", dns.TypeA))
		done <- err
	}()
	s.await(t, packets+1)
	gone, cancel := context.WithCancel(t.Context())
	cancel() // so that no lookup waits
	for range 20 {
		if _, err := r.Lookup(gone, a, question(t, "w.wild.example", dns.TypeA)); err == nil {
			t.Error("there is an answer already")
		}
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	left("what is under way", 2)
}

// TestBudgetOfQuestionsOverTime checks that no minute, whenever it begins, has more
// questions than the bound, and that the whole bound is available after a minute without
// questions.
func TestBudgetOfQuestionsOverTime(t *testing.T) {
	const limit = 5
	draw := rand.New(rand.NewPCG(3, 4))
	var d questionWindow
	var at time.Duration
	var left []time.Duration
	for i := range 3000 {
		if i%500 == 499 {
			at += budgetWindow + budgetWindow/partsOfMinute
			if got := d.within(at); got != 0 {
				t.Errorf("%d are counted after a pause", got)
			}
		}
		at += time.Duration(draw.Int64N(int64(8 * time.Second)))
		if d.within(at) >= limit {
			continue
		}
		d.add()
		left = append(left, at)
		if n := len(left); n > limit && left[n-1]-left[n-1-limit] < budgetWindow {
			t.Fatalf("%d left within %v", limit+1, left[n-1]-left[n-1-limit])
		}
	}
	if len(left) < 500 {
		t.Errorf("only %d left in %v", len(left), at)
	}
}
