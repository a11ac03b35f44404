package process

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestASinkOfOpenTelemetryThatIsDisabled checks that a sink of OpenTelemetry is left out
// if the SDK is disabled and no records are lost by that. Otherwise it is an error,
// because the sink would accept every record, count it as written, and keep none.
func TestASinkOfOpenTelemetryThatIsDisabled(t *testing.T) {
	otlp := config.RecordSink{Name: "otlp", OTLP: true}
	for _, row := range []struct {
		name  string
		sinks []config.RecordSink
		want  []string // nil means an error
	}{
		{"another sink keeps all records", []config.RecordSink{{Name: "stdout"}, otlp}, []string{"stdout"}},
		{"there is no other sink", []config.RecordSink{otlp}, nil},
		{"the other sink keeps fewer records", []config.RecordSink{otlp, {Name: "denials", Only: config.Denials}}, nil},
		{"the other sink keeps as many records", []config.RecordSink{
			{Name: "otlp", OTLP: true, Only: config.Denials},
			{Name: "denials", Only: config.Denials},
		}, []string{"denials"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			tel, err := telemetry.New(t.Context(), telemetry.Config{Getenv: func(key string) string {
				return map[string]string{"OTEL_SDK_DISABLED": "true"}[key]
			}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
			all, err := new(sinks).openAll(t.Context(), row.sinks, options(), tel)
			if (row.want == nil) != errors.Is(err, telemetry.ErrDisabled) {
				t.Fatalf("error %v", err)
			}
			var names []string
			for _, s := range all {
				names = append(names, s.Name)
			}
			if diff := cmp.Diff(row.want, names); diff != "" {
				t.Errorf("sinks (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOnlyDenials checks which records "only: denials" keeps.
func TestOnlyDenials(t *testing.T) {
	for _, row := range []struct {
		name string
		rec  audit.Record
		kept bool
	}{
		{"allowed", audit.Record{Verdict: allowlist.Allow}, false},
		{"denied", audit.Record{Reason: allowlist.NotOnAllowlist}, true},
		{"observed", audit.Record{Verdict: allowlist.Observe, WouldReason: allowlist.NotOnAllowlist}, true},
		{"no policy", audit.Record{Verdict: allowlist.Fail, Reason: allowlist.PolicyUnavailable}, true},
		{"not recorded", audit.Record{Verdict: allowlist.Fail, Reason: allowlist.AuditUnavailable}, true},
		{"revoked", audit.Record{Verdict: allowlist.Fail, Reason: allowlist.CutOff, Detail: "revoked"}, true},
		{"quarantined", audit.Record{Verdict: allowlist.Fail, Reason: allowlist.CutOff, Detail: "quarantined"}, true},
		{"drained", audit.Record{Verdict: allowlist.Fail, Reason: allowlist.CutOff, Detail: "drain"}, false},
		{"limited", audit.Record{Verdict: allowlist.Fail, Reason: allowlist.CutOff, Detail: "limit"}, false},
	} {
		row.rec.Event = audit.EventDecision
		if kept := denials(&row.rec); kept != row.kept {
			t.Errorf("%s: kept: %v, want %v", row.name, kept, row.kept)
		}
	}
}
