package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/exeat-dev/exeat/e2e/missing"
)

// TestReload replaces a policy that allows allowed.example by one that allows
// example.com, in the ways that people and tools use. The gateway does not poll, and
// gets no SIGHUP.
func TestReload(t *testing.T) {
	t.Parallel()
	s := newReloadSite(t)
	before, after := s.allowing("allowed.example"), s.allowing("example.com")
	for _, row := range []struct {
		name   string
		policy string // the path in the configuration, below dir; the policy is always dir/policy.yaml
		start  func(dir string)
		change func(dir string)
	}{
		{"a rename over the file", "/policy.yaml", nil, func(dir string) {
			replaceFile(t, dir+"/policy.yaml", after)
		}},
		{"a rename inside the directory", "", nil, func(dir string) {
			replaceFile(t, dir+"/policy.yaml", after)
		}},
		{"an editor's backup, then a new file", "", nil, func(dir string) {
			renameFile(t, dir+"/policy.yaml", dir+"/policy.yaml~")
			putFile(t, dir+"/policy.yaml", after)
		}},
		{"written in place", "/policy.yaml", nil, func(dir string) {
			putFile(t, dir+"/policy.yaml", after)
		}},
		{"the symlink swap of a ConfigMap", "", func(dir string) {
			putFile(t, dir+"/..1/policy.yaml", before)
			linkFile(t, "..1", dir+"/..data")
			linkFile(t, "..data/policy.yaml", dir+"/policy.yaml")
		}, func(dir string) {
			putFile(t, dir+"/..2/policy.yaml", after)
			linkFile(t, "..2", dir+"/..data_tmp")
			renameFile(t, dir+"/..data_tmp", dir+"/..data")
			if err := os.RemoveAll(dir + "/..1"); err != nil {
				t.Fatal(err)
			}
		}},
		{"another directory in the place of the old one", "", nil, func(dir string) {
			putFile(t, dir+".next/policy.yaml", after)
			renameFile(t, dir, dir+".old")
			renameFile(t, dir+".next", dir)
		}},
		{"another directory around the file", "/policy.yaml", nil, func(dir string) {
			putFile(t, dir+".next/policy.yaml", after)
			renameFile(t, dir, dir+".old")
			renameFile(t, dir+".next", dir)
		}},
		{"the directory removed and made again", "", nil, func(dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			putFile(t, dir+"/policy.yaml", after)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "policy")
			if row.start != nil {
				row.start(dir)
			} else {
				putFile(t, dir+"/policy.yaml", before)
			}
			p := s.serve(t, dir+row.policy)
			kept := s.open(t, p, "own", "allowed.example")
			row.change(dir)
			kept.ends(t)
			p.generation(t, 2)
			if r := p.closed(t, 0); r.CloseReason != "revoked" || r.Reason != "not-on-allowlist" {
				t.Errorf("the tunnel ended with %+v", r)
			}
			if got := s.status(t, p, "allowed.example"); got != http.StatusForbidden {
				t.Errorf("what the new policy does not allow: %d", got)
			}
			if got := s.status(t, p, "example.com"); got != http.StatusOK {
				t.Errorf("what the new policy allows: %d", got)
			}
			// A file that is replaced by the same bytes is no change.
			replaceFile(t, dir+"/policy.yaml", after)
			replaceFile(t, dir+"/policy.yaml", before)
			p.generation(t, 3)
			p.stop(t, 3)
		})
	}
}

