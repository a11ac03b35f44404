package docs

import (
	"go/ast"
	"go/parser"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/exeat-dev/exeat/"

// only returns packages that few others may import, by the prefix of their paths. For
// other modules the prefix also stands for the packages below it.
func only() map[string][]string {
	return map[string][]string{
		"github.com/miekg/dns":              {"proxy/resolve/wire"},
		"github.com/elazarl/goproxy":        {"proxy/forward"},
		"github.com/pires/go-proxyproto":    {"proxy/listen"},
		"github.com/DeRuina/timberjack":     {"proxy/audit/file"},
		"github.com/fsnotify/fsnotify":      {"proxy/watch"},
		"github.com/spf13/cobra":            {"cmd/exeat"},
		"go.yaml.in/yaml":                   {"allowlist/strictyaml"},
		"google.golang.org/grpc":            {"identity/authority/workloadapi", "identity/workload"},
		"go.opentelemetry.io/otel/sdk":      {"cmd/exeat/telemetry"},
		"go.opentelemetry.io/otel/exporter": {"cmd/exeat/telemetry"},
		"go.opentelemetry.io/contrib":       {"cmd/exeat/telemetry"},
		"golang.org/x/net/idna":             {"allowlist"},
		"golang.org/x/net/publicsuffix":     {"allowlist"},
		"golang.org/x/text/unicode/norm":    {"allowlist"},
		// Packages of this module that only their users may import.
		module + "proxy":                          {"proxy/gateway", "cmd/exeat/config"},
		module + "proxy/dns":                      {"proxy/gateway"},
		module + "proxy/agent":                    {"cmd/exeat", "cmd/exeat/process"},
		module + "proxy/gateway":                  {"cmd/exeat", "cmd/exeat/config", "cmd/exeat/process"},
		module + "proxy/front":                    {"proxy", "proxy/agent", "proxy/gateway", "cmd/exeat/config"},
		module + "proxy/watch":                    {"cmd/exeat/config", "cmd/exeat/process"},
		module + "proxy/audit/file":               {"cmd/exeat/config", "cmd/exeat/process"},
		module + "proxy/audit/native":             {"cmd/exeat/process"},
		module + "proxy/audit/ocsf":               {"cmd/exeat/process"},
		module + "proxy/audit/ecs":                {"cmd/exeat/process"},
		module + "proxy/resolve/wire":             {"proxy/resolve"},
		module + "identity/workload":              {"cmd/exeat/process"},
		module + "identity/authority":             {"cmd/exeat", "cmd/exeat/stage", "identity/authority/workloadapi"},
		module + "identity/authority/workloadapi": {"cmd/exeat", "cmd/exeat/stage"},
		module + "allowlist/policyfile":           {"cmd/exeat", "cmd/exeat/process"},
		module + "cmd/exeat/process":              {"cmd/exeat"},
		module + "cmd/exeat/caller":               {"cmd/exeat"},
		module + "cmd/exeat/stage":                {"cmd/exeat"},
		module + "cmd/exeat/telemetry":            {"cmd/exeat/process"},
	}
}

// forbidden returns why a package must not import a path, or "" if it may.
func forbidden(pkg, path string) string {
	owner := ""
	for prefix := range only() {
		exact := strings.HasPrefix(prefix, module) // each package of this module has its own entry
		if (path == prefix || !exact && strings.HasPrefix(path, prefix)) && len(prefix) > len(owner) {
			owner = prefix
		}
	}
	name, ours := strings.CutPrefix(path, module)
	switch {
	case owner != "" && !slices.Contains(only()[owner], pkg):
		return "only " + strings.Join(only()[owner], " and ") + " may"
	case !ours:
		return ""
	case within(name, "e2e"):
		return "no package imports test code"
	case pkg == "proxy/h2" && name != "proxy/tunnel":
		return "it frames, and knows neither requests nor policy"
	case slices.Contains([]string{"proxy/tunnel", "proxy/head", "proxy/hello"}, pkg):
		return "it must not depend on policy"
	case pkg == "proxy/front" && !slices.Contains([]string{"allowlist", "proxy/h2", "proxy/head", "proxy/hello", "proxy/refusal", "proxy/tunnel"}, name):
		return "a front reads and writes, and decides nothing"
	case slices.Contains([]string{"proxy/gateway/gatewaytest", "proxy/h2/h2test"}, name):
		return "it is for tests"
	case within(pkg, "allowlist") && !within(name, "allowlist"), within(pkg, "identity") && !within(name, "identity"):
		return "policy and identity depend on no other packages"
	case within(name, "cmd") && !within(pkg, "cmd"):
		return "only cmd imports the program"
	}
	return ""
}

func within(pkg, of string) bool { return pkg == of || strings.HasPrefix(pkg, of+"/") }

// TestImports checks that the packages import each other as docs/design.md says.
func TestImports(t *testing.T) {
	seen := map[string]bool{}
	eachFile(t, parser.ImportsOnly, func(name string, file *ast.File) {
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if why := forbidden(path.Dir(name), imported); why != "" {
				t.Errorf("%s imports %s: %s", name, imported, why)
			}
			for prefix := range only() {
				seen[prefix] = seen[prefix] || strings.HasPrefix(imported, prefix)
			}
		}
	})
	for prefix := range only() {
		if !seen[prefix] {
			t.Errorf("no package imports %s: the list is out of date", prefix)
		}
	}
}

