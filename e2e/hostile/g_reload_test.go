package hostile

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
)

func reloadRows(program *program) []row {
	real := func(run func(t *testing.T, p *process)) func(*testing.T, *gateway) {
		return func(t *testing.T, _ *gateway) {
			t.Helper()
			run(t, program.start(t, func(p *process) string { return p.allowing("allowed.example") }))
		}
	}
	return []row{
		{"G1", "a policy that is invalid, cut short, empty, unreadable or deleted", "the last good one stays in force; one record, one error in the log, one count in the metric", []scenario{
			{name: "one after the other", only: noWire, run: real(wrongFiles)},
		}},
		{"G2", "a rename over the file, the symlink swap of a ConfigMap, an editor's backup, a truncation and a slow write", "exactly one new generation each", []scenario{
			{name: "one after the other", only: noWire, run: real(waysToWrite)},
		}},
		{"G3", "1,000 changes a second", "the gateway goes on, and the last policy is in force at the end", []scenario{{name: "renames", only: noWire, run: real(storm)}}},
		{"G4", "a new policy while requests are under way", "one generation decides the whole request, and the record names it", []scenario{{name: "policies that take turns", run: oneGeneration}}},
		{"G5", "a policy that no longer allows a tunnel", "new requests are denied at once, and open tunnels end", []scenario{{name: "allow, then deny", run: revoked}}},
		{"G6", "the date of a rule passes, while the name is looked up or the tunnel is open", "denied from that time on, although the policy is the same; the tunnel ends", []scenario{
			{name: "while the name is looked up", run: datedDial},
			{name: "while the tunnel is open", run: datedTunnel},
		}},
		{"G7", "the caller's certificate expires during its tunnel", "the tunnel goes on, or ends where the configuration says so; new requests need a new one", []scenario{
			{name: "and the tunnel goes on", run: func(t *testing.T, g *gateway) { expires(t, g, false) }},
			{name: "and the tunnel ends", run: func(t *testing.T, g *gateway) { expires(t, g, true) }},
		}},
		{"G8", "the clock is set forward or back over a date of the policy", "the clock's new time decides, not the time that has passed", []scenario{{name: "forward and back", only: noWire, run: clockSteps}}},
		{"G9", "a policy, a quarantine or the end of the gateway that comes while an origin has a plain request, whole or in part", "502 `cut-off`, recorded as failed with what ended it: 403 and 503 are only for requests that were not sent", []scenario{
			{name: "a policy that forbids it", run: func(t *testing.T, g *gateway) { cutOff(t, g, "revoked") }},
			{name: "a quarantine", run: func(t *testing.T, g *gateway) { cutOff(t, g, "quarantined") }},
			{name: "the end of the time to drain", run: func(t *testing.T, g *gateway) { cutOff(t, g.another(t, options{}), "drain") }},
		}},
	}
}

// wrongFiles makes the policy unusable, in one way after the other.
func wrongFiles(t *testing.T, p *process) {
	p.inForce(t, 1)
	good := p.allowing("allowed.example")
	for i, change := range []func(){
		func() { p.replace(t, "policy/policy.yaml", "version: 1\nidentites: []\n") },
		func() { p.replace(t, "policy/policy.yaml", good[:len(good)/2]) },
		func() { p.replace(t, "policy/policy.yaml", "") },
		func() {
			_ = os.Remove(p.path("policy/policy.yaml"))
			if err := os.Mkdir(p.path("policy/policy.yaml"), 0o700); err != nil { // unreadable even for root
				t.Fatal(err)
			}
		},
		func() { _ = os.RemoveAll(p.path("policy")) },
	} {
		change()
		r := p.next(t, audit.EventPolicyReload)
		if !strings.HasPrefix(r.Detail, "refused: ") {
			t.Errorf("change %d: record %+v, want it refused", i, r)
		}
		if err := p.running.Stderr.Until(patience, func(text string) bool { return strings.Count(text, "the last good one stays") == i+1 }); err != nil {
			t.Fatalf("the error in the log: %v", err)
		}
		if got := p.status(t, "allowed.example"); got != 200 {
			t.Errorf("change %d: the last good policy answers %d", i, got)
		}
		if r := p.next(t, audit.EventDecision); r.Generation != 1 {
			t.Errorf("change %d: decided by generation %d", i, r.Generation)
		}
	}
	if text := p.metrics(t); !strings.Contains(text, `egress_policy_reloads_total{result="refused"} 5`) {
		t.Errorf("the metric does not count 5 refused policies:\n%s", text)
	}
}