// TestReloadInChunks truncates the policy and writes another one in eight chunks, while
// CONNECTs for secret.example are sent without a pause. The rule that denies that name is
// in the last chunk.
func TestReloadInChunks(t *testing.T) {
	s := newReloadSite(t)
	before := s.allowing("allowed.example")
	wide := "version: 1\nidentities:\n  - id: \"" + gateway + "\"\n    allow:\n"
	for _, host := range []string{"secret.example", "example.com", "a.example", "b.example", "c.example", "d.example"} {
		wide += fmt.Sprintf("      - {host: %s, ports: [%d], addresses: [127.0.0.1/32]}\n", host, s.port)
	}
	chunks := strings.SplitAfter(wide, "]}\n")
	chunks[len(chunks)-1] = "    "
	chunks = append(chunks, "deny: [{host: secret.example}]\n")
	if len(chunks) != 8 {
		t.Fatalf("%d chunks", len(chunks))
	}
	open := func(path string, flags int) *os.File {
		f, err := os.OpenFile(path, flags|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, row := range []struct {
		pause time.Duration // the gateway waits twice for 50 ms without a change
		hold  bool          // the file stays open between the chunks
	}{
		{0, true},
		{20 * time.Millisecond, false},
		{20 * time.Millisecond, true},
		{50 * time.Millisecond, true},
		{120 * time.Millisecond, true},
		{300 * time.Millisecond, true},
	} {
		t.Run(fmt.Sprintf("every %s, held open %v", row.pause, row.hold), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "policy.yaml")
			putFile(t, path, before)
			if row.pause > 20*time.Millisecond && !leases(path) {
				missing.Skip(t, "this file system has no leases (fcntl F_SETLEASE), by which the gateway knows that a file is being written")
			}
			p := s.serve(t, path)
			stop := s.hammer(t, p, "secret.example")
			f := open(path, os.O_TRUNC)
			tick := time.NewTicker(max(row.pause, 1))
			defer tick.Stop()
			for i, chunk := range chunks {
				if i > 0 {
					<-tick.C
				}
				if i > 0 && !row.hold {
					_ = f.Close()
					f = open(path, os.O_APPEND)
				}
				if _, err := f.WriteString(chunk); err != nil {
					t.Fatal(err)
				}
			}
			_ = f.Close()
			p.generation(t, 2)
			p.recorded(t, "a denial by the new policy", 0, func(r record) bool {
				return r.Generation == 2 && r.Reason == "denied-by-rule"
			})
			seen := stop()
			if seen[http.StatusForbidden] == 0 || len(seen) != 1 {
				t.Errorf("answers by status: %v, want 403 only", seen)
			}
			p.stop(t, 2)
		})
	}
}

// leases reports whether the system can tell the gateway that a file is open for writing.
func leases(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return err == nil
}

// TestReloadOfUnusableFilesKeepsThePolicy makes the files unusable, in one way after the
// other. The last good policy must stay in force.
func TestReloadOfUnusableFilesKeepsThePolicy(t *testing.T) {
	s := newReloadSite(t)
	dir := filepath.Join(t.TempDir(), "policy")
	good := s.allowing("allowed.example")
	putFile(t, dir+"/policy.yaml", good)
	p := s.serve(t, dir)
	kept := s.open(t, p, "own", "allowed.example")
	for n, row := range []struct {
		name   string
		change func()
		says   string
	}{
		{"broken", func() { replaceFile(t, dir+"/policy.yaml", "version: 1\nidentites: []\n") }, "policy.yaml:2:1:"},
		{"broken in place", func() { putFile(t, dir+"/policy.yaml", good[:len(good)-2]) }, "policy.yaml:"},
		{"of 0 bytes", func() { replaceFile(t, dir+"/policy.yaml", "") }, "0 bytes"},
		{"deleted", func() { _ = os.Remove(dir + "/policy.yaml") }, "has no files"},
		{"with its directory deleted", func() { _ = os.RemoveAll(dir) }, "no such file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.change()
			p.refused(t, n, row.says)
			if got := s.status(t, p, "allowed.example"); got != http.StatusOK {
				t.Errorf("the last good policy does not hold: %d", got)
			}
		})
	}
	p.signal(t, syscall.SIGHUP) // reads the files again, which changes nothing and repeats no message
	putFile(t, dir+".next/policy.yaml", s.allowing("example.com"))
	renameFile(t, dir+".next", dir)
	kept.ends(t)
	p.stop(t, 2)
	if n := strings.Count(p.stdout.String(), "refused: "); n != 5 {
		t.Errorf("%d refusals are recorded, want 5", n)
	}
}

