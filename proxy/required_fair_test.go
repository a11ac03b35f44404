package proxy_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestOneIdentitysDenialsRefuseNobody sends denied requests on 1,500 connections of one
// identity under required records, with a sink that takes a batch only from time to time.
// Allowed requests of another identity must always be answered with 200.
func TestOneIdentitysDenialsRefuseNobody(t *testing.T) {
	const flood, rounds = 1500, 5
	e := startEvidence(t, audit.Config{Required: true, Queue: 512}, &evidence{stuck: make(chan struct{})})
	e.lossy = true
	g := newGateway(t, options{evidence: e, slots: 2 * flood})
	conns := make([]*caller, flood)
	for i := range conns {
		conns[i] = g.callPlain(t)
	}
	made := func(n uint64) {
		t.Helper()
		for end := time.Now().Add(patience); e.recorder.Stats().Sinks[0].Made < n; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("records are missing: %+v", e.recorder.Stats())
			}
		}
	}
	for _, c := range conns {
		c.send(t, connectTo("secret.example:443"))
	}
	made(flood)
	for i := range rounds {
		before := e.recorder.Stats().Sinks[0].Made
		c := g.call(t, "builder")
		c.send(t, connectTo(g.at("allowed.example")))
		conn := g.origin.next(t)
		made(before + 1)
		answered := make(chan answer, 1)
		go func() { answered <- c.answer(t) }()
		for waiting := true; waiting; {
			select {
			case e.stuck <- struct{}{}: // lets the sink take one more batch
			case a := <-answered:
				if waiting = false; a.status != 200 {
					t.Errorf("round %d: answered %s", i, a.phrase)
				}
			}
		}
		_ = conn.Close()
		_ = c.Close()
	}
	for _, c := range conns {
		_ = c.Close()
	}
	close(e.stuck)
}