// waysToWrite replaces the policy in the ways that people and tools use.
func waysToWrite(t *testing.T, p *process) {
	p.inForce(t, 1)
	file := "policy/policy.yaml"
	hosts := []string{"second.example", "allowed.example"}
	for i, change := range []func(text string){
		func(text string) { p.replace(t, file, text) },
		func(text string) { // as an editor does
			p.rename(t, p.path(file), p.path(file+"~"))
			p.write(t, file, text)
		},
		func(text string) { // slowly and in place
			f, err := os.OpenFile(p.path(file), os.O_TRUNC|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			for part := range strings.SplitSeq(text, "example") {
				if _, err := f.WriteString(part + "example"); err != nil {
					t.Fatal(err)
				}
				<-time.After(10 * time.Millisecond)
			}
			_ = f.Truncate(int64(len(text)))
			_ = f.Close()
		},
		func(text string) { // another directory in the place of the old one
			p.write(t, "next/policy.yaml", text)
			p.rename(t, p.path("policy"), p.path("old"))
			p.rename(t, p.path("next"), p.path("policy"))
		},
		func(text string) { // as in a ConfigMap, where the file is a link through ..data
			p.write(t, "policy/..1/policy.yaml", text)
			p.link(t, "..1", "policy/..data")
			p.link(t, "..data/policy.yaml", "policy/.link")
			p.rename(t, p.path("policy/.link"), p.path(file))
		},
		func(text string) { // the swap of a ConfigMap, which does not name the file
			p.write(t, "policy/..2/policy.yaml", text)
			p.link(t, "..2", "policy/..data_tmp")
			p.rename(t, p.path("policy/..data_tmp"), p.path("policy/..data"))
		},
	} {
		host := hosts[i%2]
		change(p.allowing(host))
		p.inForce(t, uint64(i+2))
		if got := p.status(t, host); got != 200 {
			t.Errorf("change %d: what it allows is answered %d", i, got)
		}
		if got := p.status(t, hosts[(i+1)%2]); got != 403 {
			t.Errorf("change %d: what it no longer allows is answered %d", i, got)
		}
	}
}

// storm replaces the policy a thousand times within about a second.
func storm(t *testing.T, p *process) {
	p.inForce(t, 1)
	const changes = 1000
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range changes {
		p.replace(t, "policy/policy.yaml", p.allowing(fmt.Sprintf("h%d.example", i)))
		<-tick.C
	}
	p.replace(t, "policy/policy.yaml", p.allowing("second.example"))
	var last uint64
	for end := time.Now().Add(patience); p.status(t, "second.example") != 200; {
		if time.Now().After(end) {
			t.Fatal("the last policy does not come into force")
		}
		p.next(t, audit.EventDecision)
	}
	for r := p.next(t, audit.EventDecision); r.Verdict != "allow"; r = p.next(t, audit.EventDecision) {
	}
	for _, r := range p.all(t, p.read(t, "records.jsonl")) {
		if r.Event != string(audit.EventPolicyReload) {
			continue
		}
		if !strings.HasPrefix(r.Detail, "closed ") || r.Generation != last+1 {
			t.Fatalf("record %+v behind generation %d", r, last)
		}
		last = r.Generation
	}
	if last < 2 || last > changes+2 {
		t.Errorf("%d generations", last)
	}
}

// oneGeneration switches between two policies, each of which allows a different name. A
// mix of the two would give other answers than those that are accepted here.
func oneGeneration(t *testing.T, g *gateway) {
	g = g.another(t, options{})
	text := func(host string) string {
		return g.fill("version: 1\nidentities:\n  - id: " + id("builder") + "\n    allow: [{host: " + host + ".wild.example, ports: [PORT], addresses: 127.0.0.1/32}]\n")
	}
	g.put(t, text("left")) // replaces the gateway's first policy, which allows both names
	var flips atomic.Int64
	done := make(chan struct{})
	var flipping sync.WaitGroup
	flipping.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
				g.put(t, text([]string{"right", "left"}[i%2]))
				flips.Add(1)
			}
		}
	})
	defer flipping.Wait()
	defer close(done)
	odd := map[bool]string{}
	for i := 0; i < 60 || len(odd) < 2 && i < 6000; i++ { // on a busy machine few are answered 200
		host := []string{"left", "right"}[i%2]
		c := g.call(t, "builder")
		c.send(t, connectTo(g.at(host+".wild.example")))
		got, err := c.tryAnswer() // there is no answer if the other policy comes while it is written
		_, reset := errors.AsType[*resetError](err)
		if err != nil && !reset && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("instead of an answer: %v", err)
		}
		r := g.next(t, audit.EventDecision)
		if got.status != r.Status || (got.status == 200) != (r.Verdict == "allow") {
			t.Errorf("answered %s, record %+v", got.phrase, r)
		}
		if got.status == 200 { // the parity of the generation must be that of the policy which allows this host
			if other, ok := odd[r.Generation%2 == 1]; ok && other != host {
				t.Errorf("generation %d allowed %s and %s", r.Generation, other, host)
			}
			odd[r.Generation%2 == 1] = host
		}
		_ = c.Close()
		if got.status == 200 {
			g.next(t, audit.EventTunnelClose)
		}
	}
	for len(g.origin.conns) > 0 {
		_ = (<-g.origin.conns).Close()
	}
	if len(odd) != 2 || flips.Load() < 10 {
		t.Errorf("the test shows little: %v of %d flips", odd, flips.Load())
	}
}