// TestForbiddenImports checks forbidden and allowed imports.
func TestForbiddenImports(t *testing.T) {
	for _, row := range []struct {
		pkg, path string
		forbidden bool
	}{
		{"proxy/dns", "github.com/miekg/dns", true},
		{"proxy/resolve/wire", "github.com/miekg/dns", false},
		{"proxy/audit", "go.opentelemetry.io/otel/sdk/trace", true},
		{"proxy/audit", "go.opentelemetry.io/otel/trace", false},
		{"proxy/dial", module + "proxy", true},
		{"proxy/dns", module + "proxy/watch", true},
		{"proxy/live", module + "proxy/dns", true},
		{"cmd/exeat", module + "proxy", true},
		{"proxy/gateway", module + "proxy", false},
		{"proxy/gateway", module + "proxy/dns", false},
		{"proxy", module + "proxy/gateway", true},
		{"proxy/dns", module + "proxy/gateway", true},
		{"proxy/listen", module + "proxy/gateway", true},
		{"proxy/gateway", module + "allowlist/policyfile", true},
		{"proxy/gateway", module + "proxy/watch", true},
		{"proxy/gateway", "go.yaml.in/yaml/v4", true},
		{"proxy/gateway", "go.opentelemetry.io/otel/sdk/trace", true},
		{"proxy/gateway", module + "proxy/gateway/gatewaytest", true},
		{"proxy", module + "proxy/front", false},
		{"proxy/front", module + "proxy/head", false},
		{"proxy/front", module + "proxy/live", true},
		{"proxy/front", module + "proxy/limit", true},
		{"proxy/front", module + "proxy/dial", true},
		{"proxy/front", module + "proxy/resolve", true},
		{"proxy/front", module + "proxy/listen", true},
		{"proxy/front", module + "proxy", true},
		{"allowlist", module + "identity", true},
		{"identity", module + "allowlist", true},
		{"identity/workload", module + "identity", false},
		{"proxy/tunnel", module + "allowlist", true},
		{"proxy/listen", module + "identity", false},
		{"proxy/audit", module + "cmd/exeat/config", true},
		{"proxy/audit", module + "proxy/audit/native", true},
		{"identity", "google.golang.org/grpc", true},
		{"proxy/head", "bufio", false},
		{"cmd/exeat", module + "e2e/site", true},
	} {
		if why := forbidden(row.pkg, row.path); (why != "") != row.forbidden {
			t.Errorf("%s imports %s: forbidden %v (%s), want %v", row.pkg, row.path, why != "", why, row.forbidden)
		}
	}
}
