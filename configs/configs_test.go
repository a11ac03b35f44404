// Package configs tests the examples of this folder: configurations and
// policies load, and what is for other programs says nothing of metrics,
// alerts or components that do not exist.
package configs

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

// forOthers are the folders and files that exeat does not read.
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
		if strings.HasPrefix(d.Name(), "policy") {
			_, err = policyfile.Load(policyfile.Options{}, path)
		} else {
			_, err = config.Load(path)
		}
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if loaded < 6 {
		t.Errorf("loaded %d examples, want at least 6", loaded)
	}
}