// TestQuarantineWhileThePolicyIsBroken puts an identity in quarantine while the policy is
// broken.
func TestQuarantineWhileThePolicyIsBroken(t *testing.T) {
	s := newReloadSite(t)
	dir := filepath.Join(t.TempDir(), "policy")
	putFile(t, dir+"/policy.yaml", s.allowing("allowed.example"))
	p := s.serve(t, dir)
	quarantined, other := s.open(t, p, "builder", "allowed.example"), s.open(t, p, "own", "allowed.example")
	replaceFile(t, dir+"/policy.yaml", "version: 1\nidentites: []\n")
	p.refused(t, 0, "identites")
	replaceFile(t, dir+"/quarantine.yaml", "version: 1\nquarantine: [{id: \""+builder+"\", reason: INC-77}]\n")
	quarantined.ends(t)
	if r := p.closed(t, 0); r.CloseReason != "quarantined" || r.Reason != "quarantined" || r.Identity != builder {
		t.Errorf("the tunnel ended with %+v", r)
	}
	p.generation(t, 2)
	event := func(n int, detail string) {
		t.Helper()
		r := p.recorded(t, "the quarantine", n, func(r record) bool { return r.Event == "quarantine" })
		if r.Detail != detail || r.Generation != uint64(n+2) || r.Policy == "" {
			t.Errorf("the quarantine is recorded as %+v, want %q", r, detail)
		}
	}
	event(0, "1 in force; added: "+builder)
	if status, _ := s.statusBy(t, p, s.client(t, "builder"), "allowed.example"); status != http.StatusForbidden {
		t.Errorf("the identity that is cut off gets %d", status)
	}
	other.works(t)
	_ = other.Close()
	if r := p.closed(t, 1); r.CloseReason != "client" {
		t.Errorf("the other tunnel ended with %+v", r)
	}
	replaceFile(t, dir+"/quarantine.yaml", "version: 1\nquarantine: [{id: \""+sidecar+"\"}]\n")
	event(1, "1 in force; added: "+sidecar+"; released: "+builder)
	if status, _ := s.statusBy(t, p, s.client(t, "builder"), "allowed.example"); status != http.StatusOK {
		t.Errorf("the identity that was released gets %d", status)
	}
	p.stop(t, 3)
	if n := strings.Count(p.stdout.String(), `"event":"quarantine"`); n != 2 {
		t.Errorf("%d records of the quarantine, want 2", n)
	}
}

// TestStartWithoutAPolicy starts without any policy. A quarantine list alone is not a
// policy.
func TestStartWithoutAPolicy(t *testing.T) {
	s := newReloadSite(t)
	dir := t.TempDir()
	write(t, s.dir, map[string]string{"exeat.yaml": strings.Replace(siteConfig, "policy: policy.yaml", "policy: {files: \""+dir+"\", poll: 0s}", 1) + "admin: {address: '127.0.0.1:0'}\n"})
	p := start(t, s.dir, "serve")
	if got := s.status(t, p, "allowed.example"); got != http.StatusServiceUnavailable {
		t.Errorf("without a policy: %d", got)
	}
	if code, text := p.admin(t, "readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "policy: none is loaded") {
		t.Errorf("readiness without a policy: %d %s", code, text)
	}
	replaceFile(t, dir+"/policy.yaml", "version: 1\nidentites: []\n")
	p.refused(t, 0, "identites")
	replaceFile(t, dir+"/quarantine.yaml", "version: 1\nquarantine: [{id: \""+builder+"\"}]\n")
	p.refused(t, 1, "identites")
	if got := s.status(t, p, "allowed.example"); got != http.StatusServiceUnavailable {
		t.Errorf("with a quarantine list alone: %d", got)
	}
	replaceFile(t, dir+"/policy.yaml", s.allowing("allowed.example"))
	p.generation(t, 1)
	if got := s.status(t, p, "allowed.example"); got != http.StatusOK {
		t.Errorf("with a policy: %d", got)
	}
	if code, text := p.admin(t, "readyz"); code != http.StatusOK {
		t.Errorf("readiness with a policy: %d %s", code, text)
	}
	p.stop(t, 1)
}

