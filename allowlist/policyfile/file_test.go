package policyfile

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// TestTestdata loads every file of testdata. NAME.good.yaml must load. NAME.bad.yaml
// begins with a comment for each error that it must give, and gives no other:
//
//	# LINE:COLUMN: message
//
// NAME.bad and NAME.good are directories. The first comments of their first file are the
// errors of all files, as FILE:LINE:COLUMN: message.
func TestTestdata(t *testing.T) {
	names, err := filepath.Glob("testdata/*.*")
	if err != nil || len(names) == 0 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) { checkFiles(t, name) })
	}
}

func checkFiles(t *testing.T, name string) {
	t.Helper()
	files, err := Read(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := range files.list {
		files.list[i].path = files.list[i].name
	}
	prefix := ""
	if len(files.list) == 1 {
		prefix = files.list[0].name + ":"
	}
	want := wantedErrors(prefix, files.list[0].data)
	spec, err := files.spec(newWalker(testOptions()))
	if diff := cmp.Diff(lines(err), want); diff != "" {
		t.Errorf("errors (-got +want):\n%s", diff)
	}
	if bad := strings.Contains(name, ".bad"); bad != (err != nil) {
		t.Errorf("error is %v", err)
	}
	if err == nil {
		if _, err := allowlist.Compile(spec); err != nil {
			t.Errorf("compile: %v", err)
		}
	}
}

func testOptions() Options {
	return Options{TrustDomain: spiffeid.RequireTrustDomainFromString("corp.example")}
}

// bytesOf converts texts to bytes, for Parse and filesOf.
func bytesOf(texts map[string]string) map[string][]byte {
	data := make(map[string][]byte, len(texts))
	for name, text := range texts {
		data[name] = []byte(text)
	}
	return data
}

// textFiles returns Files with the given texts, which must not be too large.
func textFiles(texts map[string]string) *Files {
	files, err := filesOf(bytesOf(texts))
	if err != nil {
		panic(err)
	}
	return files
}

// wantedErrors returns the leading comments that begin with a place.
func wantedErrors(prefix string, data []byte) []string {
	place := regexp.MustCompile(`^# ((?:[^ :]+:)?\d+:\d+: .*)$`)
	var want []string
	for line := range strings.Lines(string(data)) {
		m := place.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			break
		}
		want = append(want, prefix+m[1])
	}
	return want
}

// lines returns the text of each error in err. Each must have a place.
func lines(err error) []string {
	var all []string
	if placed, ok := errors.AsType[strictyaml.Errors](err); ok {
		for _, e := range placed {
			all = append(all, e.Error())
		}
	} else if err != nil {
		all = append(all, "without a place: "+err.Error())
	}
	return all
}

func mustSpec(t *testing.T, files map[string]string) allowlist.Spec {
	t.Helper()
	spec, err := textFiles(files).spec(newWalker(testOptions()))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func identity(t *testing.T, s string) allowlist.IdentityPattern {
	t.Helper()
	p, err := allowlist.ParseIdentityPattern(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func host(t *testing.T, s string) allowlist.HostPattern {
	t.Helper()
	p, err := allowlist.ParseHostPattern(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func path(t *testing.T, s string) allowlist.PathPattern {
	t.Helper()
	p, err := allowlist.ParsePathPattern(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// values returns options of cmp by which types without exported fields compare with ==.
func values() []cmp.Option {
	return []cmp.Option{
		cmp.Comparer(func(a, b allowlist.HostPattern) bool { return a == b }),
		cmp.Comparer(func(a, b allowlist.IdentityPattern) bool { return a == b }),
		cmp.Comparer(func(a, b allowlist.PathPattern) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
}

// TestExampleOfTheDocumentation checks the Spec of the example in the documentation,
// which has every key.
func TestExampleOfTheDocumentation(t *testing.T) {
	data, err := os.ReadFile("testdata/everything.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got := mustSpec(t, map[string]string{"all.yaml": string(data)})
	day := func(y int, m time.Month, d int) time.Time { return time.Date(y, m, d, 0, 0, 0, 0, time.UTC) }
	https := func(at, useAt, name string) allowlist.Rule {
		return allowlist.Rule{At: "all.yaml:" + at, UseAt: useAt, Host: host(t, name)}
	}
	ports := func(r allowlist.Rule, ranges ...allowlist.PortRange) allowlist.Rule {
		r.Ports = ranges
		return r
	}
	forge := func(useAt string) []allowlist.Rule {
		return []allowlist.Rule{
			https("6", useAt, "forge.example"), https("7", useAt, "api.forge.example"), https("8", useAt, "codeload.forge.example"),
		}
	}
	database := ports(https("26", "", "db.intranet.example"), allowlist.PortRange{First: 5432, Last: 5432})
	database.Name, database.TLS = "invoice-db", allowlist.TLSOff
	database.Addresses = []netip.Prefix{netip.MustParsePrefix("10.30.0.0/16")}
	web := ports(https("33", "", "www.example.net"), allowlist.PortRange{First: 80, Last: 80})
	web.Methods, web.Paths = []string{"GET", "HEAD"}, []allowlist.PathPattern{path(t, "/downloads/**")}
	dated := https("37", "", "api.supplier.example")
	dated.Expires, dated.Ticket = day(2027, 2, 1), "SEC-1234"
	phone := https("40", "", "_sip._tcp.phone.example")
	phone.Types, phone.NoTunnel = []allowlist.QueryType{allowlist.TypeSRV}, true

	want := allowlist.Spec{
		Version: got.Version,
		Entries: []allowlist.Entry{{
			Pattern: allowlist.EveryonePattern(spiffeid.RequireTrustDomainFromString("corp.example")),
			Allow:   []allowlist.Rule{ports(https("14", "", "telemetry.platform.example"), allowlist.PortRange{First: 4317, Last: 4317})},
		}, {
			Pattern: identity(t, "spiffe://corp.example/ns/billing/sa/invoices"),
			Owner:   "team-billing",
			Accept:  allowlist.ProofsOf(allowlist.ProofX509SVID),
			Limits:  allowlist.Limits{Tunnels: 200, ConnectsPerSecond: 50, DNSPerSecond: 200, UploadPerHour: 1 << 30},
			Allow: append(forge("all.yaml:22"),
				https("23", "", "api.bank.example"),
				ports(https("24", "", "*.eu.supplier.example"), allowlist.PortRange{First: 443, Last: 443}, allowlist.PortRange{First: 8000, Last: 8999}),
				database,
				allowlist.Rule{
					At: "all.yaml:31", CIDR: netip.MustParsePrefix("198.51.100.7/32"),
					Ports: []allowlist.PortRange{{First: 9093, Last: 9093}},
				},
				web, dated, phone,
			),
			Deny: []allowlist.Rule{
				https("44", "", "paste.forge.example"),
				{At: "all.yaml:45", CIDR: netip.MustParsePrefix("10.30.9.0/24")},
			},
		}, {
			Pattern:      identity(t, "spiffe://corp.example/ns/ci/sa/*"),
			Mode:         allowlist.ModeObserve,
			ObserveUntil: day(2027, 3, 2),
			Allow:        forge("all.yaml:51"),
		}},
		Quarantine: []allowlist.Quarantined{{
			Pattern: identity(t, "spiffe://corp.example/ns/billing/sa/old-invoices"), Reason: "INC-77", At: "all.yaml:54",
		}},
	}
	if diff := cmp.Diff(got, want, values()...); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}
