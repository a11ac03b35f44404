package ecs_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/ecs"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

var update = flag.Bool("update", false, "write the golden files")

func render(t *testing.T, r *audit.Record) []byte {
	t.Helper()
	line, err := ecs.Render(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// TestGolden compares the whole document of every kind of record.
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
	got, err := ecs.Render([]byte("before "), &r)
	if err != nil {
		t.Fatal(err)
	}
	if want := "before " + string(render(t, &r)); string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// doc holds the fields that the tests read.
type doc struct {
	Time string `json:"@timestamp"`
	ECS  struct{ Version string }

	Message string
	Event   struct {
		Kind, Action, Outcome, ID, Reason string

		Category, Type []string
	}
	HTTP  struct{ Request struct{ ID string } }
	User  struct{ ID string }
	Exeat struct{ ID string }
}

func read(t *testing.T, r *audit.Record) doc {
	t.Helper()
	var d doc
	if err := json.Unmarshal(render(t, r), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// expected returns the values of event.type that the schema allows with a value of
// event.category. They are copied from the published schema, not fetched.
func expected(category string) []string {
	switch category {
	case "network":
		return []string{"access", "allowed", "connection", "denied", "end", "info", "protocol", "start"}
	case "configuration":
		return []string{"access", "change", "creation", "deletion", "info"}
	}
	return nil
}

// TestRequiredFields checks the fields @timestamp and ecs.version, which the schema
// requires, and the four categorisation fields, which its guidelines require where they
// apply.
func TestRequiredFields(t *testing.T) {
	for _, s := range audittest.Samples() {
		d := read(t, &s.Record)
		if at, err := time.Parse(time.RFC3339Nano, d.Time); err != nil || !at.Equal(s.Record.Time) {
			t.Errorf("%s: @timestamp %q", s.Name, d.Time)
		}
		if d.ECS.Version != "8.17.0" || d.Event.Kind != "event" || d.Event.Action == "" || d.Message == "" {
			t.Errorf("%s: %+v", s.Name, d)
		}
		if len(d.Event.Category) != 1 || len(d.Event.Type) == 0 {
			t.Fatalf("%s: category %v, type %v", s.Name, d.Event.Category, d.Event.Type)
		}
		for _, typ := range d.Event.Type {
			if !slices.Contains(expected(d.Event.Category[0]), typ) {
				t.Errorf("%s: type %s does not go with category %s", s.Name, typ, d.Event.Category[0])
			}
		}
		if !slices.Contains([]string{"", "success", "failure", "unknown"}, d.Event.Outcome) {
			t.Errorf("%s: outcome %q", s.Name, d.Event.Outcome)
		}
	}
}

func TestVerdictsAndEnds(t *testing.T) {
	decision := func(v allowlist.Verdict) audit.Record {
		return audit.Record{Event: audit.EventDecision, Verdict: v, Policy: "v1"}
	}
	closed := func(reason tunnel.Reason) audit.Record {
		return audit.Record{Event: audit.EventTunnelClose, Verdict: allowlist.Allow, CloseReason: reason}
	}
	rows := []struct {
		name            string
		record          audit.Record
		action, outcome string
		types           string
	}{
		{"allow starts an allowed connection", decision(allowlist.Allow), "allow", "success", "connection start allowed"},
		{"observe is allowed", decision(allowlist.Observe), "observe", "success", "connection start allowed"},
		{"deny is denied", decision(allowlist.Deny), "deny", "failure", "connection denied"},
		{"fail is neither", decision(allowlist.Fail), "fail", "failure", "connection"},
		{"a tunnel ends", closed(tunnel.Idle), "tunnel.close", "", "connection end"},
		{"a revoked tunnel ends denied", closed(tunnel.Revoked), "tunnel.close", "", "connection end denied"},
		{"a quarantined tunnel ends denied", closed(tunnel.Quarantined), "tunnel.close", "", "connection end denied"},
		{"a denied tunnel ends denied", closed(tunnel.Denied), "tunnel.close", "", "connection end denied"},
		{"a summary without counts is of denials", audit.Record{Event: audit.EventSummary}, "summary", "", "connection denied"},
		{
			"a mixed summary is neither",
			audit.Record{Event: audit.EventSummary, Merged: &audit.Merged{Counts: []audit.Count{{Verdict: allowlist.Fail}}}},
			"summary", "", "connection",
		},
	}
	for _, row := range rows {
		got := read(t, &row.record).Event
		if got.Action != row.action || got.Outcome != row.outcome || strings.Join(got.Type, " ") != row.types {
			t.Errorf("%s: got %+v", row.name, got)
		}
	}
}

// TestIDs checks that event.id is unique, and that http.request.id joins the documents of
// a request.
func TestIDs(t *testing.T) {
	for _, s := range audittest.Samples() {
		d := read(t, &s.Record)
		shared := strings.HasPrefix(s.Name, "tunnel-") || slices.Contains([]string{"collapsed", "dns-collapsed", "tls-refused", "tls-observed", "audit-unavailable"}, s.Name)
		if shared == (d.Event.ID == s.Record.ID) || shared && d.HTTP.Request.ID != s.Record.ID && d.Exeat.ID != s.Record.ID {
			t.Errorf("%s: event.id %q, http.request.id %q", s.Name, d.Event.ID, d.HTTP.Request.ID)
		}
	}
}

// TestIdentityOfTheGatewayIsNoUser checks that user.id is the identity of the caller, and
// is empty for a rotation of the gateway's own identity, which is not an action of a
// caller.
func TestIdentityOfTheGatewayIsNoUser(t *testing.T) {
	for _, s := range audittest.Samples() {
		want := s.Record.Identity.String()
		if s.Record.Event == audit.EventIdentityRotate {
			want = ""
		}
		if got := read(t, &s.Record).User.ID; got != want {
			t.Errorf("%s: user.id %q, want %q", s.Name, got, want)
		}
	}
}

func BenchmarkRender(b *testing.B) {
	r := audittest.Samples()[0].Record
	var dst []byte
	for b.Loop() {
		var err error
		if dst, err = ecs.Render(dst[:0], &r); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAddressesHaveNoZone checks that addresses are written without their zone: a field of
// type ip does not accept one, and the whole document would be refused.
func TestAddressesHaveNoZone(t *testing.T) {
	for _, s := range audittest.Samples() {
		if line := render(t, &s.Record); bytes.ContainsRune(line, '%') {
			t.Errorf("%s: %s", s.Name, line)
		}
	}
}
