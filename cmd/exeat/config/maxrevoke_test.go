package config

import (
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/live"
)

// TestMaxRevoke checks what each form of max_revoke means, and which are refused.
func TestMaxRevoke(t *testing.T) {
	for value, want := range map[string]live.MaxRevoke{
		"30%":                          {Share: 0.3, AtLeast: 20},
		"100%":                         {Share: 1, AtLeast: 20},
		"{share: 1%}":                  {Share: 0.01, AtLeast: 20},
		"{share: 30%, at_least: 20}":   {Share: 0.3, AtLeast: 20},
		"{at_least: 1, share: 50%}":    {Share: 0.5, AtLeast: 1},
		"{share: 5%, at_least: 10000}": {Share: 0.05, AtLeast: 10000},
	} {
		got, err := Parse("e.yaml", []byte(strings.Replace(minimal, "policy: p.yaml", "policy: {files: p.yaml, max_revoke: "+value+"}", 1)))
		if err != nil || got.Gateway.MaxRevoke != want {
			t.Errorf("%s is %+v, %v; want %+v", value, got.Gateway.MaxRevoke, err, want)
		}
	}
	if got, err := Parse("e.yaml", []byte(minimal)); err != nil || got.Gateway.MaxRevoke != (live.MaxRevoke{}) {
		t.Errorf("without the key: %+v, %v", got.Gateway.MaxRevoke, err)
	}
	for value, want := range map[string]string{
		"30":                                  `e.yaml:3:37: max_revoke: "30" is no share: write 1% to 100%`,
		"0%":                                  `"0%" is no share`,
		"101%":                                `"101%" is no share`,
		"30.5%":                               `"30.5%" is no share`,
		"-1%":                                 `"-1%" is no share`,
		"all":                                 `"all" is no share`,
		"[30%]":                               "e.yaml:3:37: ",
		"null":                                "e.yaml:3:37: ",
		"{at_least: 20}":                      "share is missing: write which share",
		"{share: 0.3}":                        `"0.3" is no share`,
		"{share: 30%, at_least: 0}":           "e.yaml:3:60: ",
		"{share: 30%, at_least: -1}":          "e.yaml:3:60: ",
		"{share: 30%, at_least: 20%}":         "e.yaml:3:60: ",
		"{share: 30%, at_least: 1000001}":     "e.yaml:3:60: ",
		"{share: 30%, atleast: 20}":           `unknown key "atleast"`,
		"{share: 30%, share: 40%}":            "share",
		"{share: 30%, at_least: 20, more: 1}": `unknown key "more"`,
	} {
		_, err := Parse("e.yaml", []byte(strings.Replace(minimal, "policy: p.yaml", "policy: {files: p.yaml, max_revoke: "+value+"}", 1)))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", value, err, want)
		}
	}
}
