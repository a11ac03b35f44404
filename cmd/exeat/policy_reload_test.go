package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
	"github.com/exeat-dev/exeat/proxy/watch"
)

func newTestReloader(path string) *policyReloader {
	g := &gateway{log: slog.New(slog.DiscardHandler), cfg: config.Config{Policy: []string{path}}}
	return g.newPolicyReloader()
}

// TestStartWhileThePolicyIsWritten starts when half of the policy is there: it
// is valid, and not what the writer means.
func TestStartWhileThePolicyIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := write(t, "policy.yaml", goodPolicy)
		whole := goodPolicy + "    deny:\n      - host: api.example\n"
		time.AfterFunc(20*time.Millisecond, func() {
			if err := os.WriteFile(path, []byte(whole), 0o600); err != nil {
				t.Error(err)
			}
		})
		r := newTestReloader(path)
		if err := r.first(t.Context()); err != nil {
			t.Fatal(err)
		}
		files, err := policyfile.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := r.policy.Version(), files.Version(); got != want {
			t.Errorf("started with version %s, want that of the whole, %s", got, want)
		}
	})
}

// TestStartWhileAWriterIsSlow starts when a writer has written half of the policy
// and keeps the file open, for longer than any two readings are apart.
func TestStartWhileAWriterIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := write(t, "policy.yaml", "")
		writer, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if watch.Writing([]string{path}, isPolicyFile) == "" {
			const missing = "this file system has no leases (fcntl F_SETLEASE), which tell who writes"
			if os.Getenv("CI") != "" {
				t.Fatal(missing)
			}
			t.Skip(missing)
		}
		put := func(text string) {
			if _, err := writer.WriteString(text); err != nil {
				t.Error(err)
			}
		}
		put(goodPolicy)
		time.AfterFunc(time.Second, func() {
			put("    deny:\n      - host: api.example\n")
			if err := writer.Close(); err != nil {
				t.Error(err)
			}
		})
		begin := time.Now()
		r := newTestReloader(path)
		if err := r.first(t.Context()); err != nil {
			t.Fatal(err)
		}
		files, err := policyfile.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := r.policy.Version(), files.Version(); got != want || time.Since(begin) < time.Second {
			t.Errorf("started after %s with version %s, want that of the whole, %s", time.Since(begin), got, want)
		}
	})
}

// TestStartDoesNotWaitForeverForAWriter that never closes the file.
func TestStartDoesNotWaitForeverForAWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := write(t, "policy.yaml", goodPolicy)
		writer, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer writer.Close()
		begin := time.Now()
		if err := newTestReloader(path).first(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took, most := time.Since(begin), watch.MaxWriting+time.Second; took > most {
			t.Errorf("started after %s, want at most %s", took, most)
		}
	})
}

func TestStart(t *testing.T) {
	stopped, stop := context.WithCancel(t.Context())
	stop()
	empty := t.TempDir()
	for _, row := range []struct {
		name string
		ctx  context.Context
		path string
		want error
	}{
		{"with a policy", t.Context(), write(t, "policy.yaml", goodPolicy), nil},
		{"with an empty directory", t.Context(), empty, nil},
		{"without a file", t.Context(), filepath.Join(empty, "policy.yaml"), os.ErrNotExist},
		{"and stop at once", stopped, write(t, "policy.yaml", goodPolicy), context.Canceled},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newTestReloader(row.path)
			if err := r.first(row.ctx); !errors.Is(err, row.want) {
				t.Errorf("error %v, want %v", err, row.want)
			}
		})
	}
}

// TestAQuarantineAloneIsNoPolicy: before there is any policy a quarantine list
// puts nothing in force.
func TestAQuarantineAloneIsNoPolicy(t *testing.T) {
	r := newTestReloader(t.TempDir())
	r.put(t.Context(), true, true, true)
	if s := r.g.current.Load(); s != nil {
		t.Errorf("in force: %+v", s)
	}
}

// TestABrokenQuarantineLetsNoFirstPolicyIn starts with an empty directory, into
// which a policy comes with a quarantine list that nobody can read.
func TestABrokenQuarantineLetsNoFirstPolicyIn(t *testing.T) {
	dir := t.TempDir()
	g := openGateway(t, dir)
	g.policy.enforce(t.Context())
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("policy.yaml", goodPolicy)
	put("quarantine.yaml", "version: 1\nquarantine: [{id: spiffe://td.example/w, until: 2027-01-01}]\n")
	if !g.policy.reload(t.Context(), true) {
		t.Fatal("what a rename put there is not believed")
	}
	if s := g.current.Load(); s != nil {
		t.Errorf("in force without its quarantine: policy %s", s.Policy.Version())
	}
	put("quarantine.yaml", "version: 1\nquarantine: []\n")
	if g.policy.reload(t.Context(), true); g.current.Load() == nil {
		t.Error("nothing is in force though both files are good")
	}
}

// TestStartWithABrokenQuarantineAlone is refused as with a broken policy.
func TestStartWithABrokenQuarantineAlone(t *testing.T) {
	dir := filepath.Dir(write(t, "quarantine.yaml", "version: 1\nallow: []\n"))
	if err := newTestReloader(dir).first(t.Context()); err == nil {
		t.Error("a gateway starts with a quarantine that it cannot read")
	}
}

// TestAHeldPolicyComesIntoForceOnlyIfItIsMeant: a quarantine or an address of the
// host that changes later says nothing about it, however few tunnels it would
// close by then.
func TestAHeldPolicyComesIntoForceOnlyIfItIsMeant(t *testing.T) {
	const allows = "version: 1\nidentities:\n  - id: spiffe://prod.example/a\n    allow: [{host: %s}]\n"
	dir := t.TempDir()
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("policy.yaml", fmt.Sprintf(allows, "one.example"))
	g := openGateway(t, dir, func(c *config.Config) { c.MaxRevoke = 0.3 })
	g.policy.enforce(t.Context())
	dest, err := allowlist.ParseDestination("one.example:443")
	if err != nil {
		t.Fatal(err)
	}
	req := allowlist.Request{ID: g.cfg.Listeners[0].ID, Source: allowlist.SourceListener, Dest: dest, Time: time.Now()}
	open := &live.Tunnel{Request: req, End: func(tunnel.Reason, allowlist.Reason) {}}
	g.registry.Add(open)
	inForce := func(step string, want bool) {
		t.Helper()
		if !g.policy.reload(t.Context(), true) {
			t.Fatalf("%s: the files are not believed", step)
		}
		if got := !g.current.Load().Decide(req).Allowed(); got != want {
			t.Errorf("%s: the policy that was held is in force: %v, want %v", step, got, want)
		}
	}
	put("policy.yaml", fmt.Sprintf(allows, "two.example"))
	inForce("it would close the only tunnel", false)
	g.registry.Remove(open)
	put("quarantine.yaml", "version: 1\nquarantine: [{id: spiffe://prod.example/b}]\n")
	inForce("a quarantine came when no tunnel was open", false)
	other := allowlist.Request{ID: spiffeid.RequireFromString("spiffe://prod.example/b"), Source: allowlist.SourceListener, Dest: dest}
	if got := g.current.Load().Decide(other).Reason; got != allowlist.QuarantinedIdentity {
		t.Errorf("b is refused as %s: the quarantine is held back", got)
	}
	g.policy.classifier.Store(allowlist.NewClassifier(allowlist.Local{}))
	inForce("the host has another address", false)
	g.policy.sure.Store(true)
	inForce("it is meant", true)
}
