package ocsf_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/ocsf"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

var update = flag.Bool("update", false, "write the golden files")

func render(t *testing.T, r *audit.Record) []byte {
	t.Helper()
	line, err := ocsf.Render(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// TestGolden compares the whole event of every kind of record.
func TestGolden(t *testing.T) {
	names := map[string]bool{}
	for _, s := range audittest.Samples() {
		names[s.Name+".json"] = true
		var got bytes.Buffer
		if err := json.Indent(&got, render(t, &s.Record), "", "  "); err != nil {
			t.Fatal(err)
		}
		got.WriteByte('\n')
		path := filepath.Join("testdata", s.Name+".json")
		if *update {
			if err := os.WriteFile(path, got.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.Name, diff)
		}
	}
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !f.IsDir() && !names[f.Name()] {
			t.Errorf("testdata/%s belongs to no sample", f.Name())
		}
	}
}

func TestRenderAppends(t *testing.T) {
	r := audittest.Samples()[0].Record
	got, err := ocsf.Render([]byte("before "), &r)
	if err != nil {
		t.Fatal(err)
	}
	if want := "before " + string(render(t, &r)); string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestActionAndDisposition checks the two fields by which a reader may judge an event
// without looking at the others.
func TestActionAndDisposition(t *testing.T) {
	decision := func(v allowlist.Verdict) audit.Record {
		return audit.Record{Event: audit.EventDecision, Verdict: v, Policy: "v1"}
	}
	closed := func(reason tunnel.Reason) audit.Record {
		return audit.Record{Event: audit.EventTunnelClose, Verdict: allowlist.Allow, Policy: "v1", CloseReason: reason}
	}
	mixed := audit.Record{Event: audit.EventSummary, Merged: &audit.Merged{Count: 3, Counts: []audit.Count{
		{Verdict: allowlist.Deny, Count: 2}, {Verdict: allowlist.Fail, Count: 1},
	}}}
	rows := []struct {
		name                string
		record              audit.Record
		action, disposition int
	}{
		{"allow is allowed", decision(allowlist.Allow), 1, 1},
		{"deny is blocked", decision(allowlist.Deny), 2, 2},
		{"observe is observed and logged", decision(allowlist.Observe), 3, 17},
		{"fail is allowed and an error", decision(allowlist.Fail), 1, 27},
		{"fail before any policy is an error of unknown action", audit.Record{Event: audit.EventDecision, Verdict: allowlist.Fail}, 0, 27},
		{"a decision of which nothing is known is blocked", audit.Record{Event: audit.EventDecision}, 2, 2},
		{"a tunnel that ends stays allowed", closed(tunnel.Client), 1, 1},
		{"a drained tunnel stays allowed", closed(tunnel.Drain), 1, 1},
		{"a denied tunnel has its access revoked", closed(tunnel.Denied), 2, 24},
		{"a revoked tunnel has its access revoked", closed(tunnel.Revoked), 2, 24},
		{"a quarantined tunnel has its access revoked", closed(tunnel.Quarantined), 2, 24},
		{"a summary of denials is blocked", audit.Record{Event: audit.EventSummary, Merged: &audit.Merged{}}, 2, 2},
		{"a mixed summary only counts", mixed, 0, 20},
	}
	for _, row := range rows {
		var got struct {
			Action      *int `json:"action_id"`
			Disposition *int `json:"disposition_id"`
		}
		if err := json.Unmarshal(render(t, &row.record), &got); err != nil {
			t.Fatal(err)
		}
		if got.Action == nil || got.Disposition == nil || *got.Action != row.action || *got.Disposition != row.disposition {
			t.Errorf("%s: got %s, want %d/%d", row.name, render(t, &row.record), row.action, row.disposition)
		}
	}
}

// required returns, for each class that is used and for each object in it, the
// attributes that the schema requires. The table was copied from the published schema,
// not fetched; where versions from 1.2 to 1.8 differ it has the stricter requirement
// (both endpoints, the vendor). The schema requires one of http_request and
// http_response, and there is always a request.
func required() map[string][]string {
	base := []string{"activity_id", "category_uid", "class_uid", "type_uid", "severity_id", "time", "metadata"}
	return map[string][]string{
		"4002": slices.Concat(base, []string{"src_endpoint", "dst_endpoint", "http_request", "action_id", "disposition_id"}),
		"4003": slices.Concat(base, []string{"src_endpoint", "dst_endpoint", "action_id", "disposition_id"}),
		"4001": slices.Concat(base, []string{"src_endpoint", "dst_endpoint"}),
		"3004": slices.Concat(base, []string{"entity"}),

		"metadata":        {"version", "product"},
		"product":         {"name", "vendor_name"},
		"http_response":   {"code"},
		"query":           {"hostname"},
		"url":             {"url_string"},
		"connection_info": {"direction_id"},
		"owner":           {"uid", "type_id", "type"},
		"entity":          {"name"},
		"traffic":         {"bytes"},
	}
}

// oneOf returns the objects that must have at least one of several attributes.
func oneOf() map[string][]string {
	named := []string{"ip", "uid", "name", "hostname", "svc_name", "instance_uid", "interface_uid", "interface_name"}
	return map[string][]string{
		"src_endpoint": named, "dst_endpoint": named, "proxy_endpoint": named,
		"firewall_rule": {"name", "uid"}, "policy": {"name", "uid"},
	}
}

func TestRequiredFields(t *testing.T) {
	for _, s := range audittest.Samples() {
		var event map[string]any
		decoder := json.NewDecoder(bytes.NewReader(render(t, &s.Record)))
		decoder.UseNumber()
		if err := decoder.Decode(&event); err != nil {
			t.Fatal(err)
		}
		checkObject(t, s.Name, event["class_uid"].(json.Number).String(), event)
		category, activity := integer(t, event["category_uid"]), integer(t, event["activity_id"])
		if class := integer(t, event["class_uid"]); class/1000 != category || integer(t, event["type_uid"]) != class*100+activity {
			t.Errorf("%s: class %d, category %d, activity %d and type %v do not fit", s.Name, class, category, activity, event["type_uid"])
		}
		if activity == 99 && event["activity_name"] == nil {
			t.Errorf("%s: an activity without a name", s.Name)
		}
	}
}

// checkObject checks an object and the objects in it.
func checkObject(t *testing.T, sample, name string, object map[string]any) {
	t.Helper()
	for _, attribute := range required()[name] {
		if object[attribute] == nil {
			t.Errorf("%s: %s has no %s", sample, name, attribute)
		}
	}
	has := func(attribute string) bool { return object[attribute] != nil }
	if any := oneOf()[name]; any != nil && !slices.ContainsFunc(any, has) {
		t.Errorf("%s: %s has none of %v", sample, name, any)
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if inner, ok := object[key].(map[string]any); ok {
			checkObject(t, sample, key, inner)
		}
	}
}

func integer(t *testing.T, v any) int64 {
	t.Helper()
	n, err := v.(json.Number).Int64()
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestIDs checks that an id is unique as metadata.uid, and joins events as
// correlation_uid.
func TestIDs(t *testing.T) {
	for _, s := range audittest.Samples() {
		var got struct {
			Metadata struct {
				ID          string `json:"uid"`
				Correlation string `json:"correlation_uid"`
			}
		}
		if err := json.Unmarshal(render(t, &s.Record), &got); err != nil {
			t.Fatal(err)
		}
		want := s.Record.ID
		if strings.HasPrefix(s.Name, "tunnel-") || slices.Contains([]string{"collapsed", "dns-collapsed", "tls-refused", "tls-observed", "audit-unavailable"}, s.Name) {
			want = ""
		}
		if got.Metadata.ID != want || got.Metadata.Correlation != s.Record.ID {
			t.Errorf("%s: uid %q, correlation_uid %q, record %q", s.Name, got.Metadata.ID, got.Metadata.Correlation, s.Record.ID)
		}
	}
}

func BenchmarkRender(b *testing.B) {
	r := audittest.Samples()[0].Record
	var dst []byte
	for b.Loop() {
		var err error
		if dst, err = ocsf.Render(dst[:0], &r); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAddressesHaveNoZone checks that addresses are written without their zone, because an
// IP address of the schema has none.
func TestAddressesHaveNoZone(t *testing.T) {
	for _, s := range audittest.Samples() {
		if line := render(t, &s.Record); bytes.ContainsRune(line, '%') {
			t.Errorf("%s: %s", s.Name, line)
		}
	}
}