// TestMaxRevoke puts in force a policy that forbids the tunnels of two identities, which
// is more than max_revoke allows. The policy is in force for new requests, and the
// tunnels stay open. When a quarantine has ended one of them, max_revoke allows the end
// of the other.
func TestMaxRevoke(t *testing.T) {
	s := newReloadSite(t)
	dir := filepath.Join(t.TempDir(), "policy")
	putFile(t, dir+"/policy.yaml", s.allowing("allowed.example", "example.com"))
	p := s.serveConfig(t, strings.Replace(siteConfig, "policy: policy.yaml", "policy: {files: \""+dir+"\", poll: 0s, max_revoke: {share: 30%, at_least: 1}}", 1)+
		"admin: {address: '127.0.0.1:0'}\n")
	first, second := s.open(t, p, "own", "allowed.example"), s.open(t, p, "own", "example.com")
	third := s.open(t, p, "builder", "allowed.example")
	replaceFile(t, dir+"/policy.yaml", s.allowing("example.com"))
	p.generation(t, 2)
	held := p.recorded(t, "a held policy", 0, func(r record) bool { return strings.Contains(r.Detail, "held: ") })
	if want := "closed 0 of 3 tunnels; held: 2 that it forbids stay open, of 2 of 2 identities"; held.Detail != want {
		t.Errorf("recorded %q, want %q", held.Detail, want)
	}
	if got := s.status(t, p, "allowed.example"); got != http.StatusForbidden {
		t.Errorf("a new request while it is held: %d", got)
	}
	first.works(t)
	third.works(t)
	if code, text := p.admin(t, "readyz"); code != http.StatusOK || !strings.Contains(text, "held: 2 that it forbids stay open, of 2 of 2 identities") {
		t.Errorf("readiness while it is held: %d %s", code, text)
	}
	if _, text := p.admin(t, "metrics"); !strings.Contains(text, "\negress_policy_held 2\n") {
		t.Errorf("metrics without the identities that are held:\n%s", text)
	}
	replaceFile(t, dir+"/quarantine.yaml", "version: 1\nquarantine: [{id: \""+builder+"\"}]\n")
	third.ends(t)
	first.ends(t)
	reasons := map[string]string{}
	for n := range 2 {
		r := p.closed(t, n)
		reasons[r.Identity] = r.CloseReason
	}
	if reasons[builder] != "quarantined" || len(reasons) != 2 {
		t.Errorf("the tunnels ended as %v", reasons)
	}
	if code, text := p.admin(t, "readyz"); code != http.StatusOK || strings.Contains(text, "held") {
		t.Errorf("readiness when nothing is held: %d %s", code, text)
	}
	second.works(t)
	_ = second.Close()
	p.stop(t, 3)
}

// TestSIGHUPEndsTunnelsThatMaxRevokeHolds confirms a held policy by a SIGHUP.
func TestSIGHUPEndsTunnelsThatMaxRevokeHolds(t *testing.T) {
	s := newReloadSite(t)
	path := filepath.Join(t.TempDir(), "policy.yaml")
	putFile(t, path, s.allowing("allowed.example", "example.com"))
	p := s.serve(t, path, ", max_revoke: {share: 30%, at_least: 1}")
	first, second := s.open(t, p, "own", "allowed.example"), s.open(t, p, "builder", "allowed.example")
	replaceFile(t, path, s.allowing("example.com"))
	p.generation(t, 2)
	first.works(t)
	second.works(t)
	p.signal(t, syscall.SIGHUP)
	first.ends(t)
	second.ends(t)
	p.closed(t, 1)
	p.stop(t, 3)
}

// TestRuleExpires ends a tunnel when the date of its rule passes, without a
// reload.
func TestRuleExpires(t *testing.T) {
	t.Parallel()
	s := newReloadSite(t)
	path := filepath.Join(t.TempDir(), "policy.yaml")
	until := time.Now().Add(5 * time.Second).UTC().Format(time.RFC3339)
	putFile(t, path, strings.ReplaceAll(s.allowing("allowed.example"), "/32]}", "/32], expires: \""+until+"\"}"))
	p := s.serve(t, path)
	s.open(t, p, "own", "allowed.example").ends(t)
	if r := p.closed(t, 0); r.CloseReason != "revoked" || r.Reason != "rule-expired" {
		t.Errorf("the tunnel ended with %+v", r)
	}
	if got := s.status(t, p, "allowed.example"); got != http.StatusForbidden {
		t.Errorf("after the date: %d", got)
	}
}

// TestReloadWhileDraining changes the policy after SIGTERM. Tunnels that it forbids end,
// and the others go on.
func TestReloadWhileDraining(t *testing.T) {
	s := newReloadSite(t)
	path := filepath.Join(t.TempDir(), "policy.yaml")
	putFile(t, path, s.allowing("allowed.example", "example.com"))
	p := s.serve(t, path)
	forbidden, allowed := s.open(t, p, "own", "allowed.example"), s.open(t, p, "own", "example.com")
	p.signal(t, syscall.SIGTERM)
	waitRefused(t, p.listening(t, "own").String())
	replaceFile(t, path, s.allowing("example.com"))
	forbidden.ends(t)
	if r := p.closed(t, 0); r.CloseReason != "revoked" {
		t.Errorf("the forbidden tunnel ended with %+v", r)
	}
	allowed.works(t)
	_ = allowed.Close()
	if r := p.closed(t, 1); r.CloseReason != "client" {
		t.Errorf("the other tunnel ended with %+v", r)
	}
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
