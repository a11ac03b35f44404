// Package configs tests the example configurations and policies of this
// folder: each one loads.
package configs

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

func TestExamplesLoad(t *testing.T) {
	loaded := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
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
