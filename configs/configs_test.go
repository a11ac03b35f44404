// Package configs tests the examples in this directory: configurations and policies must
// load, and files for other programs must not name metrics, alerts or components that do
// not exist.
package configs

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

// forOthers reports whether a file is for another program than exeat.
func forOthers(path string) bool {
	folder, _, _ := strings.Cut(filepath.ToSlash(path), "/")
	return folder == "prometheus" || folder == "grafana" || folder == "otel-collector.yaml"
}

func TestExamplesLoad(t *testing.T) {
	loaded := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" || forOthers(path) {
			return err
		}
		loaded++
		if err := load(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if loaded < 9 {
		t.Errorf("loaded %d examples, want at least 9", loaded)
	}
}

// load loads a policy, or a configuration and the policy that it names.
func load(path string) error {
	if name := filepath.Base(path); name == "policy.yaml" || name == "quarantine.yaml" {
		_, err := policyfile.Load(policyfile.Options{}, path)
		return err
	}
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	_, err = policyfile.Load(policyfile.Options{}, cfg.Policy...)
	return err
}
