package limit

import (
	"fmt"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// most is larger than any budget of these tests.
const most = 100

// spending returns every method of Budgets that spends something of a holder's budgets.
// Each function reports whether there was something left.
func spending() map[string]func(*Budgets, *allowlist.Policy, allowlist.Holder) bool {
	lease := func(take func(*Budgets, *allowlist.Policy, allowlist.Holder) (*Lease, allowlist.Reason, Key)) func(*Budgets, *allowlist.Policy, allowlist.Holder) bool {
		return func(b *Budgets, p *allowlist.Policy, h allowlist.Holder) bool {
			l, reason, _ := take(b, p, h)
			return reason == allowlist.NoReason && l.Spend(1)
		}
	}
	return map[string]func(*Budgets, *allowlist.Policy, allowlist.Holder) bool{
		"Request":  func(b *Budgets, _ *allowlist.Policy, h allowlist.Holder) bool { return b.Request(h) },
		"Query":    func(b *Budgets, p *allowlist.Policy, h allowlist.Holder) bool { return b.Query(p, h) == NoKey },
		"Open":     lease((*Budgets).Open),
		"Exchange": lease((*Budgets).Exchange),
	}
}

// TestMappedHoldersHaveTheirOwnBudgets checks, for each method that spends and for own
// and shared budgets, that holders by source-map and holders by other proofs do not
// spend each other's budgets, also after another policy has come into force.
func TestMappedHoldersHaveTheirOwnBudgets(t *testing.T) {
	few := allowlist.Limits{Tunnels: 3, ConnectsPerSecond: 3, DNSPerSecond: 3, UploadPerHour: 3}
	for _, budgets := range []struct {
		name                    string
		byDefault, own, sharing allowlist.Limits
	}{
		{"by default", few, allowlist.Limits{}, allowlist.Limits{}},
		{"own", allowlist.Limits{}, few, allowlist.Limits{}},
		{"shared", allowlist.Limits{}, allowlist.Limits{}, few},
	} {
		for method, spend := range spending() {
			for _, applied := range []bool{false, true} {
				for _, forged := range []bool{true, false} {
					synctest.Test(t, func(t *testing.T) {
						b := NewBudgets(Config{Requests: 3, Identity: budgets.byDefault})
						p := policy(t, entry(t, "*", budgets.own, budgets.sharing))
						if applied {
							b.Apply(p)
						}
						spender := allowlist.HolderOf(id("a"), allowlist.ProofSourceMap)
						others := []allowlist.Holder{holder("a"), allowlist.HolderOf(id("a"), allowlist.ProofListener)}
						if !forged {
							spender, others = others[0], []allowlist.Holder{spender}
						}
						n := 0
						for n < most && spend(b, p, spender) {
							n++
						}
						if n != 3 {
							t.Fatalf("%s of %s, %s: %d times, want 3", method, fmt.Sprint(spender), budgets.name, n)
						}
						if b.Apply(p); spend(b, p, spender) {
							t.Errorf("%s of %v, %s: a policy gives what was spent back", method, spender, budgets.name)
						}
						for n := range 3 { // by both of others in turn, which share one budget
							if !spend(b, p, others[n%len(others)]) {
								t.Errorf("%s of %v, %s: %v has spent it", method, others, budgets.name, spender)
							}
						}
						if spend(b, p, others[0]) {
							t.Errorf("%s of %v, %s: there are two budgets", method, others, budgets.name)
						}
						if budgets.name == "shared" && method != "Request" && spend(b, p, allowlist.HolderOf(id("b"), allowlist.ProofSourceMap)) {
							t.Errorf("%s: another mapped identity has a share of its own", method)
						}
					})
				}
			}
		}
	}
}

// TestEveryMethodSpendsForAHolder checks that the table above contains every method of
// Budgets that spends, and that none of them takes an identity without its proof.
func TestEveryMethodSpendsForAHolder(t *testing.T) {
	budgets := reflect.TypeFor[*Budgets]()
	if budgets.NumMethod() < 5 {
		t.Fatalf("found only %d methods", budgets.NumMethod())
	}
	for method := range budgets.Methods() {
		holders := 0
		for in := range method.Type.Ins() {
			switch in {
			case reflect.TypeFor[allowlist.Holder]():
				holders++
			case reflect.TypeOf(id("a")):
				t.Errorf("%s takes an identity and not what shows it", method.Name)
			}
		}
		if _, ok := spending()[method.Name]; ok != (holders == 1) {
			t.Errorf("%s takes %d holders; in the table: %v", method.Name, holders, ok)
		}
	}
}

// TestMappedHoldersBeyondTheBound checks that mapped holders beyond the bound share a
// budget, and that other holders keep their own, however many addresses are forged.
func TestMappedHoldersBeyondTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{Requests: 2})
		time.Sleep(sweepEvery)
		mapped := func(n int) allowlist.Holder { return allowlist.HolderOf(id(fmt.Sprint(n)), allowlist.ProofSourceMap) }
		for n := range maxKeys {
			b.Request(mapped(n))
		}
		b.Request(mapped(maxKeys))
		b.Request(mapped(maxKeys + 1))
		if b.Request(mapped(maxKeys + 2)) {
			t.Error("a mapped holder beyond the bound has a budget of its own")
		}
		for range 2 {
			if !b.Request(holder(fmt.Sprint(maxKeys + 2))) {
				t.Error("a holder has no budget of its own, since there are many that are mapped")
			}
		}
	})
}
