package docs

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/exeat-dev/exeat/"

// only are imports that belong to few rooms, which hide them from all others.
// The prefix of a path stands for what is below it, too.
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
		// The doors, the layer above them, and what is opened by the program only.
		module + "proxy":                          {"proxy/gateway", "cmd/exeat/config"},
		module + "proxy/dns":                      {"proxy/gateway"},
		module + "proxy/gateway":                  {"cmd/exeat", "cmd/exeat/config", "cmd/exeat/process"},
		module + "proxy/front":                    {"proxy", "proxy/gateway", "cmd/exeat/config"},
		module + "proxy/watch":                    {"cmd/exeat/config", "cmd/exeat/process"},
		module + "proxy/audit/file":               {"cmd/exeat/config", "cmd/exeat/process"},
		module + "proxy/audit/native":             {"cmd/exeat/process"},
		module + "proxy/audit/ocsf":               {"cmd/exeat/process"},
		module + "proxy/audit/ecs":                {"cmd/exeat/process"},
		module + "proxy/resolve/wire":             {"proxy/resolve"},
		module + "identity/workload":              {"cmd/exeat/process"},
		module + "identity/authority":             {"cmd/exeat", "identity/authority/workloadapi"},
		module + "identity/authority/workloadapi": {"cmd/exeat"},
		module + "allowlist/policyfile":           {"cmd/exeat", "cmd/exeat/process"},
		module + "cmd/exeat/process":              {"cmd/exeat"},
		module + "cmd/exeat/telemetry":            {"cmd/exeat/process"},
	}
}

// forbidden says why a room must not import a path; "" if it may.
func forbidden(room, path string) string {
	owner := ""
	for prefix := range only() {
		exact := strings.HasPrefix(prefix, module) // of ours, each is a room of its own
		if (path == prefix || !exact && strings.HasPrefix(path, prefix)) && len(prefix) > len(owner) {
			owner = prefix
		}
	}
	own, ours := strings.CutPrefix(path, module)
	switch {
	case owner != "" && !slices.Contains(only()[owner], room):
		return "only " + strings.Join(only()[owner], " and ") + " may"
	case !ours:
		return ""
	case within(own, "e2e"):
		return "nobody imports what is for tests"
	case slices.Contains([]string{"proxy/tunnel", "proxy/head", "proxy/hello"}, room):
		return "it knows nothing of policy"
	case room == "proxy/front" && !slices.Contains([]string{"allowlist", "proxy/head", "proxy/hello", "proxy/refusal", "proxy/tunnel"}, own):
		return "a front reads and writes, and decides nothing"
	case own == "proxy/gateway/gatewaytest":
		return "it is for tests"
	case within(room, "allowlist") && !within(own, "allowlist"), within(room, "identity") && !within(own, "identity"):
		return "policy and identity know nothing but themselves"
	case within(own, "cmd") && !within(room, "cmd"):
		return "nobody imports the program"
	}
	return ""
}

func within(room, of string) bool { return room == of || strings.HasPrefix(room, of+"/") }

// TestImports: who imports whom is what design.md says of it.
func TestImports(t *testing.T) {
	seen := map[string]bool{}
	for _, root := range []string{"allowlist", "identity", "proxy", "cmd"} {
		err := filepath.WalkDir(filepath.Join("..", root), func(name string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			room := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(name)), "../")
			for _, spec := range file.Imports {
				path, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					return err
				}
				if why := forbidden(room, path); why != "" {
					t.Errorf("%s imports %s: %s", name, path, why)
				}
				for prefix := range only() {
					seen[prefix] = seen[prefix] || strings.HasPrefix(path, prefix)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for prefix := range only() {
		if !seen[prefix] {
			t.Errorf("nobody imports %s: the list is out of date", prefix)
		}
	}
}

// TestForbiddenImports plants some.
func TestForbiddenImports(t *testing.T) {
	for _, row := range []struct {
		room, path string
		forbidden  bool
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
		if why := forbidden(row.room, row.path); (why != "") != row.forbidden {
			t.Errorf("%s imports %s: forbidden %v (%s), want %v", row.room, row.path, why != "", why, row.forbidden)
		}
	}
}