func revoked(t *testing.T, g *gateway) {
	c, o := g.open(t)
	g.put(t, strings.Replace(g.policy(), "host: allowed.example", "host: other.example", 1))
	c.gone(t)
	_ = o.Close()
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "revoked" || r.Reason != "not-on-allowlist" {
		t.Errorf("record %+v", r)
	}
	denied(allowlist.NotOnAllowlist, connectTo("allowed.example:PORT"), "allowed.example").run(t, g)
	g.put(t, g.policy())
}

// cutOff ends a POST of which the origin has read a part.
func cutOff(t *testing.T, g *gateway, how string) {
	c := g.call(t, "builder")
	c.send(t, g.fill("POST http://allowed.example:PORT/ HTTP/1.1\r\n"+host+"Content-Length: 10\r\n\r\nhalf"))
	var req *http.Request
	for req == nil { // a connection of an earlier case, which has ended, may come first
		o := g.origin.next(t)
		defer func() { _ = o.Close() }()
		if got, err := http.ReadRequest(bufio.NewReader(o)); err == nil {
			req = got
		}
	}
	if _, err := io.ReadFull(req.Body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	switch how {
	case "revoked":
		g.put(t, strings.Replace(g.policy(), "host: allowed.example", "host: other.example", 1))
		defer g.put(t, g.policy())
	case "quarantined":
		g.put(t, strings.Replace(g.policy(), "\nquarantine:\n", "\nquarantine:\n  - id: "+id("builder")+"\n    reason: INC-77\n", 1))
		defer g.put(t, g.policy())
	case "drain":
		g.running.Registry().Drain(0)
	}
	if got := c.answer(t); got.status != 502 || got.reason() != "cut-off" {
		t.Errorf("answered %s", got.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "fail" || r.Reason != "cut-off" || r.Detail != how || r.Status != 502 {
		t.Errorf("record %+v", r)
	}
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != how {
		t.Errorf("record %+v", r)
	}
}

// datedDial lets a rule expire while its name is looked up.
func datedDial(t *testing.T, g *gateway) {
	ends := time.Now().Add(1500 * time.Millisecond)
	g.put(t, g.until(ends))
	c := g.call(t, "builder")
	c.send(t, g.fill(connectTo("held.example:PORT"))+"early")
	<-g.names.asked
	<-time.After(time.Until(ends) + 2*time.Millisecond)
	g.names.answer <- struct{}{}
	if got := c.answer(t); got.reason() != "rule-expired" {
		t.Errorf("answered %s", got.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Reason != "rule-expired" || r.Verdict != "deny" {
		t.Errorf("record %+v", r)
	}
	c.gone(t)
	g.origin.sawNothing(t)
	g.put(t, g.policy())
}

func datedTunnel(t *testing.T, g *gateway) {
	g.put(t, g.until(time.Now().Add(1500*time.Millisecond)))
	c, o := g.open(t)
	c.gone(t)
	_ = o.Close()
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "revoked" || r.Reason != "rule-expired" {
		t.Errorf("record %+v", r)
	}
	g.put(t, g.policy())
}

func expires(t *testing.T, g *gateway, closing bool) {
	t.Helper()
	g = g.another(t, options{config: gw.Config{CloseAtExpiry: closing}})
	ends := time.Now().Truncate(time.Second).Add(2 * time.Second)
	certificate := g.ca.issue(t, withURIs(id("builder")), valid(-time.Hour, time.Until(ends)))
	c := g.callWith(t, certificate)
	if got := c.ask(t, g.fill(connectTo("allowed.example:PORT"))); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	o := g.origin.next(t)
	if closing {
		c.gone(t)
		_ = o.Close()
		if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "revoked" || r.Reason != "identity-expired" {
			t.Errorf("record %+v", r)
		}
		return
	}
	<-time.After(time.Until(ends.Add(1100 * time.Millisecond))) // times in certificates have whole seconds
	ask{
		shows: func(*testing.T, *gateway) tls.Certificate { return certificate },
		head:  connectTo("allowed.example:PORT"), host: "allowed.example", reason: allowlist.IdentityExpired,
	}.run(t, g)
	c.send(t, "still here")
	closeWrite(t, c.Conn)
	if got := readAll(t, o); got != "still here" {
		t.Errorf("the origin got %q", got)
	}
	_ = o.Close()
	c.ended(t)
	g.next(t, audit.EventTunnelClose)
}

// clockSteps decides requests at the times that a clock would show after it was set,
// because a test may not set the clock of the machine.
func clockSteps(t *testing.T, g *gateway) {
	ends := time.Now().Add(time.Hour)
	policy := load(t, g.until(ends))
	for _, step := range []time.Duration{0, 2 * time.Hour, 0, -24 * time.Hour, time.Hour} {
		d := policy.Decide(allowlist.Request{
			ID: spiffeid.RequireFromString(id("builder")), Proof: allowlist.ProofX509SVID,
			Dest: allowlist.Destination{Host: mustHost("allowed.example"), Port: g.origin.addr.Port()}, Time: ends.Add(step - time.Hour),
		})
		if want := step < time.Hour; d.Allowed() != want {
			t.Errorf("%v after now: allowed %v", step, d.Allowed())
		}
	}
}

// metrics returns the metrics of the program.
func (p *process) metrics(t *testing.T) string {
	t.Helper()
	resp, err := http.Get("http://" + p.logged(t, `listener=admin address=(\S+)`) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	defer http.DefaultClient.CloseIdleConnections()
	return readAll(t, resp.Body)
}
