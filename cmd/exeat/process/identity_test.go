package process

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
)

// TestAHalfWrittenBundleIsNotBelieved checks that a bundle which is written in place,
// one authority after the other, is not used before it is complete, although it is read
// in between.
func TestAHalfWrittenBundleIsNotBelieved(t *testing.T) {
	ca, second := newTestAuthority(t), newTestAuthority(t)
	svid, err := ca.Mint(authority.Options{ID: spiffeid.RequireFromString("spiffe://td.example/gateway")})
	if err != nil {
		t.Fatal(err)
	}
	both := append(ca.Bundle(), second.Bundle()...)
	for _, kind := range []string{"directory", "files"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			if err := svid.WriteDir(dir, both); err != nil {
				t.Fatal(err)
			}
			bundle := filepath.Join(dir, "bundle.pem")
			cfg := identity.FileConfig{Dir: dir}
			if kind == "files" {
				cfg = identity.FileConfig{Certificate: dir + "/svid.pem", Key: dir + "/svid_key.pem", Bundle: bundle}
			}
			var count identityReloads
			f, err := openIdentityFiles(cfg, &count, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			changes, last := 0, f.Snapshot()
			f.changed = func(context.Context) { // as the gateway's callback does
				if now := f.Snapshot(); now != last {
					changes, last = changes+1, now
				}
			}
			write := func(data []byte) {
				if err := os.WriteFile(bundle, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			reads := func(what string, done bool, want int) {
				if got := f.reload(t.Context(), false); got != done || changes != want {
					t.Errorf("%s: done %v with %d changes, want %v with %d", what, got, changes, done, want)
				}
			}
			reads("the first reading", false, 0)
			reads("the same", true, 0)
			write(ca.Bundle())
			reads("half of it", false, 0)
			write(both)
			reads("the whole", false, 0)
			reads("the whole again", true, 0)
			write(ca.Bundle())
			reads("an authority less", false, 0)
			reads("an authority less, again", true, 1)
			write(both)
			if !f.reload(t.Context(), true) || changes != 2 {
				t.Errorf("what a rename put there is not believed at once: %d changes", changes)
			}
			write(nil)
			reads("an empty bundle", false, 2)
			counts := func(what string, loaded, refused uint64) {
				t.Helper()
				if l, r := count.loaded.Load(), count.refused.Load(); l != loaded || r != refused {
					t.Errorf("%s: %d are loaded and %d refused, want %d and %d", what, l, r, loaded, refused)
				}
			}
			unused := func(what string, want int64) {
				t.Helper()
				if got := count.unused.Load(); got != want {
					t.Errorf("%s: %d sources hold what is refused, want %d", what, got, want)
				}
			}
			counts("before an error", 3, 0)
			unused("before an error", 0)
			reads("an empty bundle, again", true, 2)
			reads("an empty bundle, once more", true, 2)
			counts("an empty bundle", 3, 1)
			if err := os.WriteFile(filepath.Join(dir, "svid_key.pem"), []byte("no key"), 0o600); err != nil {
				t.Fatal(err)
			}
			write(both)
			reads("no key", false, 2)
			reads("no key, again", true, 2)
			counts("no key", 3, 2)
			unused("no key", 1)
			if err := svid.WriteDir(dir, both); err != nil { // what is in use already
				t.Fatal(err)
			}
			reads("as before, again", false, 2)
			reads("as before, once more", true, 2)
			counts("as before", 3, 2)
			unused("as before", 0)
		})
	}
}

// TestIdentityPaths checks which paths are watched for each configuration of the
// identity.
func TestIdentityPaths(t *testing.T) {
	for _, row := range []struct {
		name   string
		config identity.FileConfig
		want   []string
	}{
		{"a directory", identity.FileConfig{Dir: "d"}, []string{"d"}},
		{"files", identity.FileConfig{Certificate: "c", Key: "k", Bundle: "b"}, []string{"c", "k", "b"}},
		{"more bundles", identity.FileConfig{Dir: "d", Bundles: map[string]string{"y": "2", "x": "1"}}, []string{"1", "2", "d"}},
	} {
		if diff := cmp.Diff(row.want, identityPaths(row.config)); diff != "" {
			t.Errorf("%s:\n%s", row.name, diff)
		}
	}
}

// TestNamesOfWatchedFiles checks which names in a directory are those of policy files
// and of identity files.
func TestNamesOfWatchedFiles(t *testing.T) {
	for _, row := range []struct {
		name             string
		policy, identity bool
	}{
		{"policy.yaml", true, false},
		{"policy.yml", true, false}, // reported because it is refused
		{"policy.YAML", true, false},
		{".policy.yaml", false, false},
		{"policy.yaml~", false, false},
		{"records.jsonl", false, false},
		{"..data", false, false}, // watched because it is part of the files' paths
		{"svid.pem", false, true},
		{"tls.crt", false, true},
		{"tls.key", false, true},
	} {
		if got := isPolicyFile(row.name); got != row.policy {
			t.Errorf("%s is policy: %v", row.name, got)
		}
		if got := isIdentityFile(row.name); got != row.identity {
			t.Errorf("%s is identity: %v", row.name, got)
		}
	}
}
